"""Tables of facts, CSV with any usual delimiter and Excel workbooks: cells by the names of the plain fields."""

import csv
import datetime
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from megedit.edits.columns import LISTS, columns_of, log_other_names, several
from megedit.edits.rows import Number, Row
from megedit.errors import MegError

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}

Cells = tuple[str, Sequence[object]]  # the place of a row, and its cells


@dataclass(frozen=True)
class _Table:
    """A header and, each time that `cells` is called, all rows that are not blank, the header among them.

    `name` is that of the header in messages. `hint` is the advice where a row does not fit the header, empty for tables
    whose rows always do.
    """

    source: str
    name: str
    header: Sequence[str]
    cells: Callable[[], Iterator[Cells]]
    hint: str = ""

    def rows(self) -> Iterator[Cells]:
        """The rows below the header."""
        return islice(self.cells(), 1, None)


def csv_rows(source: str, text: str, required: Sequence[str]) -> Iterator[Row]:
    """The rows of a text with commas, semicolons or tabs between the cells, told by the header or a first line `sep=;`.

    Raises:
        MegError: the header lacks a `required` column, or a row cannot be read.
    """
    first, _, rest = text.lstrip("\r\n").partition("\n")
    skipped = 0
    if first.casefold().startswith("sep=") and (given := first.rstrip("\r")[4:]):
        delimiter, text, skipped = given[0], rest, text[: len(text) - len(rest)].count("\n")
    else:
        delimiter = _delimiter(text)
    cells = partial(_csv_cells, source, text, delimiter, skipped)
    header = _names(next(cells(), None))
    hint = f"put cells that hold {_DELIMITERS.get(delimiter, repr(delimiter))} or line breaks in quotation marks"
    yield from _read(_Table(source, "the CSV header", header, cells, hint), required)


def workbook_rows(source: str, data: bytes, required: Sequence[str]) -> Iterator[Row]:
    """The rows of the one sheet of an Excel workbook whose first row has the `required` columns; values, no formulas.

    Raises:
        MegError: no sheet has these columns, or several have, or the workbook or a row of it cannot be read.
    """
    from openpyxl import load_workbook  # here, since it takes a while to load and other files do without it

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of styles and extensions that it does not know
            workbook = load_workbook(io.BytesIO(data), read_only=True, data_only=True, keep_links=False)
        sheets = [sheet for sheet in workbook.worksheets if sheet.sheet_state == "visible"]
    except Exception as error:  # whatever a damaged archive, its XML or its numbers raise
        raise MegError(f"{source}: the workbook cannot be read ({error}); save it again, or as CSV") from error
    headers = [_names(next(_sheet_cells(source, sheet), None)) for sheet in sheets]
    chosen = _sheet_of_facts(source, [sheet.title for sheet in sheets], headers, required)
    sheet, header = sheets[chosen], headers[chosen]
    cells = partial(_sheet_cells, source, sheet)
    yield from _read(_Table(source, f"the first row of the sheet {sheet.title!r}", header, cells), required)


