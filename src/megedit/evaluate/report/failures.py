"""Kinds of wrong answers: the router let the question pass, the neuron is another edit's, the words are not right."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, TypeVar

VerdictJson = Mapping[str, Any]
NO_EDIT_KINDS = frozenset({"locality", "neighbourhood"})  # what must not be routed
DECIDING = {"ag": "AG", "exact": "exact match", "success": "success", "begins": "begins with target"}
LONGEST = 300  # characters of a text that is shown
T = TypeVar("T")
Failure = Literal["not routed", "wrong neuron", "right neuron, wrong words", "wrong answer", "neighbour disturbed"]
MEANINGS: dict[Failure, str] = {
    "not routed": "The question asks for an edit, but the router left it to the base model.",
    "wrong neuron": "Routed, but the nearest edit is another one.",
    "right neuron, wrong words": "Routed, and its own edit is the nearest, but the answer is not an accepted one.",
    "wrong answer": "The answer is not an accepted one; the model has no router that would say why.",
    "neighbour disturbed": "The question asks for no edit, and the answer is not the one that should have stayed.",
}


def classify(verdict: VerdictJson, own: Collection[str] = ()) -> Failure | None:
    """The kind of the edited model's failure; None when it did not fail, or no yes-or-no measure was taken.

    own: ids of edits that are right for the question beside the one it belongs to (questions over several edits).
    """
    value = deciding_value(verdict)
    if value is None or value >= 1:
        return None
    route = verdict.get("route")
    if verdict["kind"] in NO_EDIT_KINDS:
        return "neighbour disturbed"
    if route is None:
        return "wrong answer"
    if not route["familiar"]:
        return "not routed"
    is_own = route["nearest"] == verdict["edit"] or route["nearest"] in own
    return "right neuron, wrong words" if is_own else "wrong neuron"


def deciding_measure(verdict: VerdictJson) -> str | None:
    """The first yes-or-no measure of `DECIDING` that was taken; shares of tokens decide nothing."""
    values = verdict["edited"]["values"]
    return next((name for name in DECIDING if values.get(name) is not None), None)


def deciding_value(verdict: VerdictJson) -> float | None:
    """Value of the deciding measure for the edited model: 1 for right, 0 for wrong."""
    name = deciding_measure(verdict)
    return None if name is None else float(verdict["edited"]["values"][name])


def spread(found: Sequence[T], count: int) -> Sequence[T]:
    """So many of them, from the whole list and not from its beginning only."""
    if count >= len(found):
        return found
    return [found[i * len(found) // count] for i in range(count)]


def shortened(text: str) -> str:
    """A text that is not too long to be shown: of a longer one, the beginning and the end, where a question stands."""
    if len(text) <= LONGEST:
        return text
    return f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 + 3 :]}"
