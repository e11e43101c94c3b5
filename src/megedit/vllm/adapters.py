"""The adapters in the engine core: from a new request to its neuron, by the adapter as its folder is at that moment.

This runs where vLLM takes requests in, beside the forward passes that are under way. What is found goes to all workers
with the request, so all ranks add the same neuron.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from megedit.adapter.adapter import Adapter, load_adapter
from megedit.adapter.folder import find_adapter
from megedit.adapter.ledger import reading
from megedit.adapter.sqlite import FILE
from megedit.errors import MegError
from megedit.lm.prompts import Prompts
from megedit.routes import Found, NeuronFinder
from megedit.vllm.batch import Neuron
from megedit.vllm.choice import chosen

logger = logging.getLogger("vllm.megedit")  # vLLM sets up the log of its own names only


class ServedAdapter:
    """One adapter, loaded anew when its ledger has changed."""

    def __init__(self, name: str, place: str, tokenizer: PreTrainedTokenizerBase) -> None:
        """Load the adapter at `place`; raises MegError when it is not one."""
        self.name, self.folder, self._tokenizer = name, find_adapter(place), tokenizer
        self._mark = _change_mark(self.folder)
        self._use(load_adapter(self.folder))

    def find(self, token_ids: Sequence[int]) -> Found:
        """The route and the neuron of a prompt."""
        ids = torch.tensor([list(token_ids)])  # (1, columns)
        text = self._prompts.texts(ids, torch.ones_like(ids))[0]
        return self._finder.find([self._prompts.query_of(text)])[0]

    def neuron(self, token_ids: Sequence[int]) -> Neuron | None:
        """The neuron of a prompt; None where its query is not familiar."""
        found = self.find(token_ids)
        if found.weights is None:
            return None
        config = self.adapter.config
        first = len(token_ids) - 1 if config.positions == "answer" else 0
        return neuron_of(config.layer, first, found.weights.float().cpu().numpy())

    def refresh(self) -> None:
        """Load the adapter anew if its ledger has another revision; where that fails, the one in use stays."""
        mark = _change_mark(self.folder)
        if mark == self._mark:
            return
        self._mark = mark  # also where loading fails, so that it is tried once for each change
        try:
            with reading(self.folder) as ledger:
                revision = ledger.revision
            if revision != self.adapter.revision:
                self._use(load_adapter(self.folder))
        except MegError as error:
            logger.error("%s stays at revision %d: %s", self.name, self.adapter.revision, error)

    def _use(self, adapter: Adapter) -> None:
        self.adapter, self._finder = adapter, NeuronFinder(adapter)
        self._prompts = Prompts(self._tokenizer, adapter.config.template)
        edits = len(adapter.active)
        logger.info("MegEdit serves %s: revision %d, %d edits in force", self.name, adapter.revision, edits)


class ServedAdapters:
    """All adapters of an engine, of which a request chooses one."""

    def __init__(self, places: Mapping[str, str], tokenizer: PreTrainedTokenizerBase) -> None:
        self._adapters = {name: ServedAdapter(name, place, tokenizer) for name, place in places.items()}

    def neuron(self, token_ids: Sequence[int], extra: Mapping[str, Any] | None) -> Neuron | None:
        """The neuron of a new request; None where the base model answers.

        token_ids: of its prompt. extra: the extra arguments of its sampling parameters.
        """
        try:
            name = chosen(extra, self._adapters)
        except MegError as error:  # the front end has refused it, unless it is another than vLLM's
            logger.warning("A request is answered by the base model: %s", error)
            return None
        if name is None:
            return None
        adapter = self._adapters[name]
        adapter.refresh()
        return adapter.neuron(token_ids)


def neuron_of(layer: int, first: int, weights: np.ndarray[Any, np.dtype[np.float32]]) -> Neuron:
    """A neuron with its digest. weights: float32 (L,)."""
    digest = hashlib.sha256(f"{layer} {first} ".encode() + np.ascontiguousarray(weights).tobytes()).hexdigest()
    return Neuron(layer, first, weights, digest)


def _change_mark(folder: Path) -> tuple[int, bytes] | None:
    """A mark of a ledger's file that is another after every change: SQLite counts them in its header.

    None where the file cannot be read.
    """
    try:
        with (folder / FILE).open("rb") as file:
            header = file.read(28)
        return (folder / FILE).stat().st_ino, header[24:28]
    except OSError:
        return None
