"""The router's decision: the features that each rule looks at, their weights, and the score from which it says yes.

Source: MeG (arXiv 2512.14395), section 3.2, decides by the entropy alone (rule `entropy`). Scores and acceptance are
plain arithmetic, the same on floats, NumPy arrays and torch tensors: calibration and router share this one place.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple

from megedit.settings import Rule

Feature = Literal["entropy", "similarity", "subject"]

RULES: dict[Rule, frozenset[Feature]] = {
    "entropy": frozenset({"entropy"}),
    "similarity": frozenset({"similarity"}),
    "combined": frozenset({"entropy", "similarity"}),
    "named": frozenset({"similarity", "subject"}),
    "subject": frozenset({"entropy", "similarity", "subject"}),
}


def without(rule: Rule, unknown: Literal["entropy", "subject"]) -> Rule:
    """The rule that looks at the same features but one; similarity alone where none would be left."""
    left = RULES[rule] - {unknown}
    return next((other for other, features in RULES.items() if features == left), "similarity")


class Features(NamedTuple):
    """A number for each feature: values, each a float or an array (queries,), or the weights given to them.

    entropy: natural logarithm of the familiarity network's entropy. similarity: cosine to the nearest edit. subject:
    share of a name in the query that the subject of that edit is; 0 where it is not named.
    """

    entropy: Any
    similarity: Any
    subject: Any

    def dot(self, other: Features) -> Any:
        """The sum of the products, feature by feature, in the shape of the values."""
        return sum(own * given for own, given in zip(self, other, strict=True))


@dataclass(frozen=True)
class Enrolled:
    """An edit as the router knows it, beside its vector.

    learned: the network was trained on it; if not, the entropy says nothing of queries near it. removed: the edit was
    taken back; queries nearest to it are for the base model, unless the fact was stated anew. prompt: a query in the
    same words is nearest to this edit, whatever the vectors say.
    """

    subject: str | None = None
    learned: bool = True
    removed: bool = False
    prompt: str = ""


@dataclass(frozen=True)
class Decision:
    """A calibrated rule: a query is familiar when its score, weights . features, reaches the threshold.

    weights: float for each feature, 0 for those the rule does not look at. unnamed_threshold: the higher one, for
    queries that do not name the subject of the nearest edit; where the rule does not look at subjects, it is the same.
    The area under the ROC curve and the rates are those on the held-out queries.
    """

    weights: Features
    threshold: float
    unnamed_threshold: float
    auc: float
    true_positive_rate: float
    false_positive_rate: float

    def score(self, features: Features) -> Any:
        """The weighted sum of the features, in their shape."""
        return self.weights.dot(features)

    def threshold_for(self, features: Features) -> Any:
        """The threshold that holds for each query, in the shape of the features."""
        return self.threshold * (features.subject != 0) + self.unnamed_threshold * (features.subject == 0)

    def accepts(self, features: Features) -> Any:
        """True where a query is familiar, in the shape of the features."""
        return self.score(features) >= self.threshold_for(features)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Decision:
        """Read what `to_json` of a calibration holds for a rule; fields of later versions are ignored."""
        known = {field.name: values[field.name] for field in fields(cls)}
        return cls(**{**known, "weights": Features(*known["weights"])})


@dataclass(frozen=True)
class Calibration:
    """Every rule that could be calibrated, which of them decides, and its held-out curve.

    curve: points of the held-out ROC as (threshold, false positive rate, true positive rate).
    """

    rule: Rule
    rules: dict[Rule, Decision]
    curve: list[tuple[float, float, float]]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; weights become a list in the order of `Features`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Calibration:
        """Read what `to_json` gave. Raises KeyError or TypeError when it is something else."""
        rules = {name: Decision.from_json(decision) for name, decision in values["rules"].items()}
        return cls(values["rule"], rules, [tuple(point) for point in values["curve"]])

    @property
    def decision(self) -> Decision:
        """The rule that decides on edits with a subject."""
        return self.rules[self.rule]

    def rule_for(self, edit: Enrolled) -> Rule:
        """The rule that decides on queries nearest to this edit."""
        rule = self.rule if edit.learned else without(self.rule, "entropy")
        return rule if edit.subject is not None and rule in self.rules else without(rule, "subject")
