"""The README of an adapter: a model card for people, as the Hugging Face Hub shows it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from megedit.adapter.config import AdapterConfig
from megedit.adapter.ledger import Ledger, Status
from megedit.runtime.files import write_whole

CARD = "README.md"
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def router_line(config: AdapterConfig) -> str:
    """The router's rule, and how its gate, or its decision, did on held-out queries."""
    calibration, decision = config.calibration, config.calibration.decision
    rates = f"{decision.true_positive_rate:.1%} of held-out rephrases"
    others = f"{decision.false_positive_rate:.1%} of other queries"
    if calibration.rule != "verified":
        return f"{calibration.rule}: {rates} recognised, {others} let through"
    allowed = f"{config.settings.router.false_fires:.1%} of near misses may fire"
    gate = f"its gate passes {rates}, {others}" if calibration.curve else "made before there was a verifier"
    return f"verified, {allowed}; {gate}"


def write_card(folder: Path, config: AdapterConfig, ledger: Ledger) -> None:
    """Write the README of an adapter folder, of the state that its ledger has."""
    log, failed = ledger.operations(), [record.edit.id for record in ledger.records(status="failed")]
    write_whole(folder / CARD, model_card(config, ledger.counts(), failed, log[0].source, log[-1].revision))


def model_card(
    config: AdapterConfig, counts: Mapping[Status, int], failed: Sequence[str], source: str, revision: int
) -> str:
    """The README of an adapter: how many edits have which status, which have failed, where the first came from."""
    stages = "\n".join(
        f"| {stage} | {cost['seconds']:.0f} | {cost['peak_memory_mb']:.0f} |"
        for stage, cost in config.provenance.get("stages", {}).items()
    )
    hub_name = config.base.partition("@")[0]
    base_model = f"base_model: {hub_name}\n" if _HUB_NAME.fullmatch(hub_name) else ""  # the Hub refuses any other
    return f"""---
{base_model}library_name: megedit
tags: [knowledge-editing, megedit]
---
# {counts["active"]} edits for {config.base}

One dynamic neuron in layer {config.layer} (MeG, arXiv 2512.14395), made with MegEdit. It changes the answers to the
queries of its edits and to their rephrases; every other query gets the base model's own answer. `meg list` prints the
edits, `meg log` what was done with them.

    from megedit import MegModel
    model = MegModel.from_pretrained("this folder")

- Edits: {counts["active"]} in force, {counts["removed"]} removed; failed: {", ".join(failed) or "none"}.
- Revision {revision}; the first edits are from {source}.
- Router: {router_line(config)}.
- Base model fingerprint: {config.base_fingerprint}.

| stage of the fit | seconds | peak memory, MB |
|---|---|---|
{stages}
"""
