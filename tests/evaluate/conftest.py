"""Fixtures of all evaluations."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Journals of interrupted evaluations go to a folder of the test's own."""
    monkeypatch.setenv("MEGEDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
