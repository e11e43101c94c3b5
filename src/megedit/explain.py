"""Why a question is answered as it is: router, nearest edits, neuron, and both answers with their probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megedit.errors import MegError
from megedit.model import MegModel
from megedit.routes import Near, Route

NEAREST = 5  # edits shown


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

    nearest: the edits nearest to it, each with the verifier's score, whatever the gate said; the best first. distance:
    between the neuron that is generated from the question and the one collected for the edit by which it is routed, the
    mean squared difference in standard deviations over the edits, so that two edits' neurons are about 2 apart; None
    where there is no edit.
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
    edited = _answer(model, question, max_new_tokens)
    with model.disable_edits():
        base = _answer(model, question, max_new_tokens)
    route, nearest = model.route(question), model.nearest(question, NEAREST)
    return Explanation(route, nearest, _distance(model, question), edited, base)


def _distance(model: MegModel, question: str) -> float | None:
    """Between the neuron generated from a question and the one collected for the edit by which it is routed."""
    found = model.generated(question)
    if found is None:
        return None
    record, generated = found
    both = torch.stack([generated, model.adapter.neurons([record])[0].to(generated.device)])  # (2, L)
    first, second = model.adapter.generator.standardise(both)
    return float((first - second).square().mean())


def _answer(model: MegModel, question: str, max_new_tokens: int | None) -> TokenAnswer:
    (found,) = model.greedy([question], max_new_tokens, scores=True)
    tokens = tuple(str(model.tokenizer.decode([token])) for token in found.tokens)
    return TokenAnswer(found.text.strip(), tokens, found.probabilities, found.cut)
