"""What needs no model starts at once: no machine learning library is loaded for it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import megedit
from megedit.cli.app import app
from megedit.errors import MegError, needs

HEAVY = ("torch", "transformers", "sklearn", "scipy", "pandas", "datasets", "diffusers", "sentence_transformers")
FORMAT_3 = Path(__file__).parent / "data" / "format_3" / "adapter"
LOADED = f"""
import atexit, sys
atexit.register(lambda: print("loaded:", *[name for name in {HEAVY} if name in sys.modules], file=sys.stderr))
"""
MEG = f"{LOADED}\nfrom megedit.cli import main\nmain()"


def run(code: str, *arguments: str) -> tuple[str, list[str]]:
    """Run code in a process of its own: what it prints, and which heavy libraries it has loaded."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = done.stderr.rpartition("loaded:")[2]
    return done.stdout, loaded.split()


def command_names() -> Iterator[str]:
    for command in app.registered_commands:
        assert command.callback is not None
        yield command.name or command.callback.__name__


def test_importing_the_package_loads_no_library() -> None:
    assert run(f"{LOADED}\nimport megedit\nmegedit.MegError")[1] == []


@pytest.mark.parametrize("arguments", [[], *([name] for name in command_names())], ids=lambda names: " ".join(names))
def test_help_loads_no_library(arguments: list[str]) -> None:
    printed, loaded = run(MEG, *arguments, "--help")
    assert "Usage" in printed and loaded == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "DIR"],
        ["list", "DIR"],
        ["list", "DIR", "--status", "active", "--search", "a", "--json"],
        ["log", "DIR"],
        ["diff", "DIR", "DIR"],
        ["remove", "DIR", "edit-1"],
        ["undo", "DIR"],
        ["rollback", "DIR", "1"],
    ],
    ids=" ".join,
)
def test_what_needs_no_model_loads_no_library(arguments: list[str], tmp_path: Path) -> None:
    adapter = str(shutil.copytree(FORMAT_3, tmp_path / "adapter"))
    assert run(MEG, *(adapter if argument == "DIR" else argument for argument in arguments))[1] == []


def test_the_libraries_draw_no_progress_bars() -> None:
    """They read this when they are imported, so that the command says it before it imports any of them."""
    pytest.importorskip("datasets")  # an extra
    code = """
import sys
from megedit.cli import main
try:
    main()
except SystemExit:
    pass
import datasets, huggingface_hub.utils
from transformers.utils import logging
print(huggingface_hub.utils.are_progress_bars_disabled(), logging.is_progress_bar_enabled(), logging.get_verbosity())
print(datasets.are_progress_bars_disabled())
"""
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["True False 40", "True"]


def test_every_public_name_can_be_imported() -> None:
    for name in megedit.__all__:
        assert getattr(megedit, name).__name__ == name
    assert set(megedit.__all__) == set(megedit._MODULES) <= set(dir(megedit))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        megedit.nothing  # noqa: B018


def test_a_missing_extra_is_one_sentence() -> None:
    needs("json", "general", "anything")
    with pytest.raises(MegError, match=r"no-such is needed for reading; run pip install 'megedit\[extra\]'\."):
        needs("no_such", "extra", "reading")
