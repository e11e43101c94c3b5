"""The configuration of an adapter: everything that is neither a tensor nor an edit, as `meg_config.json` holds it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from megedit.lm.template import Template
from megedit.router.decision import Calibration
from megedit.settings import CollectionSettings, FamiliaritySettings, GeneratorSettings, Positions, read_settings

FORMAT_VERSION = 3


@dataclass(frozen=True)
class AdapterConfig:
    """Everything about an adapter that is not a tensor or an edit."""

    base: str
    base_fingerprint: str
    layer: int
    hidden_size: int
    weight_size: int
    span: Positions
    template: Template
    encoder_pooling: str
    encoder_size: int
    familiarity: FamiliaritySettings
    generator: GeneratorSettings
    calibration: Calibration
    settings: dict[str, Any]  # all settings of the fit, for the record
    record: dict[str, Any]  # seconds and peak memory of every stage, versions, source of the edits
    format_version: int = FORMAT_VERSION

    @property
    def collection(self) -> CollectionSettings:
        """How the neurons were collected."""
        return read_settings(self.settings).collection

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> AdapterConfig:
        """Raises KeyError, TypeError or ValueError when a field is missing or not valid."""
        values = _known(cls, values)
        parts = read_settings({name: values[name] for name in ("familiarity", "generator")})
        return cls(
            **{
                **values,
                "template": Template(**values["template"]),
                "familiarity": parts.familiarity,
                "generator": parts.generator,
                "calibration": Calibration.from_json(values["calibration"]),
            }
        )


def _known(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """The values of this dataclass's fields; others may have been written by another version."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in values.items() if name in names}
