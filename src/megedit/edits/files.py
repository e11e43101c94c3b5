"""Files of facts in any of the forms that people have them in: JSONL, JSON, CSV and its kin, Excel; gzipped or not."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from megedit.edits.contents import decode, is_workbook, read_content
from megedit.edits.objects import json_rows
from megedit.edits.rows import Row
from megedit.edits.tables import csv_rows, workbook_rows
from megedit.errors import MegError


def read_rows(path: str | Path, *, required: Sequence[str]) -> tuple[str, Iterator[Row]]:
    """The container of a file (`jsonl`, `json`, `csv` or `xlsx`) and its rows in order, read as the iterator runs.

    Rows of a table have the names of the plain fields, and a table must have the `required` ones.

    Raises:
        MegError: the file cannot be read, holds no record, or a record of it is broken.
    """
    source, data = str(path), read_content(path)
    if is_workbook(source, data):
        return "xlsx", workbook_rows(source, data, required)
    text = decode(source, data)
    start = text.lstrip()
    if not start:
        raise MegError(f"{source}: the file is empty; it needs at least one record")
    if start[0] in "[{" or {".json", ".jsonl"} & set(Path(path).suffixes):
        return json_rows(source, text)
    return "csv", csv_rows(source, text, required)
