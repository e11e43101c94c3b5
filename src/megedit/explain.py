"""Why a question is answered as it is: router, nearest edits, neuron, and both answers with their probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch

from megedit.adapter.ledger import Status
from megedit.edits.edit_set import Edit
from megedit.errors import MegError
from megedit.model import GREEDY, MegModel, Route, cut_answers, end_tokens

NEAREST = 5  # edits shown


@dataclass(frozen=True)
class Near:
    """An edit near a question: the cosine of the two queries, and whether the edit is in force."""

    edit: Edit
    similarity: float
    status: Status


@dataclass(frozen=True)
class Answer:
    """A greedy answer: its tokens as text, and the probability of each when all before it are given."""

    text: str
    tokens: tuple[str, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Explanation:
    """What the edited model makes of a question.

    nearest: the most similar edits, best first. distance: between the neuron that is generated from the question and
    the one collected for the nearest edit, the mean squared difference in standard deviations over the edits, so that
    two edits' neurons are about 2 apart; None where nothing is collected for it.
    """

    route: Route
    nearest: tuple[Near, ...]
    distance: float | None
    edited: Answer
    base: Answer


@torch.no_grad()
def explain(model: MegModel, question: str, max_new_tokens: int = 50) -> Explanation:
    """Explain the answer to one bare question. Raises MegError when the question is empty."""
    if not question.strip():
        raise MegError("The question is empty; give one in quotation marks.")
    adapter, vectors = model.adapter, model.encode([question])
    similarity, rows = adapter.router.vectors.nearest(vectors, NEAREST)
    records = [adapter.routed[row] for row in rows[0].tolist()]
    nearest = tuple(
        Near(record.edit, float(value), record.status) for record, value in zip(records, similarity[0], strict=True)
    )
    distance = None
    if records[0].status == "active":
        generated = adapter.generator.standardise(adapter.generate(vectors, rows[:, 0]))
        collected = adapter.generator.standardise(adapter.neurons(records[:1]).to(generated.device))
        distance = float((generated - collected).square().mean())
    edited = _answer(model, question, max_new_tokens)
    with model.disable_edits():
        base = _answer(model, question, max_new_tokens)
    return Explanation(model.route(question), nearest, distance, edited, base)


def _answer(model: MegModel, question: str, max_new_tokens: int) -> Answer:
    prompts = model.prompts([question])
    options: dict[str, Any] = {**GREEDY, "output_logits": True, "return_dict_in_generate": True}
    output = model.generate(**prompts, queries=[question], max_new_tokens=max_new_tokens, **options)
    new = output.sequences[:, prompts["input_ids"].shape[1] :]
    (tokens,) = cut_answers(new, end_tokens(model.base, model.tokenizer))
    chosen = zip(tokens, output.logits, strict=False)
    probabilities = tuple(float(logits[0].float().softmax(-1)[token]) for token, logits in chosen)
    decode = model.tokenizer.decode
    return Answer(
        cast(str, decode(tokens)).strip(), tuple(cast(str, decode([token])) for token in tokens), probabilities
    )
