"""Settings on the command line, `--set PART.NAME=VALUE`: their names, types and help texts are those of settings.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, is_dataclass, replace
from difflib import get_close_matches
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from megedit.errors import MegError
from megedit.settings import DEFAULTS

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Setting:
    """One setting: `part.name` (no part for those of the fit itself), its type, default and help text."""

    name: str
    type: Any
    default: Any
    help: str

    @property
    def choices(self) -> str:
        """The values that it may have, for people."""
        options = get_args(self.type)
        if get_origin(self.type) is Literal:
            return " or ".join(options)
        if NoneType in options:
            return "a whole number or none"
        return {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[self.type]

    def parse(self, text: str) -> Any:
        """The value that a text names. Raises ValueError where it names none."""
        kind, options = self.type, get_args(self.type)
        if get_origin(kind) is Literal:
            if text not in options:
                raise ValueError(text)
            return text
        if NoneType in options:
            if text.lower() == "none":
                return None
            kind = options[0]
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return kind(text)


def settings_of(settings: Any = DEFAULTS, part: str = "") -> Iterator[Setting]:
    """All settings, in their order."""
    for name, hint in get_type_hints(type(settings), include_extras=True).items():
        value = getattr(settings, name)
        if is_dataclass(value):
            yield from settings_of(value, f"{name}.")
        else:
            kind, text = get_args(hint)
            yield Setting(part + name, kind, value, text)


def with_changes(settings: Settings, changes: Sequence[str], owner: str = "") -> Settings:
    """Settings with changes, each `part.name=value`; the last one counts. Raises MegError for what cannot be.

    settings: a dataclass whose fields are annotated with their help texts, or hold such dataclasses. owner: stands
    before the names in messages, such as `ft.`.
    """
    known = {setting.name: setting for setting in settings_of(settings)}
    values: dict[str, dict[str, Any]] = {}
    for change in changes:
        name, sign, text = (piece.strip() for piece in change.partition("="))
        if not sign:
            raise MegError(f"--set {owner}{change}: give a value, --set {owner}{change}=VALUE.")
        if name not in known:
            raise MegError(f"--set {owner}{change}: there is no setting {owner + name!r}{_close(name, list(known))}.")
        try:
            value = known[name].parse(text)
        except (ValueError, KeyError):
            raise MegError(
                f"--set {owner}{change}: {owner}{name} can be {known[name].choices}, not {text!r}."
            ) from None
        part, _, field = name.rpartition(".")
        values.setdefault(part, {})[field] = value
    changed = values.pop("", {})
    try:
        for part, fields in values.items():
            changed[part] = replace(getattr(settings, part), **fields)
        return replace(settings, **changed)  # type: ignore[type-var]  # a dataclass, which has no type of its own
    except ValueError as error:
        raise MegError(f"--set {owner}{' '.join(changes)}: {error}.") from error


def _close(name: str, known: Sequence[str]) -> str:
    """The settings whose names are close to a wrong one, as the end of a sentence."""
    last = name.rpartition(".")[2]
    close = [right for right in known if right.rpartition(".")[2] == last] or get_close_matches(name, known, 3, 0.6)
    return f"; the nearest are {', '.join(close)}" if close else "; `meg fit --help` lists them"


def settings_help() -> str:
    """All settings as a list in Markdown."""
    return "\n".join(f"- `{setting.name}={_text(setting.default)}` {setting.help}" for setting in settings_of())


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool | None) else str(value)
