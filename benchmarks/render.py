"""Write every measured table and figure of README.md and docs/ from benchmarks/results/*.json.

    python benchmarks/render.py            write them
    python benchmarks/render.py --check    write nothing; exit 1 and name what is not up to date

A table stands in a document between two HTML comments, `results:NAME` and `end`; what is between them is replaced.
A figure is an SVG in docs/images/ that carries the numbers it shows, so that a check needs no plotting library and
does not depend on its version. What has no result file yet reads "(not measured yet)".
"""

from __future__ import annotations

import argparse
import html
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MISSING = "(not measured yet)"
NONE = "-"
BLOCK = re.compile(r"<!-- results:(\S+) -->\n(?:(?!<!-- results:).)*?<!-- end -->", re.DOTALL)

SETS = {"CounterFact": "edit_1000_counterfact", "ZsRE-style": "edit_1000_zsre_style"}
RAW = {"CounterFact, no template": "edit_1000_counterfact_raw"}
METRICS = [(kind, measure) for kind in ("reliability", "generality", "locality") for measure in ("ag", "tf")]

Result = Mapping[str, Any]  # a file that common.write_result wrote
Results = Mapping[str, Result]  # by the name of the file


# ---------------------------------------------------------------------------------------------------
# Markdown


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table: the first column on the left, the others on the right."""
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | None, digits: int = 1) -> str:
    return NONE if value is None else f"{value:,.{digits}f}"


def measured(results: Results, names: Mapping[str, str]) -> str:
    """The line below a table: for each result file the machine, the date and the commit."""
    lines = []
    for title, name in names.items():
        if name not in results:
            lines.append(f"{title}: {MISSING}")
            continue
        machine, commit = results[name]["machine"], results[name]["commit"]
        changed = " with uncommitted changes" if commit.endswith("changes") else ""
        lines.append(
            f"{title}: {machine['processor']}, {machine['threads']} of {machine['cores']} cores, "
            f"{number(machine['memory_gib'])} GiB; {results[name]['date']}; commit `{commit[:10]}`{changed}."
        )
    return "<sub>" + "<br>\n".join(lines) + "</sub>"


def present(results: Results, names: Mapping[str, str]) -> dict[str, Any]:
    """The `results` of those files that are there, by title."""
    return {title: results[name]["results"] for title, name in names.items() if name in results}


# ---------------------------------------------------------------------------------------------------
# Tables: each gives its Markdown, or None when no result file of it is there


def quality(results: Results, names: Mapping[str, str]) -> str | None:
    """Metrics of the unedited and the edited model, and what the fit cost."""
    sets = present(results, names)
    if not sets:
        return None
    models = [(title, model) for title in sets for model in ("unedited", "edited")]

    def metric_row(name: str, key: str) -> list[str]:
        return [name, *(number(sets[title][model][key]) for title, model in models)]

    def cost_row(name: str, cost: Callable[[Any], str]) -> list[str]:
        return [name, *(cost(sets[title]) if model == "edited" else "" for title, model in models)]

    return table(
        ["percent", *(f"{title}, {model}" for title, model in models)],
        [
            *(metric_row(f"{kind.capitalize()}, {measure.upper()}", f"{kind}_{measure}") for kind, measure in METRICS),
            metric_row("**Score**", "score"),
            cost_row("Edits (failed)", lambda r: f"{r['counts']['reliability']:,} ({len(r['failed'])})"),
            cost_row("Fit, minutes", lambda r: number(r["fit_seconds"] / 60)),
            cost_row("Peak memory, GiB", lambda r: number(r["fit_peak_memory_mb"] / 1024)),
            cost_row("Collection, seconds an edit", lambda r: number(r["collection_seconds_per_edit"], 3)),
            cost_row("Adapter, MB", lambda r: number(r["adapter_mb"])),
        ],
    )


def stages(results: Results) -> str | None:
    """Seconds and memory of every stage."""
    sets = present(results, SETS)
    if not sets:
        return None
    names = list(dict.fromkeys(stage for values in sets.values() for stage in values["stages"]))
    rows = []
    for name in names:
        costs = [values["stages"].get(name) for values in sets.values()]
        cells = [
            cell
            for cost in costs
            for cell in ([number(cost["seconds"]), number(cost["peak_memory_mb"] / 1024)] if cost else [NONE, NONE])
        ]
        rows.append([name, *cells])
    columns = [f"{title}, {what}" for title in sets for what in ("seconds", "peak GiB so far")]
    return table(["stage", *columns], rows)


def router(results: Results) -> str | None:
    """Decision rules of the router on held-out pseudo-knowledge, each at its own best threshold."""
    sets = present(results, SETS)
    if not sets:
        return None
    rows = []
    for title, values in sets.items():
        calibration = values["calibration"]
        for rule, found in calibration["rules"].items():
            used = " (used)" if rule == calibration["rule"] else ""
            rates = (number(100 * found[f"{kind}_positive_rate"]) for kind in ("true", "false"))
            rows.append([f"{title}: {rule}{used}", number(found["auc"], 4), *rates])
    header = ["rule", "area under the ROC curve", "rephrases recognised, %", "other queries let through, %"]
    return table(header, rows)


def noisy(results: Results) -> str | None:
    """Generality with and without a noise sentence in front of the rephrase."""
    rows = []
    for title, values in present(results, {"CounterFact": SETS["CounterFact"], **RAW}).items():
        for name, found in (("rephrase", values["edited"]), ("behind a noise sentence", values.get("noisy_rephrases"))):
            if found:
                rows.append([f"{title}: {name}", number(found["generality_ag"]), number(found["generality_tf"])])
    return table(["percent", "Generality, AG", "Generality, TF"], rows) if rows else None


def overhead(results: Results) -> str | None:
    """What the edits add to the time of an answer."""
    if "overhead" not in results:
        return None
    found = results["overhead"]["results"]
    rows = [
        ["unedited model, unfamiliar queries", number(found["base_seconds"], 3), ""],
        [
            "edited model, unfamiliar queries",
            number(found["unfamiliar_seconds"], 3),
            number(found["unfamiliar_percent"]),
        ],
        ["unedited model, familiar queries", number(found.get("familiar_base_seconds"), 3), ""],
        ["edited model, familiar queries", number(found["familiar_seconds"], 3), number(found["familiar_percent"])],
        ["routing alone", number(found["routing_seconds"], 3), ""],
        ["generating the neurons alone", number(found["generating_seconds"], 3), ""],
    ]
    size, tokens, runs = found["batch_size"], found["new_tokens"], found["runs"]
    note = f"{size} queries a batch, {tokens} new tokens each, medians of {runs} batches."
    return table(["", "seconds a batch", "more than unedited, %"], rows) + f"\n\n{note}"


def evaluation_cost(results: Results) -> str | None:
    """What the timed evaluation took."""
    if "evaluation" not in results:
        return None
    found = results["evaluation"]["results"]
    row = [number(found["edits"], 0), number(found["questions"], 0), number(found["seconds"] / 60)]
    return table(["edits", "questions", "minutes"], [row])


def protocols(results: Results) -> str | None:
    """Every protocol's metrics of one adapter."""
    if "evaluation" not in results:
        return None
    rows = []
    for name, row in results["evaluation"]["results"]["rows"].items():
        for metric in row["metrics"]:
            edited, unedited = metric["edited"], metric["unedited"]
            if edited:
                interval = f"{number(edited['low'])} to {number(edited['high'])}"
                label = metric["label"] if metric["unit"] == "%" else f"{metric['label']}, {metric['unit']}"
                before = number(unedited["value"]) if unedited else NONE
                rows.append([f"{name}: {label}", before, number(edited["value"]), interval, str(edited["count"])])
    return table(["protocol and metric", "unedited", "edited", "95% interval", "edits"], rows)


