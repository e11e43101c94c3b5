"""The server as a process: started by the command, stopped by a signal, killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from megedit.adapter.ledger import reading
from tests.conftest import Fitted
from tests.serve.conftest import EDIT_KEY
from tests.serve.proxy import round_robin

Start = Callable[[], tuple[subprocess.Popen[str], httpx2.Client]]


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def start(adapter_folder: Path, fitted: Fitted) -> Iterator[Start]:
    """Starts servers of a copy of the tiny adapter."""
    running: list[subprocess.Popen[str]] = []

    def started() -> tuple[subprocess.Popen[str], httpx2.Client]:
        port = free_port()
        command = [sys.executable, "-m", "megedit", "serve", str(adapter_folder), "--base", str(fitted.base)]
        environment = {**os.environ, "MEGEDIT_EDIT_KEY": EDIT_KEY, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [*command, "--port", str(port), "--name", "tiny", "--dtype", "float32"],
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )
        running.append(process)
        headers = {"Authorization": f"Bearer {EDIT_KEY}"}
        http = httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=120)
        while process.poll() is None:
            try:
                if http.get("/ready").status_code == 200:
                    break
            except httpx2.TransportError:
                time.sleep(0.05)
        return process, http

    yield started
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order_and_the_log_has_no_questions(start: Start, sign: signal.Signals) -> None:
    process, http = start()
    body = {"model": "tiny", "messages": [{"role": "user", "content": "A secret question?"}], "max_tokens": 4}
    assert http.post("/v1/chat/completions", json=body).status_code == 200
    http.close()
    process.send_signal(sign)
    _, told = process.communicate(timeout=60)
    assert process.returncode in (0, -sign)
    assert "secret" not in told
    assert "Traceback" not in told
    assert "goes on" not in told
    lines = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    assert {"event": "request", "route": "/v1/chat/completions", "status": 200}.items() <= lines[-1].items()


def test_a_killed_server_has_what_it_acknowledged(start: Start, adapter_folder: Path) -> None:
    """benchmarks/serving_crash.py does this at random moments, often."""
    process, http = start()
    edit = {"prompt": "Who leads Atlas?", "target": "Ma", "id": "atlas"}
    assert http.post("/v1/edits", json={"edits": [edit]}).status_code == 200
    process.kill()
    process.communicate()
    with reading(adapter_folder) as ledger:
        assert [record.edit.id for record in ledger.records(search="atlas")] == ["atlas"]
    _, http = start()
    assert http.get("/v1/edits/atlas").json()["status"] == "active"


def test_two_servers_behind_a_proxy_answer_as_one(start: Start) -> None:
    """Each request goes to the server whose turn it is; a change holds for all that come after its answer."""
    (_, first), (_, second) = start(), start()
    ports = [int(http.base_url.port or 0) for http in (first, second)]
    alone = httpx2.Limits(max_keepalive_connections=0)  # each request is a connection
    with (
        round_robin(*ports) as (url, proxy),
        httpx2.Client(base_url=url, headers=first.headers, limits=alone, timeout=120) as http,
        ThreadPoolExecutor(4) as clients,
    ):

        def used(prompt: str) -> str | None:
            body = {"model": "tiny", "messages": [{"role": "user", "content": prompt}], "max_tokens": 4}
            answer = http.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            edit: str | None = answer.json()["megedit"]["edit"]
            return edit

        for name in ("Atlas", "Borealis", "Cygnus"):
            prompt = f"Who leads {name}?"
            edit = {"prompt": prompt, "target": "Ma", "subject": name, "id": name}
            answer = http.post("/v1/edits", json={"edits": [edit], "on_conflict": "keep"})
            assert answer.status_code == 200, answer.text
            assert [*clients.map(used, [prompt] * 8)] == [name] * 8
            assert http.delete(f"/v1/edits/{name}").status_code == 200
            assert name not in {*clients.map(used, [prompt] * 8)}
    assert min(proxy.handed.values()) >= 24
