"""Writing an adapter's folder: whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from megedit.adapter.adapter import copy_adapter
from megedit.adapter.folder import replacing_folder
from megedit.errors import MegError
from tests.conftest import Fitted


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of every file; of the ledger, whose bytes differ between copies, only that it is there."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {**files, "ledger.db": b""} if "ledger.db" in files else files


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), replacing_folder(tmp_path / "adapter", overwrite=False) as partial:
        (partial / "half").write_text("")
        raise ZeroDivisionError
    assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_put_in_place(adapter_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files_of(adapter_folder)
    rename = os.replace

    def refuse_new(source: Path, target: Path) -> None:
        if Path(source).name == "new":
            raise OSError("not today")
        rename(source, target)

    monkeypatch.setattr(os, "replace", refuse_new)
    with (
        pytest.raises(MegError, match=r"could not be written \(not today\); what was there before is untouched"),
        replacing_folder(adapter_folder, overwrite=True) as partial,
    ):
        (partial / "half").write_text("")
    assert files_of(adapter_folder) == before
    assert [path.name for path in adapter_folder.parent.iterdir()] == ["adapter"]


def test_a_place_that_cannot_be_written(fitted: Fitted, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MegError, match="could not be written"):
        copy_adapter(fitted.adapter, tmp_path / "file" / "adapter")


def test_a_folder_is_as_readable_as_any_other(fitted: Fitted, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert fitted.adapter.stat().st_mode == (tmp_path / "other").stat().st_mode