Column = tuple[str, str, int | None]  # header, key, decimals; None: text as it is
QUALITY: list[Column] = [("reliability, %", "reliability", 1), ("clean, %", "clean", 1), ("noisy, %", "noisy", 1)]
COST: list[Column] = [("seconds an edit", "seconds_per_edit", 3), ("steps", "mean_steps", 1)]
ROWS: dict[str, list[Column]] = {
    "positions": [("neuron acts on", "span", None), ("layer", "layer", 0), *QUALITY, *COST],
    "collection": [
        ("layer", "layer", 0),
        ("margin", "margin", 1),
        ("key lr", "key_lr", 3),
        ("value lr", "value_lr", 2),
        ("ending", "ending", None),
        *QUALITY,
        *COST,
    ],
    "generators": [
        ("generator", "name", None),
        ("parameters, millions", "parameters_millions", 1),
        ("steps", "steps", 0),
        ("seconds", "seconds", 0),
        *QUALITY,
    ],
}


def plain_rows(results: Results, name: str) -> str | None:
    """A result that is a list of rows already."""
    if name not in results:
        return None

    def cell(row: Mapping[str, Any], key: str, digits: int | None) -> str:
        value = row.get(key)
        return str(value) if digits is None and value is not None else number(value, digits or 0)

    rows = results[name]["results"]["rows"]
    columns = ROWS[name]
    return table(
        [header for header, _, _ in columns], [[cell(row, k, digits) for _, k, digits in columns] for row in rows]
    )


