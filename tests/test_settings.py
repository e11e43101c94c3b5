"""Settings: their help texts, and settings as adapters hold them."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.settings_page import PAGE, page
from megedit.cli.settings import settings_help, settings_of, with_changes
from megedit.errors import MegError
from megedit.settings import (
    PRESETS,
    CollectionSettings,
    EncoderSettings,
    FamiliaritySettings,
    FitSettings,
    GeneratorSettings,
    RouterSettings,
    grown,
    read_settings,
)

FORMAT_3 = Path(__file__).parent / "data" / "format_3" / "adapter" / "meg_config.json"


def format_3(**generator: Any) -> dict[str, Any]:
    """The settings of an adapter of format 3, with other ones of the generator."""
    values: dict[str, Any] = json.loads(FORMAT_3.read_text("utf-8"))["settings"]
    values["generator"] |= generator
    return values


def test_settings_survive_json() -> None:
    settings = replace(PRESETS["paper"], layer=3, encoder=EncoderSettings(steps=3))
    assert read_settings(json.loads(json.dumps(asdict(settings)))) == settings


def test_settings_of_an_adapter_of_format_3() -> None:
    values = format_3(anchor=0.8, balance=0.4, settle=0.3, focus=7.0, steps=11)
    values["collection"]["span"] = "all"
    assert read_settings(values) == FitSettings(
        layer=values["layer"],
        held_out=0.4,
        collection=CollectionSettings(steps=60, positions="all", batch_size=256),
        encoder=EncoderSettings(name=values["encoder"]["name"], steps=2, batch_size=8),
        familiarity=FamiliaritySettings(blocks=2, steps=30),
        generator=GeneratorSettings(
            patch=16,
            width=32,
            depth=1,
            heads=2,
            trunk_width=64,
            min_steps=11,
            check_every=50,
            batch_size=16,
            nearest_edit_share=0.8,
            rarity_power=0.4,
            even_tail=0.3,
            hard_example_weight=7.0,
        ),
    )
    assert read_settings(format_3(trunk=False)).generator.trunk_width == 0


@pytest.mark.parametrize("other", [{"denoiser": "mlp"}, {"train_timesteps": 500}])
def test_a_generator_that_is_no_more(other: dict[str, Any]) -> None:
    with pytest.raises(MegError, match="fit the adapter again"):
        read_settings(format_3(**other))


def test_unknown_settings_are_ignored_and_missing_ones_have_their_default() -> None:
    values = asdict(FitSettings(seed=4))
    values |= {"later": 1, "generator": {"depth": 2, "later": 2}}
    assert read_settings(values) == replace(FitSettings(seed=4), generator=GeneratorSettings(depth=2))


# ---------------------------------------------------------------------------------------------------
# --set and the page


def test_settings_by_their_names() -> None:
    changes = [
        "collection.margin=6",
        "layer=3",
        "encoder.trained=false",
        "router.rule = combined",
        "collection.margin=7",
    ]
    assert with_changes(FitSettings(seed=2), [*changes, "template=Q: {query} = ?"]) == FitSettings(
        seed=2,
        layer=3,
        template="Q: {query} = ?",
        collection=CollectionSettings(margin=7.0),
        encoder=EncoderSettings(trained=False),
        router=RouterSettings(rule="combined"),
    )
    assert with_changes(FitSettings(layer=3), ["layer=none"]) == FitSettings()
    assert with_changes(FitSettings(), ["generator.width=30", "generator.heads=5"]).generator.heads == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("collection.margin", "give a value, --set collection.margin=VALUE"),
        ("margin=6", "there is no setting 'margin'; the nearest are collection.margin"),
        ("collection.margni=6", "the nearest are collection.margin"),
        ("generator.anchor=0", "there is no setting 'generator.anchor'"),
        ("collection.steps=many", "collection.steps can be a whole number, not 'many'"),
        ("collection.steps=2.5", "collection.steps can be a whole number, not '2.5'"),
        ("collection.positions=some", "collection.positions can be answer or all, not 'some'"),
        ("encoder.trained=2", "encoder.trained can be true or false, not '2'"),
        ("collection.steps=0", "steps must be above 0"),
    ],
)
def test_settings_that_cannot_be(change: str, message: str) -> None:
    with pytest.raises(MegError, match=re.escape(message)):
        with_changes(FitSettings(), [change])


def test_every_setting_has_a_help_text_and_is_on_the_page() -> None:
    names = [setting.name for setting in settings_of()]
    values = asdict(FitSettings())
    parts = {part: list(fields) for part, fields in values.items() if isinstance(fields, dict)}
    assert set(names) == {*(values.keys() - parts), *(f"{part}.{name}" for part in parts for name in parts[part])}
    assert all(setting.help for setting in settings_of())
    assert PAGE.read_text("utf-8") == page(), "run: python -m benchmarks.settings_page"
    assert all(f"`{name}=" in settings_help() for name in names)


@pytest.mark.parametrize(
    ("edits", "size"), [(0, 256), (40_959, 256), (40_960, 512), (81_920, 1024), (100_000, 1024), (1_000_000, 8192)]
)
def test_a_batch_grows_with_the_edits(edits: int, size: int) -> None:
    assert grown(256, edits) == size == GeneratorSettings().edits_a_step(edits)
    assert GeneratorSettings().training_steps(edits) <= 20_000
