"""The protocol `contrast`: which questions fire an edit, and which only look as if they should (docs/contrast.md).

Recognised: of the texts that ask for a fact, the share that fires its own edit. False: of the texts that do not, the
share that fires any edit that does not ask the same. Both over all texts and by kind, with bootstrap intervals over the
facts: the texts of one fact stand or fall together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np

from megedit.edits import normalise_query
from megedit.edits.contrast import ContrastFact, texts
from megedit.evaluate.protocols import CONTRAST
from megedit.evaluate.statistics import Estimate, shares
from megedit.runtime.callbacks import Advance, no_progress
from megedit.runtime.provenance import machine, versions

VERSION = 1
FORMAT = 1

Side = Literal["fire", "not"]


@dataclass(frozen=True)
class ContrastCase:
    """A text of a fact. own: what may fire and be right, by name: its own edit, or the edit that a text asks for."""

    fact: int
    side: Side
    kind: str
    query: str
    own: frozenset[str]


@dataclass(frozen=True)
class Fired:
    """The outcome of a query. edit: the name of what fired, None where nothing did. score: the system's, if it has
    one. answer: of a system that is judged by its answers."""

    edit: str | None
    score: float | None = None
    answer: str | None = None


@dataclass(frozen=True)
class ContrastVerdict:
    """A case, what fired, and whether that is right."""

    case: ContrastCase
    fired: Fired

    @property
    def hit(self) -> bool:
        """On the side `fire`, whether it is recognised; on the side `not`, whether it fires falsely."""
        if self.case.side == "fire":
            return self.fired.edit in self.case.own
        return self.fired.edit is not None and self.fired.edit not in self.case.own


@dataclass(frozen=True)
class ContrastResult:
    """Recognised and false over all texts, and by kind, in per cent.

    judged_by: `route`, by the edit that the system says it used, or `answer`, by what it answers. allowed: the share of
    near misses that the system was set to let fire, in per cent, where it has such a setting. left_out: texts that are
    not counted, by reason. prompts: of the facts. edits: the prompt of each edit that fired, by its name.
    """

    system: str
    source: str
    facts: int
    judged_by: Literal["route", "answer"]
    recognised: Estimate | None
    false: Estimate | None
    kinds: Mapping[tuple[Side, str], Estimate]
    allowed: float | None
    left_out: Mapping[str, int]
    verdicts: tuple[ContrastVerdict, ...]
    seed: int
    prompts: tuple[str, ...]
    edits: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """The result as a JSON object."""
        return {
            "format": FORMAT,
            "protocol": {"name": CONTRAST, "version": VERSION, "settings": {"seed": self.seed}},
            "system": {"name": self.system, "judged_by": self.judged_by, "false_fires": self.allowed},
            "data": {
                "source": self.source,
                "facts": self.facts,
                "left_out": dict(self.left_out),
                "prompts": list(self.prompts),
                "edits": dict(self.edits),
            },
            "recognised": asdict(self.recognised) if self.recognised else None,
            "false": asdict(self.false) if self.false else None,
            "kinds": [{"side": side, "kind": kind, **asdict(found)} for (side, kind), found in self.kinds.items()],
            "verdicts": [
                {
                    "fact": verdict.case.fact,
                    "side": verdict.case.side,
                    "kind": verdict.case.kind,
                    "query": verdict.case.query,
                    **asdict(verdict.fired),
                    "right": verdict.hit == (verdict.case.side == "fire"),
                }
                for verdict in self.verdicts
            ],
            "machine": machine(),
            "versions": versions(),
            "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        }

    def failures(self, side: Side) -> list[ContrastVerdict]:
        """The texts that were missed, or that fired falsely."""
        return [v for v in self.verdicts if v.case.side == side and v.hit != (side == "fire")]


def cases_of(
    facts: Sequence[ContrastFact],
    names: Mapping[str, str],
    seen: Callable[[str], bool] = lambda text: False,
    limit: int | None = None,
) -> tuple[list[ContrastCase], dict[str, int]]:
    """The texts that are asked, and how many are left out, by reason.

    names: of the edits in the store, by normalised prompt. seen: whether the system was trained on a text. limit: only
    the texts of the first so many facts. Left out are also texts under `not` that are themselves the prompt of an edit,
    or a text that asks for another fact of the set.
    """

    def named(prompt: str) -> frozenset[str]:
        name = names.get(normalise_query(prompt))
        return frozenset([name]) if name else frozenset()

    asking = frozenset[str]().union(*(fact.asking for fact in facts))
    cases, left_out = list[ContrastCase](), {"trained on": 0, "asks for another fact": 0}
    for i, fact in enumerate(facts[:limit]):
        own = named(fact.prompt)
        for kind, text in texts(fact.fire):
            if seen(text):
                left_out["trained on"] += 1
            else:
                cases.append(ContrastCase(i, "fire", kind, text, own))
        for kind, text in texts(fact.other):
            key = normalise_query(text)
            if key in asking or key in names:
                left_out["asks for another fact"] += 1
            elif seen(text):
                left_out["trained on"] += 1
            else:
                cases.append(ContrastCase(i, "not", kind, text, named(fact.asks.get(text, ""))))
    return cases, left_out


def run_contrast(
    cases: Sequence[ContrastCase],
    fired: Callable[[Sequence[ContrastCase]], Sequence[Fired]],
    batch_size: int = 128,
    progress: Advance = no_progress,
) -> tuple[ContrastVerdict, ...]:
    """Ask all cases, in batches of about one length. fired: what became of each of a batch."""
    found: dict[int, ContrastVerdict] = {}
    order = sorted(range(len(cases)), key=lambda i: len(cases[i].query))
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        for i, what in zip(batch, fired([cases[i] for i in batch]), strict=True):
            found[i] = ContrastVerdict(cases[i], what)
        progress(len(batch))
    return tuple(found[i] for i in range(len(cases)))


def rates(
    verdicts: Sequence[ContrastVerdict], facts: int, seed: int
) -> tuple[Estimate | None, Estimate | None, dict[tuple[Side, str], Estimate]]:
    """The share of hits on each side, and of each of its kinds, in per cent, with bootstrap intervals over facts."""
    kinds = sorted({(v.case.side, v.case.kind) for v in verdicts})
    columns: list[tuple[Side, str]] = [("fire", ""), ("not", ""), *kinds]
    index = {column: i for i, column in enumerate(columns)}
    hits, counts = np.zeros((facts, len(columns))), np.zeros((facts, len(columns)))
    for v in verdicts:
        for column in ((v.case.side, ""), (v.case.side, v.case.kind)):
            hits[v.case.fact, index[column]] += v.hit
            counts[v.case.fact, index[column]] += 1
    estimated = dict(zip(columns, shares(100 * hits, counts, seed=seed), strict=True))
    found = {column: estimate for column, estimate in estimated.items() if estimate is not None}
    return found.get(("fire", "")), found.get(("not", "")), {kind: found[kind] for kind in kinds}


def names_of(prompts: Iterable[tuple[str, str]]) -> dict[str, str]:
    """By normalised prompt, the name of an edit, from (prompt, name)."""
    found: dict[str, str] = {}
    for prompt, name in prompts:
        found.setdefault(normalise_query(prompt), name)  # of several, the router takes the first
    return found
