"""Files of records: JSONL, JSON and CSV, gzipped or not, read into fields that are checked as they are taken.

Whatever is wrong is told as a `MegError` that names the file, the line or record, and the field.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from megedit.edits.text import is_blank, query_id
from megedit.errors import MegError

MAX_TEXT_CHARS = 8000

_UNENCODABLE = re.compile("[\0\ud800-\udfff]")
_LIST_COLUMNS = ("rephrases", "neighbours")


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
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        return self._checked(name, value, MAX_TEXT_CHARS)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts, empty if the field is missing or null."""
        value = self.get(name)
        if value is None:
            return ()
        if not isinstance(value, list | tuple):
            self.fail(f"the field `{name}` must be a list of texts, not {kind_of(value)}")
        return tuple(self._checked(f"{name}[{i}]", item, MAX_TEXT_CHARS) for i, item in enumerate(value))

    def identifier(self, name: str, query: str) -> str:
        """An id given as text or whole number; without one, a short one made from the query."""
        value = self.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return self.optional_text(name) or query_id(query)

    def _checked(self, name: str, value: object, limit: int) -> str:
        if not isinstance(value, str):
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
        if is_blank(text):
            self.fail(f"the field `{name}` holds only characters that cannot be seen; fill it in or remove the record")
        return text


def read_rows(path: str | Path, *, columns: tuple[str, ...]) -> tuple[str, Iterator[Row]]:
    """The container of a UTF-8 file (`jsonl`, `json` or `csv`; may be gzipped) and its records in order.

    A CSV file must have the named `columns`. The records are read as the iterator runs.

    Raises:
        MegError: the file cannot be read, holds no record, or a record of it is broken.
    """
    text = _read_text(path)
    source, start = str(path), text.lstrip()
    if not start:
        raise MegError(f"{source}: the file is empty; it needs at least one record")
    looks_like_json = start[0] in "[{" or {".json", ".jsonl"} & set(Path(path).suffixes)
    if not looks_like_json:
        return "csv", _csv_table(source, text, columns)
    if start[0] == "[" or _is_one_object(start):
        return "json", _json_rows(source, text)
    return "jsonl", _jsonl_rows(source, text)


def _read_text(path: str | Path) -> str:
    path = Path(path)
    if path.is_dir():
        raise MegError(f"{path}: this is a directory; name a file inside it")
    try:
        data = path.read_bytes()
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        raise MegError(f"{path}: there is no such file; check the path") from None
    except UnicodeDecodeError as error:
        raise MegError(f"{path}: byte {error.start + 1} is not UTF-8; save the file with UTF-8 encoding") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise MegError(f"{path}: the gzip data is damaged ({error}); copy or compress it again") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL character
        raise MegError(f"{path}: the file cannot be read ({error}); check its path and permissions") from None


def _is_one_object(text: str) -> bool:
    """True if the text is one JSON document `{"edits": [...]}`, or an object spread over many lines."""
    first, _, rest = text.partition("\n")
    try:
        return "edits" in json.loads(first)
    except (ValueError, RecursionError):
        return bool(rest.strip()) and not rest.lstrip().startswith("{")


def _json_rows(source: str, text: str) -> Iterator[Row]:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise MegError(f"{source}, line {error.lineno}: this is not valid JSON ({error.msg}); correct it") from None
    except (ValueError, RecursionError) as error:
        raise MegError(f"{source}: this is not valid JSON ({error}); correct it") from None
    if isinstance(document, dict):
        document = document.get("edits", [document])
    if not isinstance(document, list):
        raise MegError(f"{source}: `edits` must be a list of objects, not {kind_of(document)}")
    if not document:
        raise MegError(f"{source}: the list is empty; it needs at least one record")
    for number, value in enumerate(document, start=1):
        yield _object_row(f"{source}, record {number}", value)


def _jsonl_rows(source: str, text: str) -> Iterator[Row]:
    # Not splitlines(): it also splits at U+2028 and others, which may stand inside a JSON string.
    lines = ((n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip())
    for n, line in lines:
        where = f"{source}, line {n}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            problem = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise MegError(f"{where}: this is not valid JSON ({problem}); correct or remove the line") from None
        yield _object_row(where, value)


def _object_row(where: str, value: object) -> Row:
    if not isinstance(value, dict):
        raise MegError(f"{where}: a record must be an object with named fields, not {kind_of(value)}")
    return Row(where, value)


def _csv_table(source: str, text: str, columns: tuple[str, ...]) -> Iterator[Row]:
    rows = _csv_rows(source, text)
    header = [cell.strip() for cell in next(rows)[1]]
    if missing := [column for column in columns if column not in header]:
        raise MegError(
            f"{source}: the CSV header has no column `{'`, `'.join(missing)}`; "
            "name the columns in the first line, separated by commas"
        )
    if len(set(header)) < len(header):
        raise MegError(f"{source}: two columns of the CSV header have the same name; rename one")
    line = 0
    for line, cells in rows:
        where = f"{source}, line {line}"
        if len(cells) != len(header):
            raise MegError(
                f"{where}: the row has {len(cells)} cells and the header {len(header)}; "
                "put cells that hold commas in quotation marks"
            )
        fields: dict[str, object] = {name: cell for name, cell in zip(header, cells, strict=True) if cell}
        for name in _LIST_COLUMNS:
            if isinstance(cell := fields.get(name), str):
                fields[name] = [part for part in cell.split("|") if part.strip()]
        yield Row(where, fields)
    if not line:
        raise MegError(f"{source}: there is no row below the CSV header; it needs at least one record")


def _csv_rows(source: str, text: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, each with the line it begins on."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise MegError(f"{source}, line {line}: this is not valid CSV ({error}); correct the row") from None


def kind_of(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