def _sheet_of_facts(
    source: str, titles: Sequence[str], headers: Sequence[Sequence[str]], required: Sequence[str]
) -> int:
    """The index of the one sheet whose first row has the required columns."""
    fitting = [i for i, header in enumerate(headers) if columns_of(header).keys() >= set(required)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = " and ".join(repr(titles[i]) for i in fitting)
        raise MegError(f"{source}: the sheets {names} all hold facts; put them into one sheet, or into a file each")
    found = "; ".join(f"in {title!r} {_listed(header)}" for title, header in zip(titles, headers, strict=True))
    raise MegError(
        f"{source}: no sheet has the columns `{'`, `'.join(required)}` in its first row "
        f"(found: {found[:400] or 'no sheet'}); name the columns there"
    )


def _read(table: _Table, required: Sequence[str]) -> Iterator[Row]:
    """The rows of a table, with the columns that plain facts have; what other columns hold is passed over."""
    columns = _columns(table, required)
    log_other_names(table.source, {field: table.header[i] for field, i in columns.items()})
    needed = max(columns[field] for field in required)
    where = ""
    for place, cells in table.rows():
        where = f"{table.source}, {place}"
        beyond = cells[len(table.header) :]
        if table.hint and (len(cells) <= needed or not all(map(_is_empty, beyond))):
            counts = f"the row has {len(cells)} cell{'s' * (len(cells) != 1)} and the header {len(table.header)}"
            raise MegError(f"{where}: {counts}; {table.hint}")
        values = {field: cells[i] for field, i in columns.items() if i < len(cells)}
        yield Row(where, {field: _value(where, field, cell) for field, cell in values.items() if not _is_empty(cell)})
    if not where:
        raise MegError(f"{table.source}: there is no row below {table.name}; it needs at least one record")


def _columns(table: _Table, required: Sequence[str]) -> dict[str, int]:
    """The index of the column of each field; where several may be it, the one that is not empty."""
    found = columns_of(table.header)
    if missing := [field for field in required if field not in found]:
        raise MegError(
            f"{table.source}: {table.name} has no column `{'`, `'.join(missing)}`; name the columns in the first line "
            f"(found: {_listed(table.header)})"
        )
    doubtful = {i for indices in found.values() if len(indices) > 1 for i in indices}
    filled: set[int] = set()
    for _, cells in table.rows() if doubtful else ():
        filled.update(i for i in doubtful if i < len(cells) and not _is_empty(cells[i]))
    columns: dict[str, int] = {}
    for field, indices in found.items():
        left = [i for i in indices if i in filled] or indices[:1]
        if len(left) > 1:
            raise MegError(f"{table.source}: in {table.name}, {several(field, [table.header[i] for i in left])}")
        columns[field] = left[0]
    return columns


def _names(first: Cells | None) -> list[str]:
    """The names of the columns in the first row that is not blank."""
    return ["" if cell is None else str(cell).strip() for cell in (first[1] if first else ())]


def _value(where: str, field: str, cell: object) -> object:
    if isinstance(cell, _ErrorInCell):
        raise MegError(f"{where}: the cell of `{field}` holds the error {cell.error}; correct or clear it")
    if field in LISTS and isinstance(cell, str):
        return [part for part in cell.split("|") if part.strip()]
    return cell


def _is_empty(cell: object) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip())


def _listed(header: Sequence[str]) -> str:
    names = ", ".join(f"`{' '.join(name.split())}`" for name in header if name)
    return names[:200] or "nothing"


# ---------------------------------------------------------------------------------------------------
# CSV


def _delimiter(text: str) -> str:
    """The delimiter by which the header has most columns of facts, and most columns."""

    def fields(delimiter: str) -> tuple[int, int]:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        try:
            header = next((cells for cells in reader if any(cell.strip() for cell in cells)), [])
        except csv.Error:
            return 0, 0
        return len(columns_of(header)), len(header)

    return max(_DELIMITERS, key=fields)


def _csv_cells(source: str, text: str, delimiter: str, skipped: int) -> Iterator[Cells]:
    """The rows that are not blank, each with the line it begins on, `skipped` lines being in front of the text."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = skipped + 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield f"line {line}", cells
            line = skipped + reader.line_num + 1
    except csv.Error as error:
        raise MegError(f"{source}, line {line}: this is not valid CSV ({error}); correct the row") from None


# ---------------------------------------------------------------------------------------------------
# Excel


@dataclass(frozen=True)
class _ErrorInCell:
    error: str


def _sheet_cells(source: str, sheet: Any) -> Iterator[Cells]:
    """The rows of a sheet that are not blank, each with its number."""
    sheet.reset_dimensions()  # some programs write wrong ones
    try:
        for number, cells in enumerate(sheet.iter_rows(), start=1):
            values = [_cell_value(cell) for cell in cells]
            if any(not _is_empty(value) for value in values):
                yield f"sheet {sheet.title!r}, row {number}", values
    except Exception as error:  # whatever a damaged archive, its XML or its numbers raise
        raise MegError(f"{source}: the sheet {sheet.title!r} cannot be read ({error}); save it as CSV") from error


def _cell_value(cell: Any) -> object:
    """The value as text: numbers with the 15 digits that Excel keeps, dates as 2024-12-31; true and false stay."""
    value = cell.value
    if getattr(cell, "data_type", "") == "e":
        return _ErrorInCell(str(value))
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        percent = "%" in str(cell.number_format)
        return Number(f"{value * 100:.15g}%" if percent else str(value) if isinstance(value, int) else f"{value:.15g}")
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    return value.isoformat(" ") if isinstance(value, datetime.datetime) else str(value)
