"""What a request asks for, and which adapters there are."""

from __future__ import annotations

import os
from typing import Any

import pytest

from megedit.errors import MegError
from megedit.vllm import VARIABLE
from megedit.vllm.choice import chosen, served

NAMES = ("news", "facts")


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        (None, "news"),
        ({}, "news"),
        ({"other": 1}, "news"),
        ({"megedit": True}, "news"),
        ({"megedit": "on"}, "news"),
        ({"megedit": "facts"}, "facts"),
        ({"megedit": False}, None),
        ({"megedit": 0}, None),  # what false may become on its way through JSON and vLLM's types
        ({"megedit": "false"}, None),
        ({"megedit": "OFF"}, None),
    ],
)
def test_a_choice(extra: dict[str, Any] | None, name: str | None) -> None:
    assert chosen(extra, NAMES) == name


@pytest.mark.parametrize("value", ["new", "", 2, None, ["news"], {"a": 1}])
def test_another_choice_is_refused(value: Any) -> None:
    with pytest.raises(MegError, match="give one of news, facts, or off"):
        chosen({"megedit": value}, NAMES)


def test_adapters_are_known_by_their_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, os.pathsep.join(["a/news", "", " /data/facts/ "]))
    assert served() == {"news": "a/news", "facts": "/data/facts/"}


@pytest.mark.parametrize(
    ("places", "message"), [(["a/news", "b/news"], "two adapters called news"), (["a/off"], "under the name off")]
)
def test_names_that_are_not_clear(places: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, os.pathsep.join(places))
    with pytest.raises(MegError, match=message):
        served()
