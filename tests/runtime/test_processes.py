"""Fits in real processes: killed in every stage, starved of disk, and two that share the work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megedit.adapter.adapter import load_adapter
from megedit.errors import MegError
from megedit.lm.loading import load_base
from megedit.model import MegModel
from megedit.runtime.processes import ALONE, Processes, launched
from tests.conftest import Fitted
from tests.test_fitting import assert_same_tensors

SCRIPT = Path(__file__).parent.parent / "run_fit.py"
# what each stage leaves in the folder of the unfinished run, in this order
STAGES = (
    "layer.json",
    "encoder.training.safetensors",
    "encoder",
    "shared-00000.safetensors",
    "served-00000.safetensors",
    "vectors.safetensors",
    "held_out.safetensors",
    "router.safetensors",
    "generator.training.safetensors",
    "generator.safetensors",
    "generated.safetensors",
)


def command(fitted: Fitted, out: Path, *more: str, processes: int = 1) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)] if processes > 1 else []
    encoder = fitted.settings.encoder.name
    return [sys.executable, *launcher, str(SCRIPT), str(fitted.base), encoder, str(out), *more]


def environment() -> dict[str, str]:
    paths = (str(SCRIPT.parent.parent), os.environ.get("PYTHONPATH", ""))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def test_killed_in_every_stage_it_goes_on_to_the_same_adapter(fitted: Fitted, tmp_path: Path) -> None:
    out, work = tmp_path / "adapter", tmp_path / ".adapter.fit"
    for stage in STAGES:
        with subprocess.Popen(command(fitted, out), env=environment(), stderr=subprocess.DEVNULL) as running:
            while running.poll() is None and not any(work.glob(f"*/{stage}")):
                time.sleep(0.001)
            running.kill()
        assert running.returncode == -signal.SIGKILL, f"it ended before it had written {stage}"
        assert not out.exists()
    done = subprocess.run(command(fitted, out), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_same_tensors(out, fitted.adapter)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


def test_on_a_full_disk_it_says_so_and_goes_on_when_there_is_room(fitted: Fitted, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    for largest in ("100", "2000", "40000"):
        full = subprocess.run(command(fitted, out, largest), env=environment(), capture_output=True, text=True)
        assert full.returncode == 1 and "Traceback" not in full.stderr
        assert "make room and run the same command again to go on" in full.stderr
        assert not out.exists()
    done = subprocess.run(command(fitted, out), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_same_tensors(out, fitted.adapter)


def test_two_processes_make_the_adapter_of_one(fitted: Fitted, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    done = subprocess.run(command(fitted, out, processes=2), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Training the generator") == 1  # only one of them reports
    both, alone = load_adapter(out), load_adapter(fitted.adapter)
    assert [record.status for record in both.records] == [record.status for record in alone.records]
    # the same batches, in whichever process: only the encoder's and the generator's sums have another order
    torch.testing.assert_close(both.neurons(both.active), alone.neurons(alone.active), rtol=1e-3, atol=1e-3)
    assert (both.router.vectors.unpack() * alone.router.vectors.unpack()).sum(1).min() > 0.99
    model = MegModel(*load_base(str(fitted.base), dtype=torch.float32), both)
    answers = model.answer([edit.prompt for edit in fitted.edits], max_new_tokens=8)
    assert answers == [f"{edit.target}." for edit in fitted.edits]


def test_a_process_that_died_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("Connection closed by peer [127.0.0.1]:5\nstack")

    for name in ("barrier", "broadcast", "all_reduce"):
        monkeypatch.setattr(torch.distributed, name, closed)
    pair, weight = Processes(0, 2), torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    calls: tuple[Callable[[], Any], ...] = (
        pair.wait,
        lambda: pair.agree(True),
        lambda: pair.sum(torch.ones(1)),
        lambda: pair.average_gradients([weight]),
    )
    for call in calls:
        with pytest.raises(
            MegError, match=r"has ended.* \(Connection closed by peer .*5\); start the same command again"
        ):
            call()


def test_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launched("cpu") == ALONE and ALONE.main and ALONE.agree(True)
    assert list(ALONE.own([1, 2, 3])) == [1, 2, 3]
    assert [list(Processes(rank, 2).own(range(5))) for rank in (0, 1)] == [[0, 2, 4], [1, 3]]
    ALONE.wait()
    values = torch.ones(3)
    assert torch.equal(ALONE.sum(values), values)