# name -> (the table, the result files it is made from)
TABLES: dict[str, tuple[Callable[[Results], str | None], dict[str, str]]] = {
    "headline": (lambda results: quality(results, SETS), SETS),
    "stages": (stages, SETS),
    "router": (router, SETS),
    "noisy": (noisy, {"CounterFact": SETS["CounterFact"], **RAW}),
    "raw": (lambda results: quality(results, RAW), RAW),
    "evaluation": (evaluation_cost, {"Evaluation": "evaluation"}),
    "protocols": (protocols, {"Evaluation": "evaluation"}),
    "overhead": (overhead, {"Overhead": "overhead"}),
    "positions": (lambda results: plain_rows(results, "positions"), {"Positions": "positions"}),
    "collection": (lambda results: plain_rows(results, "collection"), {"Collection": "collection"}),
    "generators": (lambda results: plain_rows(results, "generators"), {"Generators": "generators"}),
}


# ---------------------------------------------------------------------------------------------------
# Figures: the numbers of each, or None, and how they are drawn

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
                values["calibration"]["rules"][values["calibration"]["rule"]][f"{kind}_positive_rate"]
                for kind in ("false", "true")
            ],
        }
        for title, values in present(results, SETS).items()
        if values.get("calibration_curve")
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


# name -> (its numbers, how it is drawn, size in inches, the text instead of the image)
FIGURES: dict[str, tuple[Callable[[Results], Any], Callable[[Any, Any], None], tuple[float, float], str]] = {
    "score": (score_data, draw_score, (7.6, 2.9), "Reliability, Generality, Locality and Score, unedited and edited"),
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


# ---------------------------------------------------------------------------------------------------
# Documents


def load_results(root: Path) -> dict[str, Result]:
    return {path.stem: json.loads(path.read_text("utf-8")) for path in (root / "benchmarks" / "results").glob("*.json")}


def documents(root: Path) -> list[Path]:
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def figure_path(root: Path, name: str) -> Path:
    return root / "docs" / "images" / f"{name}.svg"


def block(name: str, document: Path, root: Path, results: Results) -> str:
    """What stands between the comments `results:NAME` and `end` of a document. Raises ValueError for other names."""
    if name.removesuffix("-figure") in FIGURES and name.endswith("-figure"):
        figure = name.removesuffix("-figure")
        data, _, _, title = FIGURES[figure]
        link = os.path.relpath(figure_path(root, figure), document.parent)
        return MISSING if data(results) is None else f"![{title}]({Path(link).as_posix()})"
    if name not in TABLES:
        raise ValueError(f"{document.name}: no table or figure is called {name!r}")
    make, sources = TABLES[name]
    body = make(results)
    return MISSING if body is None else f"{body}\n\n{measured(results, sources)}"


def rendered(document: Path, root: Path, results: Results) -> str:
    """The text of a document as it should be. Raises ValueError when its comments do not pair up."""
    text = document.read_text("utf-8")
    if not len(BLOCK.findall(text)) == text.count("<!-- results:") == text.count("<!-- end -->"):
        raise ValueError(f"{document.name}: every results comment needs an end comment")

    def replaced(match: re.Match[str]) -> str:
        return f"<!-- results:{match[1]} -->\n\n{block(match[1], document, root, results)}\n\n<!-- end -->"

    return BLOCK.sub(replaced, text)


def outdated(root: Path = ROOT) -> list[Path]:
    """The documents and figures that differ from what the result files say."""
    results = load_results(root)
    texts = [path for path in documents(root) if rendered(path, root, results) != path.read_text("utf-8")]
    wanted = {figure_path(root, name): parts[0](results) for name, parts in FIGURES.items()}
    return texts + [path for path, data in wanted.items() if json.loads(json.dumps(data)) != drawn(path)]


def write(root: Path = ROOT) -> list[Path]:
    """Bring everything up to date; returns what was written."""
    results = load_results(root)
    changed = outdated(root)
    for path in changed:
        if path.suffix == ".md":
            path.write_text(rendered(path, root, results), "utf-8")
            continue
        data = FIGURES[path.stem][0](results)
        if data is None:
            path.unlink()
        else:
            draw(path.stem, data, path)
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when something is not up to date")
    check = parser.parse_args().check
    changed = outdated() if check else write()
    for path in changed:
        print(f"{path.relative_to(ROOT)}: {'not up to date' if check else 'written'}")
    sys.exit(1 if check and changed else 0)


if __name__ == "__main__":
    main()
