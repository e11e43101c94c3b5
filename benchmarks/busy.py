"""What a busy machine costs: tuning the encoder alone and beside other work, under several ways to wait for threads.

    python -m benchmarks.busy

OpenMP's threads spin while they wait for one another; beside another process they spin on the core that it needs.
Commands that train set OMP_WAIT_POLICY=PASSIVE unless the variable is set (megedit/cli/app.py). Run it on an idle
machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from statistics import median
from typing import Any

WAYS: dict[str, dict[str, str]] = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
BESIDE = ("nothing", "a busy core", "another tuning")
OPENMP = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "MKL_NUM_THREADS")
LOOP = "while True: pass"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="training steps of each measurement")
    parser.add_argument(
        "--work", action="store_true", help=argparse.SUPPRESS
    )  # one measurement, in a process of its own
    options = parser.parse_args()
    if options.work:
        print(json.dumps(tuning_steps(options.steps)))
        return
    from benchmarks.common import write_result

    rows: dict[str, dict[str, float]] = {}
    for way in WAYS:
        rows[way] = {}
        for beside in BESIDE:
            with running(beside, way):
                found = subprocess.run(work(options.steps), env=environment(way), capture_output=True, check=True)
            rows[way][beside] = round(median(json.loads(found.stdout.splitlines()[-1])), 3)
            print(f"{way:<12} beside {beside:<16} {rows[way][beside]:7.3f} s a step", flush=True)
    write_result("busy", {"steps": options.steps, "ways": WAYS}, {"seconds_per_step": rows})


def tuning_steps(steps: int) -> list[float]:
    """Seconds of each of so many training steps of the encoder, the first ones, which warm up, left out."""
    from megedit.encoder import EncoderSettings, TextEncoder
    from megedit.lm.loading import resolve_folder
    from megedit.pseudo import load_pseudo_knowledge

    settings = EncoderSettings(steps=steps + 2)
    times: list[float] = []
    TextEncoder(resolve_folder(settings.name)).tune(
        load_pseudo_knowledge(), settings, 0, lambda done: times.append(time.perf_counter())
    )
    return [after - before for before, after in pairwise(times[1:])]


def work(steps: int) -> list[str]:
    return [sys.executable, "-m", "benchmarks.busy", "--work", "--steps", str(steps)]


def environment(way: str) -> dict[str, str]:
    return {**{name: value for name, value in os.environ.items() if name not in OPENMP}, **WAYS[way]}


@contextmanager
def running(beside: str, way: str) -> Iterator[None]:
    """Within the context another process is at work: a loop on one core, or a tuning that waits in the same way."""
    if beside == "nothing":
        yield
        return
    command = [sys.executable, "-c", LOOP] if beside == "a busy core" else work(10_000)
    options: dict[str, Any] = {"env": environment(way), "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **options) as other:
        time.sleep(20 if beside == "another tuning" else 0)  # until its training has begun
        try:
            yield
        finally:
            other.kill()


if __name__ == "__main__":
    main()
