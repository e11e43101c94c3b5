"""The adapters in the engine core: from a new request to its neuron, by the adapter as its folder is at that moment.

This runs in a thread beside the forward passes that are under way; a request waits until its neuron is found, and other
requests do not. What is found goes to all workers with the request, so all ranks add the same neuron.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from megedit.adapter.adapter import Adapter, load_adapter
from megedit.adapter.folder import find_adapter
from megedit.adapter.watch import RevisionWatch
from megedit.errors import MegError
from megedit.lm.prompts import Prompts
from megedit.routes import NeuronFinder
from megedit.vllm.batch import Neuron
from megedit.vllm.choice import chosen

logger = logging.getLogger("vllm.megedit")  # vLLM sets up the log of its own names only

LARGEST_BATCH = 32  # requests that are routed at once


@dataclass(frozen=True)
class Asked:
    """A request: the name of its adapter, and the token ids of its prompt."""

    adapter: str
    prompt: Sequence[int]


class ServedAdapter:
    """One adapter, loaded anew when its ledger has changed."""

    def __init__(self, name: str, place: str, tokenizer: PreTrainedTokenizerBase) -> None:
        """Load the adapter at `place`; raises MegError when it is not one."""
        self.name, self.folder, self._tokenizer = name, find_adapter(place), tokenizer
        self._watch, self._trouble = RevisionWatch(self.folder), ""
        self._loaded = self._watch.state()
        self._use(load_adapter(self.folder))

    def neurons(self, prompts: Sequence[Sequence[int]]) -> list[Neuron | None]:
        """The neuron of each prompt, given as token ids; None where its query is not familiar."""
        config, found = self.adapter.config, self._finder.find([self._query_of(prompt) for prompt in prompts])
        return [
            None
            if each.weights is None
            else neuron_of(
                config.layer,
                len(prompt) - 1 if config.positions == "answer" else 0,
                each.weights.float().cpu().numpy(),
            )
            for prompt, each in zip(prompts, found, strict=True)
        ]

    def _query_of(self, prompt: Sequence[int]) -> str:
        ids = torch.tensor([list(prompt)])  # (1, columns)
        return self._prompts.query_of(self._prompts.texts(ids, torch.ones_like(ids))[0])

    def refresh(self) -> None:
        """Load the adapter anew if its folder is in another state; where that fails, the one in use stays."""
        try:
            if (now := self._watch.state()) != self._loaded:
                self._use(load_adapter(self.folder, known=self.adapter))
                self._loaded = now
            self._trouble = ""
        except MegError as error:
            if str(error) != self._trouble:  # told once
                logger.error("%s stays at revision %d: %s", self.name, self.adapter.revision, error)
            self._trouble = str(error)

    def _use(self, adapter: Adapter) -> None:
        self.adapter, self._finder = adapter, NeuronFinder(adapter)
        self._prompts = Prompts(self._tokenizer, adapter.config.template)
        edits = len(adapter.active)
        logger.info("MegEdit serves %s: revision %d, %d edits in force", self.name, adapter.revision, edits)


class ServedAdapters:
    """All adapters of an engine, of which a request chooses one."""

    def __init__(self, places: Mapping[str, str], tokenizer: PreTrainedTokenizerBase) -> None:
        self._adapters = {name: ServedAdapter(name, place, tokenizer) for name, place in places.items()}

    def choice(self, extra: Mapping[str, Any] | None) -> str | None:
        """The name of the adapter that a request asks for; None where the base model is to answer.

        extra: the extra arguments of its sampling parameters.
        """
        try:
            return chosen(extra, self._adapters)
        except MegError as error:  # the front end has refused it, unless it is another than vLLM's
            logger.warning("A request is answered by the base model: %s", error)
            return None

    def neurons(self, requests: Sequence[Asked]) -> list[Neuron | None]:
        """The neuron of each request, by its adapter as it is now; None where its query is not familiar."""
        found: list[Neuron | None] = [None] * len(requests)
        for name in dict.fromkeys(request.adapter for request in requests):
            rows = [row for row, request in enumerate(requests) if request.adapter == name]
            adapter = self._adapters[name]
            adapter.refresh()
            neurons = adapter.neurons([requests[row].prompt for row in rows])
            for row, neuron in zip(rows, neurons, strict=True):
                found[row] = neuron
        return found


class RouterThread:
    """A thread that finds neurons, for all requests at once that have come while it was busy.

    A batch takes much less time than its requests would one by one, and vLLM goes on meanwhile.
    """

    def __init__(self, adapters: ServedAdapters) -> None:
        self._adapters = adapters
        self._waiting: SimpleQueue[tuple[Asked, Future[Neuron | None]]] = SimpleQueue()
        threading.Thread(target=self._run, name="megedit-router", daemon=True).start()

    def submit(self, request: Asked) -> Future[Neuron | None]:
        """Have the neuron of a request found."""
        found: Future[Neuron | None] = Future()
        self._waiting.put((request, found))
        return found

    def _run(self) -> None:
        while True:
            batch = [self._waiting.get()]
            while len(batch) < LARGEST_BATCH and not self._waiting.empty():
                batch.append(self._waiting.get())
            try:
                neurons = self._adapters.neurons([request for request, _ in batch])
            except Exception:  # whatever it is, the server goes on
                logger.exception("%d requests are answered by the base model: their routing failed", len(batch))
                neurons = [None] * len(batch)
            for (_, found), neuron in zip(batch, neurons, strict=True):
                found.set_result(neuron)


def neuron_of(layer: int, first: int, weights: np.ndarray[Any, np.dtype[np.float32]]) -> Neuron:
    """A neuron with its digest. weights: float32 (L,)."""
    digest = hashlib.sha256(f"{layer} {first} ".encode() + np.ascontiguousarray(weights).tobytes()).hexdigest()
    return Neuron(layer, first, weights, digest)
