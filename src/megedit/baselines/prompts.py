"""Changing a module of a model where prompts are answered: hooks, the place of the prompts, and texts about no edit."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from megedit.baselines.method import Base, EditedSystem
from megedit.edits import Edit
from megedit.lm.batches import encode_answer
from megedit.pseudo.knowledge import load_pseudo_knowledge


class Place:
    """The place of a batch's prompts, and what was decided for each of them; hooks read the one and keep the other.

    prompts: int64 (rows, width), the mask of the prompts, which all end in the last column; None where none are asked.
    chosen: a tensor of rows that the first forward pass sets, so that it holds in those that decode the answers.
    """

    prompts: Tensor | None = None
    chosen: Tensor | None = None

    def begin(self, mask: Tensor) -> None:
        """Note that the next forward pass begins with these prompts, int64 (rows, width)."""
        self.prompts, self.chosen = mask, None

    def end(self) -> None:
        """Note that they are answered."""
        self.prompts = self.chosen = None


class PromptSystem(EditedSystem):
    """A model that hooks change which need to know where the prompts are. place: None where it is not changed."""

    def __init__(self, base: Base, name: str, place: Place | None) -> None:
        super().__init__(base, name)
        self._place = place

    def _generate(self, queries: Sequence[str], **options: Any) -> Any:
        with self._asked(options["attention_mask"]):
            return super()._generate(queries, **options)

    def _logits(self, inputs: dict[str, Any], queries: Sequence[str], width: int, keep: int) -> Tensor:
        with self._asked(inputs["attention_mask"][:, :width]):
            return super()._logits(inputs, queries, width, keep)

    @contextmanager
    def _asked(self, mask: Tensor) -> Iterator[None]:
        if self._place is None:
            yield
            return
        self._place.begin(mask)
        try:
            yield
        finally:
            self._place.end()


@contextmanager
def hooked(module: nn.Module, hook: Any) -> Iterator[None]:
    """Within the context, run a forward hook of a module."""
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def with_states(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The output of a module, in the form that it has, with the hidden states that `change` makes of its own."""
    if isinstance(output, tuple):
        return (change(output[0]), *output[1:])
    return change(output)


def unrelated_prompts(base: Base, edits: Sequence[Edit], count: int, seed: int) -> list[tuple[int, ...]]:
    """The tokens of shipped questions and sentences that are about none of the edits, in the template.

    count: so many at most, drawn by the seed.
    """
    shipped = replace(load_pseudo_knowledge(), facts=()).without(edits)
    texts = [*shipped.unrelated, *shipped.noise]
    drawn = random.Random(seed).sample(texts, min(count, len(texts)))
    return [tuple(encode_answer(base.tokenizer, base.template.format(text), "")[0]) for text in drawn]
