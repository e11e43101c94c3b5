"""Fixtures of what is loaded."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.tiny import CHATML, tiny_model, tiny_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a tiny model and tokenizer."""
    path = tmp_path / "model"
    tiny_model("llama").save_pretrained(path)
    tiny_tokenizer(CHATML).save_pretrained(path)
    return path


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network and an empty hub cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
