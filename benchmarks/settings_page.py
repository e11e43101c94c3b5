"""The page of all settings, docs/settings.md, from settings.py.

python -m benchmarks.settings_page
"""

from __future__ import annotations

from pathlib import Path

from megedit.cli.settings import Setting, settings_of
from megedit.settings import DEFAULTS, PRESETS

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"
HEAD = """\
# Settings

<!-- written by `python -m benchmarks.settings_page` from src/megedit/settings.py; change the help texts there -->

Everything that a fit can be told, with its default. The defaults are what all results of
[benchmarks.md](benchmarks.md) were measured with, unless they say otherwise. On the command line:

    meg fit ... --set collection.margin=6 --set generator.sample_steps=4

From Python:

    from megedit import FitSettings
    from megedit.settings import CollectionSettings
    settings = FitSettings(collection=CollectionSettings(margin=6))

An adapter keeps the settings it was made with in its `meg_config.json`.
"""
TITLES = {
    "": "The fit as a whole",
    "collection": "Collection of the neurons",
    "encoder": "Text encoder",
    "router": "Router: what decides, and its calibration",
    "familiarity": "Router: familiarity network",
    "generator": "Weight generator",
}


def page() -> str:
    """The page, in Markdown."""
    parts: dict[str, list[Setting]] = {part: [] for part in TITLES}
    for setting in settings_of():
        parts[setting.name.rpartition(".")[0]].append(setting)
    return HEAD + "".join(_section(part, settings) for part, settings in parts.items())


def _section(part: str, settings: list[Setting]) -> str:
    paper = getattr(PRESETS["paper"], part or "template") != getattr(DEFAULTS, part or "template")  # the other preset
    lines = [f"\n## {TITLES[part]}\n", "| setting | values | default |" + (" preset `paper` |" if paper else "") + " |"]
    lines.append("| --- | --- | --- |" + (" --- |" if paper else "") + " --- |")
    for setting in settings:
        cells = [f"`{setting.name}`", setting.choices.removeprefix("a "), _cell(setting.default)]
        if paper:
            cells.append(_cell(getattr(getattr(PRESETS["paper"], part), setting.name.rpartition(".")[2])))
        lines.append(f"| {' | '.join([*cells, setting.help])} |")
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool | None) else str(value)
    return f"`{text}`"


def main() -> None:
    PAGE.write_text(page(), "utf-8")
    print(f"{PAGE} written")


if __name__ == "__main__":
    main()
