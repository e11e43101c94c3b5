"""Why a question is answered as it is: router, nearest edits, neuron, and both answers with their probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megedit.adapter.ledger import Status
from megedit.edits import Edit
from megedit.errors import MegError
from megedit.model import MegModel
from megedit.routes import Route

NEAREST = 5  # edits shown


@dataclass(frozen=True)
class Near:
    """An edit near a question: the cosine of the two queries, and the edit's status."""

    edit: Edit
    similarity: float
    status: Status


@dataclass(frozen=True)
class TokenAnswer:
    """A greedy answer: its tokens as text, and the probability of each when all before it are given.

    cut: the limit came before the end of the answer.
    """

    text: str
    tokens: tuple[str, ...]
    probabilities: tuple[float, ...]
    cut: bool


@dataclass(frozen=True)
class Explanation:
    """The edited model's way to its answer to a question.

    nearest: the most similar edits, first the one by which the question is routed. distance: between the neuron that is
    generated from the question and the one collected for that edit, the mean squared difference in standard deviations
    over the edits, so that two edits' neurons are about 2 apart; None where nothing is collected for it.
    """

    route: Route
    nearest: tuple[Near, ...]
    distance: float | None
    edited: TokenAnswer
    base: TokenAnswer


@torch.no_grad()
def explain(model: MegModel, question: str, max_new_tokens: int | None = None) -> Explanation:
    """Explain the answer to one bare question.

    max_new_tokens: by default as many as `MegModel.greedy` allows. Raises MegError when the question is empty.
    """
    if not question.strip():
        raise MegError("The question is empty; give one in quotation marks.")
    near = model.nearest(question, NEAREST)
    records = [model.adapter.routed[row] for row, _ in near]
    edited = _answer(model, question, max_new_tokens)
    with model.disable_edits():
        base = _answer(model, question, max_new_tokens)
    return Explanation(
        model.route(question),
        tuple(Near(r.edit, similarity, r.status) for r, (_, similarity) in zip(records, near, strict=True)),
        _distance(model, question, near[0][0]) if records[0].status == "active" else None,
        edited,
        base,
    )


def _distance(model: MegModel, question: str, row: int) -> float:
    """Between the neuron generated from a question and the one collected for an edit, a row of `Adapter.routed`."""
    adapter, vectors = model.adapter, model.encode([question])  # (1, C)
    generated = adapter.generator.standardise(adapter.generate(vectors, torch.tensor([row], device=vectors.device)))
    collected = adapter.generator.standardise(adapter.neurons([adapter.routed[row]]).to(generated.device))  # (1, L)
    return float((generated - collected).square().mean())


def _answer(model: MegModel, question: str, max_new_tokens: int | None) -> TokenAnswer:
    (found,) = model.greedy([question], max_new_tokens, scores=True)
    tokens = tuple(str(model.tokenizer.decode([token])) for token in found.tokens)
    return TokenAnswer(found.text.strip(), tokens, found.probabilities, found.cut)
