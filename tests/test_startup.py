"""What needs no model starts at once: no machine learning library is loaded for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

import megedit
from megedit.cli.app import app
from megedit.errors import MegError, needs

HEAVY = ("torch", "transformers", "sklearn", "scipy", "pandas", "datasets", "diffusers", "sentence_transformers")
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
