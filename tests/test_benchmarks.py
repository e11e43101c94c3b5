"""The benchmarks: each is the command that its own text names, and fits the code as it is."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

MODULES = sorted(
    path.stem for path in (Path(__file__).parent.parent / "benchmarks").glob("*.py") if path.stem != "__init__"
)


@pytest.mark.parametrize("name", MODULES)
def test_a_benchmark_is_the_command_that_it_names(name: str) -> None:
    module = import_module(f"benchmarks.{name}")
    named = re.findall(r"python -m benchmarks\.(\w+)", module.__doc__ or "")
    assert set(named) == ({name} if hasattr(module, "main") else set())
