"""The SQLite file of a ledger: its tables, and how it is opened, checked and written."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from megedit.adapter.config import CONFIG
from megedit.errors import MegError

FILE = "ledger.db"
VERSION = 1  # of these tables
PAGE, LARGE_PAGE = 4096, 16384  # bytes
PATIENCE = 5.0  # seconds to wait for another process that writes
SCHEMA = """
CREATE TABLE operations (
    revision INTEGER PRIMARY KEY, time TEXT NOT NULL, kind TEXT NOT NULL, source TEXT NOT NULL, result TEXT NOT NULL,
    model TEXT NOT NULL, model_sha256 TEXT NOT NULL
) STRICT;
CREATE TABLE neurons (number INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, weights BLOB NOT NULL) STRICT;
CREATE TABLE edits (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL, content TEXT NOT NULL, folded TEXT NOT NULL, lead REAL NOT NULL,
    steps INTEGER NOT NULL, neuron INTEGER REFERENCES neurons, generated INTEGER NOT NULL
) STRICT;
CREATE TABLE vectors (edit INTEGER PRIMARY KEY REFERENCES edits, vector BLOB NOT NULL, digest BLOB NOT NULL) STRICT;
CREATE TABLE spans (
    edit INTEGER NOT NULL REFERENCES edits, status TEXT NOT NULL, since INTEGER NOT NULL REFERENCES operations,
    until INTEGER REFERENCES operations
) STRICT;
CREATE INDEX edits_by_id ON edits (id);
CREATE UNIQUE INDEX open_spans ON spans (edit) WHERE until IS NULL;
CREATE INDEX spans_by_edit ON spans (edit);
CREATE INDEX spans_by_start ON spans (since);
CREATE INDEX spans_by_end ON spans (until);
"""
_STATEMENTS = sorted(text.strip() for text in SCHEMA.split(";") if text.strip())


class Busy(MegError):
    """Another process is changing the ledger."""


def create(folder: Path, weight_size: int) -> None:
    """Write an empty ledger, for neurons of so many numbers, into a folder.

    A neuron that fits into a page may leave up to half of it empty, where two do not fit. Large pages hold several.
    One that does not fit goes on in pages of its own, and these are better small.
    """
    page = LARGE_PAGE if 2 * weight_size < PAGE else PAGE  # two bytes a number
    with closing(sqlite3.connect(folder / FILE)) as connection:
        connection.executescript(f"PRAGMA page_size = {page}; PRAGMA user_version = {VERSION};" + SCHEMA)


@contextmanager
def opened(folder: Path, to_write: bool = False) -> Iterator[sqlite3.Connection]:
    """The ledger in a folder, checked, within one transaction, which is undone unless it is committed.

    Raises MegError when the file is not a ledger, is damaged, cannot be used, or is to be written while another process
    writes it.
    """
    path = folder / FILE
    if not (folder / CONFIG).is_file() and not path.is_file():
        why = f"{FILE} is missing" if folder.is_dir() else "it is a file" if folder.exists() else "it does not exist"
        raise MegError(f"There is no adapter in {folder}: {why}; check the path.")
    if not path.is_file():
        raise MegError(f"{folder} is damaged: {FILE} is missing; or it is of an earlier format (meg show says which).")
    if not os.access(path, os.R_OK):
        raise MegError(f"{path} cannot be read: you have no permission; ask its owner for it.")
    if to_write and path.is_symlink():
        raise MegError(
            f"{folder} is a copy of the Hugging Face Hub's; copy the adapter to a folder of your own "
            f'(in Python: MegModel.from_pretrained("{folder}").save_pretrained("my_adapter")).'
        )
    if to_write and not _writable(path):
        raise MegError(f"{folder} cannot be changed: you have no permission to write it; nothing was changed.")
    try:
        with closing(connect(path, PATIENCE)) as connection:
            for setting in ("trusted_schema = OFF", "cell_size_check = ON", "foreign_keys = ON", "synchronous = EXTRA"):
                connection.execute(f"PRAGMA {setting}")
            connection.execute("PRAGMA secure_delete = ON")  # what is dropped is overwritten
            connection.execute("PRAGMA cache_spill = OFF")  # readers are shut out at the end of an operation only
            _begin(connection, folder, to_write)
            _check(connection, path)
            yield connection
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise MegError(f"{path} cannot be used ({error}); nothing was changed.") from error
        raise MegError(f"{path} is damaged ({error}); restore it from a copy.") from error


def connect(path: Path, timeout: float, **options: Any) -> sqlite3.Connection:
    """A connection to the file of a ledger, without any transaction; to read only, where the user may not write.

    Where the user may, the journal of a writer that was killed is played back. timeout: seconds to wait for others.
    """
    address = f"{path.absolute().as_uri()}?mode={'rw' if _writable(path) else 'ro'}"
    connection: sqlite3.Connection = sqlite3.connect(
        address, uri=True, timeout=timeout, isolation_level=None, **options
    )
    return connection


def _writable(path: Path) -> bool:
    return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)


def commit(connection: sqlite3.Connection) -> None:
    """End the transaction of an opened ledger; what it wrote stays."""
    connection.execute(f"PRAGMA busy_timeout = {round(12 * PATIENCE * 1000)}")  # others read for seconds at most
    connection.execute("COMMIT")


def _begin(connection: sqlite3.Connection, folder: Path, to_write: bool) -> None:
    try:
        connection.execute("BEGIN IMMEDIATE" if to_write else "BEGIN")
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise
        raise Busy(f"Another process is changing {folder}; wait until it has finished and try again.") from error


def _check(connection: sqlite3.Connection, path: Path) -> None:
    """Raise MegError unless this is a whole ledger of this version, with nothing else in it."""
    found = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise MegError(f"{path} was written by a newer version of MegEdit; upgrade MegEdit.")
    if version != VERSION or sorted(row[0] for row in found) != _STATEMENTS:
        raise MegError(f"{path} is damaged: it is not a ledger; restore it from a copy.")
    if (verdict := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
        raise MegError(f"{path} is damaged ({verdict}); restore it from a copy.")
