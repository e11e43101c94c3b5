"""A server killed at random moments while its edits are changed: is every acknowledged change there, and none by half?

    python -m benchmarks.serving_crash --adapter adapters/demo [--kills 200]

Four clients add, change, remove and now and then consolidate, over HTTP. At a random moment the server gets SIGKILL.
Then the folder is read: each client's edits must be as the last acknowledged answers say, or as the one request that
was under way would have left them; the adapter must load; nothing else may have changed. Servers are forked from a
process that has the model in memory already, so that a start takes no time. Writes results/serving_crash.json.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.common import write_result
from benchmarks.serving import KEY, any_port
from megedit.adapter.ledger import reading
from megedit.runtime.progress import Stages

CLIENTS, IDS = 4, 6  # edits of a client
LIVES = (0.3, 6.0)  # seconds of a server
ALIVE = {"Lisbon", "8443", "green", "Priya Raman"}
SEED = 0

State = dict[str, str | None]  # by id the target in force, None where there is none


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--forker", type=int, help=argparse.SUPPRESS)  # port: the process that servers are forked from
    options = parser.parse_args()
    if options.forker:
        fork_servers(options.adapter, options.forker)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(options.adapter, Path(place, "adapter")))
        results = kill_often(folder, options.kills)
    print(results)
    print(write_result("serving_crash", {"adapter": options.adapter.name, "clients": CLIENTS, "seed": SEED}, results))


def fork_servers(adapter: Path, port: int) -> None:
    """Load the model, and for each line that comes in, fork a server and print its process's number."""
    import torch

    torch.set_num_threads(1)  # no threads may be there when it forks
    from megedit import MegModel
    from megedit.serve.run import make_server
    from megedit.serve.settings import ServeSettings

    model = MegModel.from_pretrained(adapter)
    print("loaded", flush=True)
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            make_server(model, ServeSettings(name="served", port=port, edit_key=KEY)).run()
            os._exit(0)
        print(pid, flush=True)
        os.waitpid(pid, 0)


class Client(threading.Thread):
    """Changes edits of its own until the server is gone. known: as acknowledged; maybe: if the last one was made."""

    def __init__(self, number: int, url: str, known: State, rng: random.Random, counts: Counter[str]) -> None:
        super().__init__()
        self.number, self.known, self.maybe = number, known, dict(known)
        self._url, self._rng, self._counts = url, rng, counts
        self.wrong: list[str] = []

    def run(self) -> None:
        """Send requests, one after the other."""
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx2.Client(base_url=self._url, headers=headers, timeout=120) as http:
            try:
                while True:
                    self._step(http)
            except httpx2.TransportError:
                pass

    def _step(self, http: httpx2.Client) -> None:
        name = f"c{self.number}-{self._rng.randrange(IDS)}"
        kind = self._rng.choices(("put", "remove", "consolidate"), (6, 3, 1))[0]
        after = dict(self.known)
        if kind == "consolidate":
            answer = http.post("/v1/edits/consolidate")
        elif kind == "remove":
            if self.known.get(name) is None:
                return
            after[name] = None
            self.maybe = after
            answer = http.delete(f"/v1/edits/{name}")
        else:
            after[name] = self._rng.choice(sorted(ALIVE))
            self.maybe = after
            answer = self._put(http, name, str(after[name]))
        if answer.status_code == 503:
            self.maybe = dict(self.known)
            self._counts["busy"] += 1
            time.sleep(0.1)
        elif answer.is_success:
            self.known, self.maybe = after, dict(after)
            self._counts[kind] += 1
        else:
            self.wrong.append(f"{kind} {name}: {answer.text}")
            self.maybe = dict(self.known)

    def _put(self, http: httpx2.Client, name: str, target: str) -> httpx2.Response:
        if self.known.get(name) is not None:
            return http.patch(f"/v1/edits/{name}", json={"target": target})
        edit = {"id": name, "prompt": f"What is kept in drawer {name} of the Marlow cabinet?", "target": target}
        return http.post("/v1/edits", json={"edits": [edit], "on_conflict": "keep"})


def kill_often(folder: Path, kills: int) -> dict[str, Any]:
    """Kill servers at random moments; what was found."""
    rng, counts, problems = random.Random(SEED), Counter[str](), list[str]()
    states: list[State] = [{} for _ in range(CLIENTS)]
    port = any_port()
    command = [sys.executable, "-m", "benchmarks.serving_crash", "--adapter", str(folder), "--forker", str(port)]
    forker = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert forker.stdin and forker.stdout and forker.stdout.readline() == "loaded\n"
    with Stages().stage("Kills", kills) as advance:
        for number in range(kills):
            forker.stdin.write("start\n")
            forker.stdin.flush()
            pid, url = int(forker.stdout.readline()), f"http://127.0.0.1:{port}"
            wait_for(url)
            clients = [Client(k, url, states[k], random.Random(f"{SEED} {number} {k}"), counts) for k in range(CLIENTS)]
            for client in clients:
                client.start()
            time.sleep(rng.uniform(*LIVES))
            os.kill(pid, signal.SIGKILL)
            for client in clients:
                client.join()
            problems += [text for client in clients for text in client.wrong]
            states = [settled(folder, client, problems) for client in clients]
            advance(1)
    forker.stdin.close()
    forker.wait()
    with reading(folder) as ledger:
        revision = ledger.revision
    return {
        "kills": kills,
        "acknowledged": dict(counts),
        "revisions": revision,
        "lost_or_half_done": len(problems),
        "examples": problems[:5],
    }


def wait_for(url: str) -> None:
    """Wait until a server answers."""
    while True:
        try:
            httpx2.get(f"{url}/health")
            return
        except httpx2.TransportError:
            time.sleep(0.02)


def settled(folder: Path, client: Client, problems: list[str]) -> State:
    """The state of a client's edits in the folder, which must be one of the two that may be."""
    prefix = f"c{client.number}-"
    with reading(folder) as ledger:
        records = ledger.records(status="active", search=prefix)
        neurons = ledger.neurons([record.number for record in records])
        vectors = ledger.vectors(ledger.records(status="active").numbers)
        counts = ledger.counts()
    found: State = {record.edit.id: record.edit.target for record in records if record.edit.id.startswith(prefix)}
    allowed = [{name: target for name, target in state.items() if target} for state in (client.known, client.maybe)]
    if found not in allowed:
        problems.append(f"client {client.number}: {found} is neither {allowed[0]} nor {allowed[1]}")
    if len(neurons) != len(records) or len(vectors) != counts["active"]:
        problems.append("an edit has no neuron or no vector")
    return dict(found)


if __name__ == "__main__":
    main()
