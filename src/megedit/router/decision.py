"""The router's rules: the features that each looks at, their weights, and the score from which it says yes.

Source: MeG (arXiv 2512.14395), section 3.2, decides by the entropy alone (rule `entropy`). Rule `verified`, the
default, takes entropy and similarity for a gate only, behind which the verifier decides. Scores are plain arithmetic,
the same on floats, NumPy arrays and torch tensors: calibration and router share this one place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple

from megedit.settings import Rule

Kind = Literal["entropy", "similarity", "combined"]
FEATURES: dict[Kind, frozenset[Literal["entropy", "similarity"]]] = {
    "entropy": frozenset({"entropy"}),
    "similarity": frozenset({"similarity"}),
    "combined": frozenset({"entropy", "similarity"}),
}
GATE_OF_OLD = 0.3  # similarity from which an adapter of an earlier format has the verifier asked


def kind_of(rule: Rule) -> Kind:
    """The features by which a rule, or its gate, judges queries near learned edits."""
    return "combined" if rule == "verified" else rule


class Features(NamedTuple):
    """A number for each feature: values, each a float or an array (queries,), or the weights given to them.

    entropy: natural logarithm of the familiarity network's entropy. similarity: cosine to the nearest edit.
    """

    entropy: Any
    similarity: Any

    def dot(self, other: Features) -> Any:
        """The sum of the products, feature by feature, in the shape of the values."""
        return sum(own * given for own, given in zip(self, other, strict=True))


@dataclass(frozen=True)
class Decision:
    """Weights of the features, and the threshold that the score, weights . features, is to reach.

    weights: float for each feature, 0 for those that are not looked at. The area under the ROC curve and the rates are
    those on the held-out queries.
    """

    weights: Features
    threshold: float
    auc: float
    true_positive_rate: float
    false_positive_rate: float

    def score(self, features: Features) -> Any:
        """The weighted sum of the features, in their shape."""
        return self.weights.dot(features)

    def accepts(self, features: Features) -> Any:
        """True where the score reaches the threshold, in the shape of the features."""
        return self.score(features) >= self.threshold

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Decision:
        """Read what `to_json` of a calibration holds for a rule; fields of later versions are ignored."""
        known = {field.name: values[field.name] for field in fields(cls)}
        return cls(**{**known, "weights": Features(*known["weights"])})


@dataclass(frozen=True)
class Calibration:
    """Which rule decides, and what was found for it on held-out queries.

    decisions: by the features looked at; those of a gate with rule `verified`, else those that decide. threshold: of
    the verifier's logit, with rule `verified`. curve: points of the held-out ROC of the rule's decision as (threshold,
    false positive rate, true positive rate).
    """

    rule: Rule
    decisions: dict[Kind, Decision]
    threshold: float
    curve: list[tuple[float, float, float]]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; weights become a list in the order of `Features`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Calibration:
        """Read what `to_json` gave. Raises KeyError or TypeError when it is something else."""
        decisions: dict[Kind, Decision] = {
            name: Decision.from_json(decision) for name, decision in values["decisions"].items()
        }
        return cls(values["rule"], decisions, values["threshold"], [tuple(point) for point in values["curve"]])

    @classmethod
    def of_old(cls, threshold: float) -> Calibration:
        """For an adapter of an earlier format, whose own rules are no more."""
        gate = Decision(Features(0.0, 1.0), GATE_OF_OLD, 0.0, 1.0, 1.0)
        return cls("verified", {"combined": gate, "similarity": gate}, threshold, [])

    @property
    def decision(self) -> Decision:
        """The decision, or the gate, for queries near learned edits."""
        return self.decisions[kind_of(self.rule)]

    def decision_for(self, learned: bool) -> Decision:
        """The same for queries near an edit; of one that the familiarity network has not learned, entropy says
        nothing."""
        return self.decision if learned else self.decisions["similarity"]
