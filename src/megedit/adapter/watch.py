"""The state that a folder is in, asked before every batch of a server."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

from megedit.adapter.ledger import Ledger
from megedit.adapter.sqlite import FILE, PATIENCE, connect
from megedit.errors import MegError


class RevisionWatch:
    """The state of the ledger in a folder, asked often and cheaply; the file is not checked for damage each time.

    Several threads may ask.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._lock = folder / FILE, threading.Lock()
        self._ledger: Ledger | None = None
        self._connection: sqlite3.Connection | None = None
        self._file = -1  # inode: a folder may be replaced by another

    def state(self) -> tuple[int, int]:
        """The file, which another fit into the folder replaces, and its last revision.

        Raises MegError when the ledger cannot be read.
        """
        try:
            with self._lock:
                file = self._path.stat().st_ino
                if self._ledger is None or file != self._file:
                    if self._connection is not None:
                        self._connection.close()
                    self._connection = connect(self._path, 12 * PATIENCE, check_same_thread=False)
                    self._ledger, self._file = Ledger(self._connection, self._path), file
                return file, self._ledger.revision
        except (OSError, sqlite3.DatabaseError) as error:
            raise MegError(f"{self._path} cannot be read ({error}); restore it from a copy.") from error
