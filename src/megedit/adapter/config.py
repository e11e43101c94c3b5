"""The configuration of an adapter: everything that is neither a tensor nor an edit, as `meg_config.json` holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from megedit.lm.template import Template
from megedit.router.curve import threshold_for
from megedit.router.decision import Calibration
from megedit.settings import FitSettings, Positions, RouterSettings, from_known, read_settings

CONFIG = "meg_config.json"
FORMAT_VERSION = 6
OLDEST_VERSION = 3  # that is still read


@dataclass(frozen=True)
class AdapterConfig:
    """Everything about an adapter that is not a tensor or an edit.

    layer: decoder layer of the neuron. weight_size: 2 hidden_size, and 1 more with a bias. settings: those of the fit.
    provenance: how it came about, for people: source of the edits, why this layer, seconds and peak memory of every
    stage, versions.
    """

    base: str
    base_fingerprint: str
    layer: int
    hidden_size: int
    weight_size: int
    template: Template
    encoder_pooling: str
    encoder_size: int
    calibration: Calibration
    settings: FitSettings
    provenance: dict[str, Any]
    format_version: int = FORMAT_VERSION

    @property
    def positions(self) -> Positions:
        """The positions on which the neuron acts."""
        return self.settings.collection.positions

    @property
    def built_for(self) -> tuple[Any, ...]:
        """The parts that a model is made ready for when the adapter is put on it."""
        return self.base_fingerprint, self.layer, self.weight_size, self.template, self.positions

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> AdapterConfig:
        """Read what `to_json` gave, or the same of an older format; fields that are not known are ignored.

        Raises KeyError, TypeError or ValueError when a field is missing or not valid.
        """
        if values["format_version"] == 3:
            values = _from_format_3(values)
        if values["format_version"] < 5:
            values = _from_format_4(values)
        for part in ("collection", "encoder", "router", "familiarity", "generator"):
            values["settings"][part]  # the defaults of another version would not fit
        given = {
            **values,
            "template": from_known(Template, values["template"]),
            "calibration": Calibration.from_json(values["calibration"]),
            "settings": read_settings(values["settings"]),
            "format_version": FORMAT_VERSION,
        }
        return from_known(cls, given)


def _from_format_3(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same in format 4. Settings stood twice in format 3; those that counted were beside `settings`."""
    settings = values["settings"]
    return {
        **values,
        "provenance": values["record"],
        "settings": {
            **settings,
            "collection": {**settings["collection"], "positions": values["span"]},
            "familiarity": values["familiarity"],
            "generator": values["generator"],
        },
    }


def _from_format_4(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same in format 5, where a verifier decides; an adapter of an earlier one has none, and gets the shipped.

    The paper's rule stays.
    """
    calibration = values["calibration"]
    paper = calibration["rule"] == "entropy"
    router = RouterSettings(rule="entropy" if paper else "verified")
    old = {name: calibration["rules"][name] for name in ("entropy", "similarity", "combined")} if paper else {}
    decisions = {name: {**rule, "weights": rule["weights"][:2]} for name, rule in old.items()}
    threshold = threshold_for(router.false_fires)
    found = {**calibration, "decisions": decisions, "threshold": threshold}
    return {
        **values,
        "calibration": found if paper else Calibration.of_old(threshold).to_json(),
        "settings": {**values["settings"], "router": asdict(router)},
    }
