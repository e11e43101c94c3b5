"""Writing an adapter's folder: whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Thread

import pytest

from megedit.adapter.folder import copy_adapter, describe, replacing_folder
from megedit.adapter.ledger import reading
from megedit.errors import MegError
from megedit.operations import remove
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


def test_a_card_that_cannot_be_written_is_a_warning(
    adapter_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    remove(adapter_folder, ["edit-0"])
    assert "README.md could not be written anew (No space left on device)" in caplog.text
    with reading(adapter_folder) as ledger:
        assert ledger.counts()["removed"] == 1
    assert not list(adapter_folder.glob("*.partial"))


def test_the_card_is_of_the_last_revision_whoever_writes_it(adapter_folder: Path) -> None:
    """Several write the card at once: none meets another's file, and the last state stays."""

    def work(number: int) -> None:
        remove(adapter_folder, [f"edit-{number}"])
        for _ in range(20):
            describe(adapter_folder)

    threads = [Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    card = (adapter_folder / "README.md").read_text("utf-8")
    assert "4 in force, 4 removed" in card and "- Revision 5;" in card


def test_a_folder_is_as_readable_as_any_other(fitted: Fitted, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert fitted.adapter.stat().st_mode == (tmp_path / "other").stat().st_mode
    (tmp_path / "file").touch()
    modes = {path.name: path.stat().st_mode for path in fitted.adapter.rglob("*") if path.is_file()}
    assert set(modes.values()) == {(tmp_path / "file").stat().st_mode}, modes
