"""The choice of a request among adapters: `{"megedit": ...}` in the extra arguments of its sampling parameters.

Over HTTP they are `vllm_xargs`, in Python `SamplingParams(extra_args=...)`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from megedit.errors import MegError
from megedit.vllm import VARIABLE

FIELD = "megedit"
_OFF = ("off", "false", "no", "0")
_ON = ("on", "true", "yes", "1")


def served() -> dict[str, str]:
    """The adapters that the environment variable names, by the names under which a request chooses one.

    Raises MegError when two have the same name.
    """
    found: dict[str, str] = {}
    for entry in os.environ.get(VARIABLE, "").split(os.pathsep):
        if not (place := entry.strip()):
            continue
        name = Path(place).name
        if name in found:
            raise MegError(f"{VARIABLE} names two adapters called {name}; rename one of the folders.")
        found[name] = place
    if wrong := [name for name in found if name.lower() in (*_OFF, *_ON)]:
        raise MegError(f"An adapter cannot be served under the name {wrong[0]}; rename its folder.")
    return found


def chosen(extra: Mapping[str, Any] | None, names: Iterable[str]) -> str | None:
    """The name of the adapter that a request asks for, the first when it says nothing; None where edits are off.

    Raises MegError for anything else than on, off or one of the names.
    """
    names, value = list(names), (extra or {}).get(FIELD, True)
    text = str(value)
    if text in names:
        return text
    if text.lower() in _ON:
        return names[0]
    if text.lower() in _OFF:
        return None
    raise MegError(f"{FIELD} is {value!r}; give one of {', '.join(names)}, or off for the base model's answer.")
