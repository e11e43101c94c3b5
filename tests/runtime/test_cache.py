"""Hashes of large files: computed once, and anew whenever the file has changed."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

import megedit.runtime.cache
from megedit.runtime.cache import remembered_sha256
from megedit.runtime.files import sha256_of


@pytest.fixture
def hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose bytes were hashed, in a cache of their own, where every file counts as large and settled."""
    monkeypatch.setenv("MEGEDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(megedit.runtime.cache, "LARGE", 0)
    monkeypatch.setattr(megedit.runtime.cache, "SETTLED", -1.0)
    files: list[Path] = []

    def counted(path: Path) -> str:
        files.append(path)
        return sha256_of(path)

    monkeypatch.setattr(megedit.runtime.cache, "sha256_of", counted)
    return files


def test_a_file_is_hashed_once(tmp_path: Path, hashed: list[Path]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert remembered_sha256(path) == remembered_sha256(path) == hashlib.sha256(b"abc").hexdigest()
    assert hashed == [path]


def test_a_change_shows_even_with_the_old_time(tmp_path: Path, hashed: list[Path]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    before = path.stat()
    remembered_sha256(path)
    time.sleep(0.05)  # the clock of the file system has ticked
    path.write_bytes(b"abd")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert remembered_sha256(path) == hashlib.sha256(b"abd").hexdigest()


def test_a_file_that_was_just_written_is_not_remembered(
    tmp_path: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(megedit.runtime.cache, "SETTLED", 1e9)
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert remembered_sha256(path) == remembered_sha256(path) and len(hashed) == 2


@pytest.mark.parametrize("text", ["", "[]", '{"stamp": 1}', "\x00"])
def test_a_damaged_note_is_written_anew(tmp_path: Path, hashed: list[Path], text: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    expected = remembered_sha256(path)
    (note,) = (tmp_path / "cache" / "hashes").iterdir()
    note.write_text(text)
    assert remembered_sha256(path) == remembered_sha256(path) == expected and len(hashed) == 2


def test_a_cache_that_cannot_be_written_does_no_harm(
    tmp_path: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    monkeypatch.setenv("MEGEDIT_CACHE", str(tmp_path / "file" / "cache"))
    assert remembered_sha256(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()
