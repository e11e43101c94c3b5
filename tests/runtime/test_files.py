"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from megedit.runtime.files import replacing, write_whole


def test_what_fails_leaves_nothing_and_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_whole(path, "old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as partial:
        partial.write_text("half of the new")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("name", ["a.txt", "a.safetensors"])
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002, 0o077])
def test_the_umask_says_who_may_read(tmp_path: Path, name: str, umask: int) -> None:
    path, before = tmp_path / name, os.umask(umask)
    try:
        with replacing(path) as partial:
            if path.suffix == ".txt":
                partial.write_text("text")
            else:
                save_file({"a": torch.zeros(2)}, partial)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_many_write_one_file_at_a_time(tmp_path: Path) -> None:
    path, texts = tmp_path / "README.md", [str(i) * 2000 for i in range(10)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: write_whole(path, text), texts * 10))
    assert path.read_text() in texts
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
