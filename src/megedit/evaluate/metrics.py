"""The six metrics and the Score, as pure functions of texts and token ids. Definitions: docs/method.md.

AG (autoregressive): the model answers freely, greedy, and the whole answer counts. TF (teacher forcing): the share of
target tokens that are the model's first choice when the tokens before them are given. The same rules for every model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean


def answer_text(generated: str) -> str:
    """The answer in a generated text: cut at the first newline, stripped, without one final full stop."""
    return generated.split("\n", 1)[0].strip().removesuffix(".").strip()


def answers_target(generated: str, target: str) -> bool:
    """Whether the whole answer is the target, ignoring case."""
    return answer_text(generated).casefold() == answer_text(target).casefold()


def begins_with_target(generated: str, target: str) -> bool:
    """Whether the text begins with the target and the target ends at a word boundary, ignoring case."""
    text, target = generated.strip().casefold(), answer_text(target).casefold()
    return text.startswith(target) and not text[len(target) : len(target) + 1].isalnum()


def token_agreement(predicted: Sequence[int], expected: Sequence[int]) -> float:
    """Share of positions that agree; 1 when nothing is expected."""
    if not expected:
        return 1.0
    return fmean(float(a == b) for a, b in zip(predicted, expected, strict=True))


def harmonic_mean(values: Sequence[float]) -> float:
    """The Score: 0 when any value is 0."""
    if any(value <= 0 for value in values):
        return 0.0
    return len(values) / sum(1 / value for value in values)


@dataclass(frozen=True)
class Metrics:
    """Each in percent; None where no record has what the metric needs."""

    reliability_ag: float | None
    reliability_tf: float | None
    generality_ag: float | None
    generality_tf: float | None
    locality_ag: float | None
    locality_tf: float | None

    @property
    def score(self) -> float | None:
        """Harmonic mean of the six; None unless all six are there."""
        values = list(vars(self).values())
        return None if any(value is None for value in values) else harmonic_mean(values)
