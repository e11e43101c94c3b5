"""Rows: what one record of a file or data set holds, read into fields that are checked as they are taken."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from megedit.edits.text import query_id, strip_invisible
from megedit.errors import MegError

MAX_TEXT_CHARS = 8000

_UNENCODABLE = re.compile("[\0\ud800-\udfff]")


class Number(str):
    """A number as it is written in the file."""


@dataclass(frozen=True)
class Row:
    """One record of a file, whose fields are read with checks."""

    where: str
    fields: Mapping[str, object]

    @property
    def place(self) -> str:
        """The part of `where` after the file name, such as `line 3`."""
        return self.where.rpartition(", ")[2]

    def fail(self, problem: str) -> NoReturn:
        """Raise the MegError that says what is wrong with this record."""
        raise MegError(f"{self.where}: {problem}")

    def get(self, name: str) -> object:
        """The raw value of a field, dots leading into nested objects; None if it is missing."""
        value: object = self.fields
        for key in name.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def text(self, name: str, limit: int = MAX_TEXT_CHARS) -> str:
        """A required text of at most `limit` characters, stripped."""
        value = self.get(name)
        if value is None:
            self.fail(f"the field `{name}` is missing; add it")
        return self._checked(name, value, limit)

    def optional_text(self, name: str) -> str | None:
        """A text, or None if the field is missing, null or blank."""
        value = self.get(name)
        return None if _is_none(value) else self._checked(name, value, MAX_TEXT_CHARS)

    def answer(self, name: str, limit: int = MAX_TEXT_CHARS) -> str:
        """A required text as `text` gives it, which may be written as a number or as a list of one item."""
        value = self.get(name)
        if value is None:
            self.fail(f"the field `{name}` is missing; add it")
        return self._checked(name, self._as_text(name, value), limit)

    def optional_answer(self, name: str) -> str | None:
        """An answer, or None if the field is missing, null, blank or an empty list."""
        value = self.get(name)
        if _is_none(value) or (isinstance(value, list | tuple) and not value):
            return None
        return self._checked(name, self._as_text(name, value), MAX_TEXT_CHARS)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts, empty if the field is missing or null."""
        value = self.get(name)
        if value is None:
            return ()
        if not isinstance(value, list | tuple):
            self.fail(f"the field `{name}` must be a list of texts, not {kind_of(value)}")
        return tuple(self._checked(f"{name}[{i}]", item, MAX_TEXT_CHARS) for i, item in enumerate(value))

    def identifier(self, name: str, query: str) -> str:
        """An id, kept as it is; without one, a short one made from the query."""
        return self.optional_answer(name) or query_id(query)

    def _as_text(self, name: str, value: object) -> object:
        """The one item of a list, and a number as it is written."""
        if isinstance(value, list | tuple):
            if len(value) != 1:
                self.fail(f"the field `{name}` has {len(value)} items; give one text")
            (value,) = value
        return str(value) if isinstance(value, Number | int | float) and not isinstance(value, bool) else value

    def _checked(self, name: str, value: object, limit: int) -> str:
        if not isinstance(value, str) or isinstance(value, Number):
            self.fail(f"the field `{name}` must be text, not {kind_of(value)}")
        text = value.strip()
        if not text:
            self.fail(f"the field `{name}` is empty; fill it in or remove the record")
        if len(text) > limit:
            self.fail(f"the field `{name}` has {len(text)} characters, more than the limit of {limit}; shorten it")
        if found := _UNENCODABLE.search(text):
            self.fail(
                f"the field `{name}` holds text that cannot be encoded "
                f"(U+{ord(found[0]):04X} at character {found.start() + 1}); remove that character"
            )
        visible = strip_invisible(text)
        if not visible:
            self.fail(f"the field `{name}` holds only characters that cannot be seen; fill it in or remove the record")
        return visible


def kind_of(value: object) -> str:
    """The kind of a JSON value, in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, Number | int | float) else type(value).__name__)


def _is_none(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())
