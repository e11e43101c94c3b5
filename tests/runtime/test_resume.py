"""The folder of an unfinished run: whose it is, and what becomes of that of another run."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megedit.errors import MegError
from megedit.runtime.resume import Workspace


def one(value: float) -> dict[str, torch.Tensor]:
    return {"value": torch.tensor([value])}


def unexpected() -> dict[str, torch.Tensor]:
    raise AssertionError("it is there already")


def test_a_finished_stage_is_read_and_a_finished_run_leaves_nothing(tmp_path: Path) -> None:
    for compute in (lambda: one(1.0), unexpected):
        with Workspace(tmp_path / "adapter", "key") as work:
            assert work.tensors("stage", compute)["value"].tolist() == [1.0]
    work.remove()
    assert not list(tmp_path.iterdir())


def test_the_run_of_other_settings_is_kept_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "adapter"
    with Workspace(out, "first") as work:
        work.tensors("stage", lambda: one(1.0))
    with Workspace(out, "second") as work, caplog.at_level(logging.WARNING, "megedit"):
        assert work.tensors("stage", lambda: one(2.0))["value"].tolist() == [2.0]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"the unfinished run in {tmp_path / '.adapter.fit' / 'first'} had other settings" in caplog.text
    work.remove()
    with Workspace(out, "first") as work:
        assert work.tensors("stage", unexpected)["value"].tolist() == [1.0]
    work.remove()
    assert not list(tmp_path.iterdir())


def test_two_runs_to_one_place(tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    lines = (
        "import sys; from pathlib import Path; from megedit.runtime.resume import Workspace",
        "work = Workspace(Path(sys.argv[1]), 'key'); print('held', flush=True); sys.stdin.read()",
    )
    with subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines), str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        for key in ("key", "another"):
            with pytest.raises(MegError, match=f"Another process is making {out} just now"):
                Workspace(out, key)
        other.kill()
    with Workspace(out, "key") as work:
        work.remove()


def test_a_run_that_failed_lets_go_of_its_place(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), Workspace(tmp_path / "adapter", "key"):
            raise KeyboardInterrupt
