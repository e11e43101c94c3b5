"""What stages cost, also over interruptions."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from megedit.runtime.progress import Stages


def test_it_loads_neither_torch_nor_what_windows_lacks() -> None:
    lines = (
        "import sys",
        "sys.modules['resource'] = None",  # as on Windows: importing it fails
        "import megedit.runtime.progress",
        "assert 'torch' not in sys.modules",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def stages() -> Stages:
    return Stages(Console(quiet=True))


def test_costs_are_kept_over_an_interruption(tmp_path: Path) -> None:
    path, first = tmp_path / "costs.json", stages()
    with first.stage("Loading"):
        pass
    first.keep_costs(path)
    with first.stage("Done"):
        pass
    with pytest.raises(KeyboardInterrupt), first.stage("Cut off"):
        raise KeyboardInterrupt
    path.write_text(json.dumps({name: {**cost, "seconds": 10.0} for name, cost in first.costs.items()}), "utf-8")
    second = stages()
    with second.stage("Loading"):
        pass
    second.keep_costs(path)
    with second.stage("Cut off"):
        pass
    assert list(second.costs) == ["Loading", "Done", "Cut off"]
    assert second.costs["Done"]["seconds"] == 10
    assert 10 <= second.costs["Loading"]["seconds"] < 11 and 10 <= second.costs["Cut off"]["seconds"] < 11
    assert json.loads(path.read_text("utf-8")) == second.costs


def test_memory_of_a_gpu_is_kept_where_one_was_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "costs.json"
    path.write_text('{"Collecting": {"seconds": 10.0, "peak_memory_mb": 5.0, "peak_gpu_memory_mb": 900.0}}', "utf-8")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: (300 + device) * 1024**2)
    going_on = stages()
    going_on.keep_costs(path)
    for name in ("Collecting", "Done"):
        with going_on.stage(name):
            pass
    assert going_on.costs["Collecting"]["peak_gpu_memory_mb"] == 900
    assert going_on.costs["Done"]["peak_gpu_memory_mb"] == 301


def test_costs_that_cannot_be_written_stop_nothing(tmp_path: Path) -> None:
    cut_off = stages()
    cut_off.keep_costs(tmp_path / "nothing" / "costs.json")
    with cut_off.stage("Done"):
        pass
    assert "Done" in cut_off.costs
