"""Bad input to a server: does anything but a clear 4xx come back, and does its memory stay flat?

    python -m benchmarks.serving_fuzz --adapter adapters/demo [--requests 10000]

Schemathesis makes requests from the server's own description of its API, right ones and wrong ones. Beside them are
some made by hand: broken JSON, wrong types, huge fields, control characters, deep nesting, slow bodies, thousands of
headers. An answer of 500 or above other than 503, a traceback in an answer or in the log, or an answer that does not
come, is a failure. Writes results/serving_fuzz.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import schemathesis
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

from benchmarks.common import write_result
from benchmarks.serving import KEY, served
from megedit.runtime.progress import Stages

SEED = 0
FEW = {"/v1/explain": 40, "/v1/edits/consolidate": 5, "/v1/edits/rollback": 100, "/v1/edits/undo": 20}  # long ones
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/edits", "/v1/explain", "/v1/edits/rollback")
BODIES = (
    b"", b"{", b"[]", b"null", b"1e999", b'"x"', b"\xff\xfe\x00", b"[" * 100_000, b'{"a":' * 20_000, b"9" * 6000,
    b'{"model": NaN}', b'{"model": "\\ud800"}', b'{"messages": [{"role": "user", "content": "\\u0000"}]}',
    json.dumps({"model": "served", "messages": [{"role": "user", "content": "x" * 1_000_000}]}).encode(),
    json.dumps({"edits": [{"prompt": "p" * 1_000_000, "target": "t"}]}).encode(),
    json.dumps({"edits": [{"prompt": "\x1b[2J\x07", "target": "\u202e\u0000"}]}).encode(),
    json.dumps({"edits": [{"prompt": "p", "target": "t", "id": "../../etc/passwd"}], "on_conflict": "skip"}).encode(),
    json.dumps({"question": "{{ ''.__class__ }} {% for x in range(10**9) %}x{% endfor %}"}).encode(),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(options.adapter, Path(place, "adapter")))
        with served(folder, "--max-tokens", "8") as server:
            results = Fuzz(server.url, psutil.Process(server.process.pid)).run(options.requests)
            log = server.log.read_text("utf-8")
    results["tracebacks_in_the_log"] = log.count("Traceback")
    results["log"] = [line[-400:] for line in log.splitlines() if "Traceback" in line][:3]
    print(json.dumps(results, indent=1))
    print(write_result("serving_fuzz", {"adapter": options.adapter.name, "seed": SEED}, results))


class Fuzz:
    """Requests to a server, and what came back."""

    def __init__(self, url: str, process: psutil.Process) -> None:
        self._url, self._process = url, process
        self._http = httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=300)
        self._counts, self._failures, self._memory = Counter[str](), list[str](), list[int]()

    def run(self, requests: int) -> dict[str, Any]:
        """So many requests; what was found."""
        with Stages().stage("Requests", requests) as advance:
            made = 0
            for number in self._made_by_hand():
                advance(number)
                made += number
            for number in self._from_description(requests - made):
                advance(number)
        return {
            "requests": sum(self._counts.values()),
            "statuses": dict(sorted(self._counts.items())),
            "failures": len(self._failures),
            "examples": self._failures[:5],
            "memory_mb": self._memory,
        }

    def _judge(self, status: int, text: str, of: str) -> None:
        self._counts[str(status)] += 1
        if (status >= 500 and status != 503) or "Traceback (most" in text:
            self._failures.append(f"{of}: {status} {text[:300]}")

    def _measure(self) -> None:
        self._memory.append(self._process.memory_info().rss // 1024**2)

    def _made_by_hand(self) -> Iterator[int]:
        """Bodies, headers and connections that no client should send."""
        for path in PATHS:
            for body in BODIES:
                answer = self._http.post(path, content=body, headers={"Content-Type": "application/json"})
                self._judge(answer.status_code, answer.text, f"{path} {body[:40]!r}")
                yield 1
        for count in (100, 2000):
            self._raw(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X-Many: y\r\n" * count + b"\r\n")
            yield 1
        for data in (b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
                     b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n", b"\r\n" * 1000):  # fmt: skip
            self._raw(data)
            yield 1
        slow = [
            self._connection(b"POST /v1/edits HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
            for _ in range(50)
        ]
        answer = self._http.get("/health")  # others are answered meanwhile
        self._judge(answer.status_code, answer.text, "beside slow bodies")
        for each in slow:
            each.close()
        yield 1

    def _connection(self, data: bytes) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", httpx2.URL(self._url).port or 80), timeout=60)
        connection.sendall(data)
        return connection

    def _raw(self, data: bytes) -> None:
        with self._connection(data) as connection:
            connection.shutdown(socket.SHUT_WR)
            try:
                answer = connection.recv(65536).decode("latin-1")
            except ConnectionError:
                answer = ""
        status = int(answer.split(" ")[1]) if answer.startswith("HTTP/") else 0  # 0: the connection was closed
        self._judge(status, answer, repr(data[:40]))

    def _from_description(self, requests: int) -> Iterator[int]:
        """Requests that schemathesis makes from the description of the API."""
        schema = schemathesis.openapi.from_url(f"{self._url}/openapi.json")
        operations: list[Any] = [result.ok() for result in schema.get_all_operations()]  # type: ignore[union-attr]
        left, own_seed = requests, SEED
        self._measure()
        while left > 0:  # once more where operations have run out of different requests
            few = {op.label: FEW[op.path] for op in operations if op.path in FEW}
            share = max(left - sum(few.values()), 0) // (len(operations) - len(few)) + 1
            for operation in operations:
                before = sum(self._counts.values())
                self._operation(operation, few.get(operation.label, share), own_seed)
                self._measure()
                yield sum(self._counts.values()) - before
                left -= sum(self._counts.values()) - before
            operations, own_seed = [op for op in operations if op.path not in FEW], own_seed + 1

    def _operation(self, operation: Any, count: int, own_seed: int) -> None:
        @seed(own_seed)
        @settings(
            max_examples=count, database=None, deadline=None, phases=[Phase.generate], verbosity=Verbosity.quiet,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            started = time.perf_counter()
            try:
                answer = case.call(headers={"Authorization": f"Bearer {KEY}"}, timeout=300)
            except Exception as error:  # what cannot be sent at all
                self._counts[f"not sent: {type(error).__name__}"] += 1
                return
            self._judge(answer.status_code, answer.text, operation.label)
            if time.perf_counter() - started > 60:
                self._failures.append(f"{operation.label}: more than a minute")

        ask()


if __name__ == "__main__":
    main()
