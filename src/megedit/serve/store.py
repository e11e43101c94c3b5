"""The adapter that is served: which revision answers, and changing it beside answering.

A change is made in the thread of whoever asks for it, with a twin of the base model, and its result is loaded before
the change returns. Others may change the folder meanwhile: before a batch is answered, the ledger's revision is looked
at, and what has changed is loaded first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import torch

from megedit.adapter.adapter import load_adapter
from megedit.adapter.sqlite import Busy
from megedit.adapter.watch import RevisionWatch
from megedit.model import MegModel
from megedit.operations import Outcome

PATIENCE = 30.0  # seconds that a change waits for another one


class Store:
    """The edited model of a server and its folder."""

    def __init__(self, model: MegModel) -> None:
        self.model = model
        self._watch = RevisionWatch(model.adapter.folder)
        self._loaded = (self._watch.state()[0], model.adapter.revision)
        self._changing = threading.Lock()  # one change at a time; others of this process wait
        self._loading = threading.Lock()
        self._own = 0  # the revision that a change of this process has made and is loading

    @property
    def folder(self) -> Path:
        return self.model.adapter.folder

    @property
    def revision(self) -> int:
        """The revision that answers now."""
        return self.model.adapter.revision

    def stale(self) -> bool:
        """True where requests must wait for a newer revision to be loaded.

        A change of this process is not one of these: nobody was told yet that it is made.
        """
        now, (file, revision) = self._watch.state(), self._loaded
        own = now == (file, self._own) and self._own == revision + 1
        return now != self._loaded and not own

    def refresh(self) -> None:
        """Load the state that the folder is in, if that is another."""
        with self._loading:
            now, adapter = self._watch.state(), self.model.adapter
            if now != self._loaded:
                dtype = adapter.encoder.compute_dtype
                self.model.serve(load_adapter(self.folder, self.model.device, dtype=dtype, known=adapter))
                self._loaded = now

    def change(self, operation: Callable[[], Outcome]) -> Outcome:
        """Make a change and load what came of it; whoever asks from now on is answered by it.

        Raises Busy where another change takes longer than `PATIENCE`.
        """
        if not self._changing.acquire(timeout=PATIENCE):
            raise Busy("Another change of the adapter is being made; try again when it has finished.")
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(max(threads // 2, 1))  # of this thread; the others are for answering
            outcome = operation()
            self._own = outcome.revision
            self.refresh()
            return outcome
        finally:
            torch.set_num_threads(threads)
            self._changing.release()
