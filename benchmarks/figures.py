"""The measured figures of README.md and docs/: the numbers of each, or None, and how it is drawn."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.sources import CURVE, PROBES, SETS, Results, present
from benchmarks.tables import METRICS
from megedit.router.decision import kind_of

GREY, UNEDITED, EDITED = "#768390", "#9aa4af", "#2f81f7"  # readable on white and on black


def score_data(results: Results) -> dict[str, Any] | None:
    """Set -> model -> the bars of score.svg."""
    keys = {f"{kind.capitalize()} AG": f"{kind}_ag" for kind, measure in METRICS if measure == "ag"}
    keys["Score"] = "score"
    sets = present(results, SETS)
    return {
        title: {model: {name: values[model][key] for name, key in keys.items()} for model in ("unedited", "edited")}
        for title, values in sets.items()
    } or None


def router_data(results: Results) -> dict[str, Any] | None:
    """Set -> the curve and the point in use of router.svg."""
    return {
        title: {
            "curve": [(x, y) for _, x, y in values["calibration_curve"]],
            "point": [
                values["calibration"]["decisions"][kind_of(values["calibration"]["rule"])][f"{side}_positive_rate"]
                for side in ("false", "true")
            ],
        }
        for title, values in present(results, SETS).items()
        if values.get("calibration_curve")
    } or None


def curve_data(results: Results) -> dict[str, Any] | None:
    """Set -> metric -> (edits, percent) of the points of curve.svg; sets of one point are left out."""
    found: dict[str, Any] = {}
    for title, values in present(results, CURVE).items():
        lines = found.setdefault(title.rpartition(", ")[0], {})
        for name, key in {"Score": "score", "Generality AG": "generality_ag", "Locality AG": "locality_ag"}.items():
            lines.setdefault(name, []).append([values["edits"], values["edited"][key]])
    return {title: lines for title, lines in found.items() if len(lines["Score"]) > 1} or None


def probe_data(results: Results) -> dict[str, Any] | None:
    """Model -> the layers, their percentages and the recommended one of probe.svg."""
    return {
        title: {
            "layers": [row["layer"] for row in values["rows"]],
            "reliability": [row["reliability"] for row in values["rows"]],
            "generality": [row["generality"] for row in values["rows"]],
            "recommended": values["recommended"],
        }
        for title, values in present(results, PROBES).items()
    } or None


def draw_score(figure: Any, data: Mapping[str, Any]) -> None:
    """One panel of grouped bars a set."""
    axes = figure.subplots(1, len(data), sharey=True, squeeze=False)[0]
    for axis, (title, models) in zip(axes, data.items(), strict=True):
        for offset, (model, colour) in zip((-0.2, 0.2), (("unedited", UNEDITED), ("edited", EDITED)), strict=True):
            heights = [value or 0 for value in models[model].values()]
            places = [place + offset for place in range(len(heights))]
            bars = axis.bar(places, heights, 0.38, color=colour, label=f"{model} model")
            axis.bar_label(bars, [f"{height:.0f}" for height in heights], color=GREY, fontsize=8, padding=1)
        axis.set_title(title, fontsize=11)
        axis.set_xticks(range(len(models["edited"])), [name.replace(" ", "\n") for name in models["edited"]])
        axis.set_ylim(0, 112)
        axis.set_yticks([0, 50, 100])
    axes[0].set_ylabel("percent")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, labelcolor=GREY)


def draw_router(figure: Any, data: Mapping[str, Any]) -> None:
    """The corner of the held-out ROC curve that matters, with the threshold in use."""
    axis = figure.subplots()
    for (title, values), colour in zip(data.items(), (EDITED, "#d29922"), strict=False):
        curve = sorted([(0.0, 0.0), *map(tuple, values["curve"]), (1.0, 1.0)])
        axis.plot([100 * x for x, _ in curve], [100 * y for _, y in curve], color=colour, label=title)
        axis.plot(*([100 * rate] for rate in values["point"]), "o", color=colour, label=f"{title}: threshold in use")
    points = [values["point"] for values in data.values()]
    axis.set_xlim(0, max(20, *(200 * x for x, _ in points)))
    axis.set_ylim(min(70, *(100 * y - 20 for _, y in points)), 100.5)
    axis.set_xlabel("other queries let through, %")
    axis.set_ylabel("rephrases recognised, %")
    axis.legend(loc="lower right", frameon=False, labelcolor=GREY)


def draw_curve(figure: Any, data: Mapping[str, Any]) -> None:
    """One panel a set: the percentages against the number of edits."""
    axes = figure.subplots(1, len(data), sharey=True, squeeze=False)[0]
    lowest = min(percent for lines in data.values() for points in lines.values() for _, percent in points)
    for axis, (title, lines) in zip(axes, data.items(), strict=True):
        for (name, points), colour in zip(lines.items(), (EDITED, "#d29922", "#3fb950"), strict=True):
            axis.plot(*zip(*points, strict=True), "o-", color=colour, label=name, markersize=4)
        axis.set_title(title, fontsize=11)
        axis.set_xscale("log")
        counts = [edits for edits, _ in next(iter(lines.values()))]
        axis.set_xticks(counts, [f"{edits:,}" for edits in counts], rotation=45)
        axis.minorticks_off()
        axis.set_ylim(min(90, lowest - 1), 100.5)
        axis.set_xlabel("edits")
    axes[0].set_ylabel("percent")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, labelcolor=GREY)


def draw_probe(figure: Any, data: Mapping[str, Any]) -> None:
    """One panel a model: the percentages by layer."""
    axes = figure.subplots(1, len(data), sharey=True, squeeze=False)[0]
    for axis, (title, values) in zip(axes, data.items(), strict=True):
        axis.plot(values["layers"], values["reliability"], "o-", color=UNEDITED, markersize=4, label="the edits")
        axis.plot(values["layers"], values["generality"], "o-", color=EDITED, markersize=4, label="other wordings")
        axis.axvline(values["recommended"], color="#d29922", linestyle=":", label="recommended layer")
        axis.set_title(title, fontsize=11)
        axis.set_ylim(-3, 103)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_xlabel("layer of the neuron")
    axes[0].set_ylabel("answered, %")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, labelcolor=GREY)


# name -> (its numbers, how it is drawn, size in inches, the text instead of the image)
FIGURES: dict[str, tuple[Callable[[Results], Any], Callable[[Any, Any], None], tuple[float, float], str]] = {
    "score": (score_data, draw_score, (7.6, 2.9), "Reliability, Generality, Locality and Score, unedited and edited"),
    "curve": (curve_data, draw_curve, (7.6, 3.2), "Score, Generality and Locality against the number of edits"),
    "probe": (probe_data, draw_probe, (7.6, 3.0), "What collected neurons answer, by layer"),
    "router": (router_data, draw_router, (5.0, 3.4), "Held-out ROC curve of the router"),
}


def draw(name: str, data: Any, path: Path) -> None:
    """Write a figure, its numbers inside."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.color": GREY,
        "axes.titlecolor": GREY,
        "axes.labelcolor": GREY,
        "axes.edgecolor": GREY,
        "xtick.color": GREY,
        "ytick.color": GREY,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 9,
    }
    _, painter, size, title = FIGURES[name]
    with matplotlib.rc_context(style):
        figure = Figure(size, layout="constrained")
        painter(figure, data)
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"Title": title, "Description": json.dumps(data), "Date": None, "Creator": None}
        figure.savefig(path, format="svg", transparent=True, metadata=metadata)


def drawn(path: Path) -> Any:
    """The numbers inside a figure; None when there is no such figure."""
    if not path.is_file():
        return None
    found = re.search(r"<dc:description>(.*?)</dc:description>", path.read_text("utf-8"), re.DOTALL)
    return json.loads(html.unescape(found[1])) if found else None
