"""The measured tables of README.md and docs/: each is made from result files, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from benchmarks.comparison_tables import comparison, comparison_cost, comparison_quality, comparison_settings
from benchmarks.markdown import NONE, Sets, number, table
from benchmarks.router_tables import (
    contrast,
    contrast_examples,
    contrast_kinds,
    contrast_many,
    contrast_many_facts,
    false_fires,
    formats,
    reading,
)
from benchmarks.serving_tables import serving_checks, serving_load, serving_vllm
from benchmarks.sources import ANCHORS, CURVE, DEVICES, FAMILIES, HARDER, PROBES, RAW, SETS, SHAPES, TWO_CORES, UNSEEN
from megedit.router.decision import kind_of

METRICS = [(kind, measure) for kind in ("reliability", "generality", "locality") for measure in ("ag", "tf")]
FURTHER = {  # rows of further questions in a result: what they are, and the metric
    "noisy_rephrases": ("rephrase behind a noise sentence", "generality"),
    "same_form_neighbours": ("question of the same form about another subject", "locality"),
    "other_questions": ("another question about an edited subject", "locality"),
}


# ---------------------------------------------------------------------------------------------------
# Tables: each gives the Markdown of the `results` of its files by title; one of them is there at least


def quality(sets: Sets) -> str:
    """Metrics of the unedited and the edited model, and what the fit cost."""
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
            cost_row("Edits (failed)", lambda r: f"{r['edits']:,} ({len(r['failed'])})"),
            cost_row("Edits asked", lambda r: number(r["counts"]["reliability"], 0)),
            cost_row("Fit, minutes", lambda r: number(r["fit_seconds"] / 60)),
            cost_row("Peak memory, GiB", lambda r: number(r["fit_peak_memory_mb"] / 1024)),
            *([cost_row("Peak GPU memory, GiB", gpu_memory)] if any(map(on_gpu, sets.values())) else []),
            cost_row("Collection, seconds an edit", lambda r: number(r["collection_seconds_per_edit"], 3)),
            cost_row("Adapter, MB", lambda r: number(r["adapter_mb"])),
        ],
    )


def on_gpu(values: Mapping[str, Any]) -> bool:
    return "fit_peak_gpu_memory_mb" in values


def gpu_memory(values: Mapping[str, Any]) -> str:
    return number(values["fit_peak_gpu_memory_mb"] / 1024) if on_gpu(values) else NONE


def stages(sets: Sets) -> str:
    """Seconds and memory of every stage."""
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


def probes(sets: Sets) -> str:
    """The quality of collected neurons in each layer of the models that were probed."""
    rows = []
    for title, values in sets.items():
        for row in values["rows"]:
            chosen = " (recommended)" if row["layer"] == values["recommended"] else ""
            figures = (number(row[key]) for key in ("reliability", "generality", "norm"))
            rows.append([f"{title}, layer {row['layer']}{chosen}", *figures, number(row["seconds"], 3)])
    return table(["layer", "reliability, %", "other wordings, %", "norm of v", "seconds an edit"], rows)


GROWTH = {  # of the stages of a fit
    "Collecting neurons": "edits",
    "Encoding the edits": "edits",
    "Encoding held-out questions": "not at all",
    "Training the router": "edits",
    "Training the generator": "edits",
    "Checking generated neurons": "edits",
}


def scaling(sets: Sets) -> str:
    """Each stage as it was measured, and as many hours as a million edits make of it."""
    (found,) = sets.values()
    rows, together, total = [], 0.0, 0.0
    for stage, law in GROWTH.items():
        seconds = found["stages"].get(stage, {"seconds": 0.0})["seconds"]
        hours = seconds * (1e6 / found["edits"] if law == "edits" else 1) / 3600
        rows.append([stage, law, number(seconds), number(hours)])
        together, total = together + seconds, total + hours
    rows.append(["**together**", "", number(together), number(total)])
    header = ["stage", "grows with", f"seconds, {found['edits']:,} edits", "hours, 1,000,000 edits (extrapolated)"]
    return table(header, rows)


def router(sets: Sets) -> str:
    """Features by which the gate can judge, on held-out facts, each at the threshold that ends hardly any rephrase."""
    rows = []
    for title, values in sets.items():
        calibration = values["calibration"]
        for kind, found in calibration["decisions"].items():
            used = " (used)" if kind == kind_of(calibration["rule"]) else ""
            rates = (number(100 * found[f"{side}_positive_rate"]) for side in ("true", "false"))
            rows.append([f"{title}: {kind}{used}", number(found["auc"], 4), *rates])
    header = ["gate", "area under the ROC curve", "rephrases let through, %", "other queries let through, %"]
    return table(header, rows)


def further(sets: Sets) -> str:
    """Harder questions: the same metric on what the headline table asks, and on these."""
    rows = []
    for title, values in sets.items():
        for key, (name, kind) in FURTHER.items():
            if values.get(key):
                found, usual = values[key], values["edited"]
                metrics = (number(each[f"{kind}_{measure}"]) for each in (usual, found) for measure in ("ag", "tf"))
                rows.append([f"{title}: {name}", kind.capitalize(), *metrics])
    header = ["percent", "metric", "usual, AG", "usual, TF", "these, AG", "these, TF"]
    return table(header, rows)


def curve(sets: Sets) -> str:
    """Quality and cost against the number of edits."""
    rows = [
        [
            title,
            *(number(values["edited"][key]) for key in ("score", "reliability_ag", "generality_ag", "locality_ag")),
            number(values.get("noisy_rephrases", {}).get("generality_ag")),
            number(len(values["generated_uncertain"]), 0),
            number(values["fit_seconds"] / 60),
            number(values["fit_peak_memory_mb"] / 1024),
            number(values["collection_seconds_per_edit"], 3),
            number(values["adapter_mb"]),
        ]
        for title, values in sets.items()
    ]
    header = ["edits", "Score", "Reliability, AG", "Generality, AG", "Locality, AG", "noisy rephrase, AG", "not learnt"]
    costs = ["fit, minutes", "peak memory, GiB", "collection, seconds an edit", "adapter, MB"]
    return table([*header, *costs], rows)


def overhead(sets: Sets) -> str:
    """The time that the edits add to an answer."""
    (found,) = sets.values()
    costs = {
        "routing alone": found["routing_seconds"],
        "generating the neurons alone": found["generating_seconds"],
        "routing and generating": found["routing_seconds"] + found["generating_seconds"],
    }
    alone = [
        [name, number(spent, 3), number(100 * spent / found["familiar_base_seconds"])] for name, spent in costs.items()
    ]
    rows = [
        ["unedited model, unfamiliar queries", number(found["base_seconds"], 3), ""],
        [
            "edited model, unfamiliar queries",
            number(found["unfamiliar_seconds"], 3),
            number(found["unfamiliar_percent"]),
        ],
        ["unedited model, familiar queries", number(found["familiar_base_seconds"], 3), ""],
        ["edited model, familiar queries", number(found["familiar_seconds"], 3), number(found["familiar_percent"])],
        *alone,
        ["both, for queries that are remembered", number(found["remembered_seconds"], 4), ""],
    ]
    size, tokens, runs = found["batch_size"], found["new_tokens"], found["runs"]
    note = f"{size} queries a batch, {tokens} new tokens each, medians of {runs} batches."
    return table(["", "seconds a batch", "added to the unedited answer, %"], rows) + f"\n\n{note}"


def evaluation_cost(sets: Sets) -> str:
    """The time that the evaluation took."""
    (found,) = sets.values()
    row = [number(found["edits"], 0), number(found["questions"], 0), number(found["seconds"] / 60)]
    return table(["edits", "questions", "minutes"], [row])


def protocols(sets: Sets) -> str:
    """Every protocol's metrics of one adapter."""
    (found,) = sets.values()
    rows = []
    for name, row in found["rows"].items():
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
SECONDS: Column = ("seconds an edit", "seconds_per_edit", 3)
ROWS: dict[str, list[Column]] = {
    "sampling": [
        ("DDIM steps", "steps", 0),
        ("Score", "score", 1),
        ("Reliability, AG", "reliability_ag", 1),
        ("Generality, AG", "generality_ag", 1),
        ("Locality, AG", "locality_ag", 1),
        ("seconds for 16 queries", "sampling_seconds", 4),
    ],
    "anchor": [("edits", "title", None), ("share of the nearest edit's vector", "anchor", 2), *QUALITY],
    "startup": [("command", "command", None), ("CPU seconds", "cpu_seconds", 2)],
    "index": [
        ("vectors", "vectors", 0),
        ("compared with", "way", None),
        ("index made in, seconds", "build_seconds", 1),
        ("milliseconds a query", "ms", 2),
        ("nearest edit found, %", "found_1", 2),
        ("nearest four found, %", "found_4", 2),
    ],
    "positions": [("neuron acts on", "positions", None), *QUALITY, SECONDS],
    "collection": [("collection", "name", None), *QUALITY, SECONDS],
    "generators": [
        ("generator", "name", None),
        ("parameters, millions", "parameters_millions", 1),
        ("steps", "steps", 0),
        ("seconds", "seconds", 0),
        *QUALITY,
    ],
}
RECIPE: list[tuple[str, str, int, bool]] = [  # what is measured, key, decimals, whether it is a cost
    ("edits collected", "collected", 0, False),
    ("collection, seconds an edit", "collection_seconds_per_edit", 3, True),
    ("collection, % reached", "collection_reliability", 1, False),
    ("generator, million parameters", "parameters_millions", 1, False),
    ("training, seconds", "training_seconds", 0, False),
    ("training, steps", "training_steps", 0, False),
    ("training, seconds a step", "step_seconds", 2, True),
    *((header, key, digits or 0, False) for header, key, digits in QUALITY),
    ("DDIM steps", "sample_steps", 0, False),
    ("sampling, seconds for 16 queries", "sampling_seconds", 4, True),
]


def life(sets: Sets) -> str:
    """Edits added to many, others removed, all of it consolidated: what it costs, and the metrics after each step."""
    (found,) = sets.values()
    seconds = {step["name"]: number(step["seconds"]) for step in found["steps"]}
    steps = (None, "add", "remove", "consolidate")
    keys = [f"{group}_{metric}_ag" for group in ("old", "new") for metric in ("reliability", "generality", "locality")]
    rows = [
        [row["name"], seconds.get(step or "", ""), *(number(row.get(key)) for key in (*keys, "removed_unfamiliar"))]
        for step, row in zip(steps, found["rows"], strict=True)
    ]
    metrics = [f"{group}: {metric}" for group in ("old edits", "new") for metric in ("Rel.", "Gen.", "Loc.")]
    header = ["adapter", "seconds", *metrics, "removed, left to the base model"]
    large, share = found["large"], number(found["consolidation_percent_of_fit"])
    note = (
        f"{found['edits']:,} edits, {found['new']} added, {found['removed']} removed; AG in percent. The consolidation "
        f"took {share} % of the time of the fit. Among {large['edits']:,} made-up edits: the first 20 listed in "
        f"{number(large['list_20_ms'])} ms, a text searched in {number(large['search_ms'])} ms, the nearest edit of a "
        f"query found in {number(large['route_1_ms'])} ms, of 16 queries in {number(large['route_16_ms'])} ms, with "
        f"{number(large['routing_mb'])} MB of vectors."
    )
    return table(header, rows) + f"\n\n{note}"


def shapes(sets: Sets) -> str:
    """Collection on models of the shapes of large ones: edits at a time, speed, memory."""
    rows = [
        [
            f"{title}, {number(values['parameters_billions'], 2)} billion",
            number(row["batch_size"], 0),
            number(row["edits_per_second"]),
            number(row["seconds_per_edit"], 4),
            number(row["peak_memory_gib"]),
        ]
        for title, values in sets.items()
        for row in values["rows"]
    ]
    header = ["parameters", "edits at a time", "edits a second", "seconds an edit", "peak memory, GiB"]
    return table(header, rows)


def shape_generators(sets: Sets) -> str:
    """A training step of each generator on the neurons of these models."""
    rows = [
        [
            f"{title}, {row['name']}",
            number(values["weight_size"], 0),
            number(1000 * row["seconds_per_step"]),
            number(row["peak_memory_gib"]),
        ]
        for title, values in sets.items()
        for row in values["generators"]
    ]
    header = ["generator", "numbers of a neuron", "milliseconds a step", "peak memory with the model, GiB"]
    return table(header, rows)


def recipe(sets: Sets) -> str:
    """The paper's recipe and ours; where a number is a cost, how many times ours the paper's is."""
    (found,) = sets.values()
    paper, ours = ({**row, "step_seconds": row["training_seconds"] / row["training_steps"]} for row in found["rows"])
    rows = []
    for header, key, digits, cost in RECIPE:
        factor = number(paper[key] / ours[key], 0) if cost else ""
        rows.append([header, number(paper[key], digits), number(ours[key], digits), factor])
    return table(["", "paper", "ours", "factor"], rows)


def busy(sets: Sets) -> str:
    """Seconds of a training step of the encoder, alone and beside other work, under ways to wait for threads."""
    ways = {way: row for values in sets.values() for way, row in values["seconds_per_step"].items()}
    beside = list(next(iter(ways.values())))
    rows = [[way, *(number(row[name], 2) for name in beside)] for way, row in ways.items()]
    return table(["threads wait", *(f"beside {name}" for name in beside)], rows)


def plain_rows(sets: Sets, name: str) -> str:
    """Results that are lists of rows already, one below the other; `title` is that of the file a row is from."""

    def cell(row: Mapping[str, Any], key: str, digits: int | None) -> str:
        value = row.get(key)
        return str(value) if digits is None and value is not None else number(value, digits or 0)

    rows = [{"title": title, **row} for title, values in sets.items() for row in values["rows"]]
    cells = [[cell(row, key, digits) for _, key, digits in ROWS[name]] for row in rows]
    return table([header for header, _, _ in ROWS[name]], cells)


PLAIN = {
    **{
        name: {name.capitalize(): name}
        for name in ("sampling", "positions", "collection", "generators", "startup", "index")
    },
    "anchor": ANCHORS,
}

# name -> (the table, the result files it is made from)
TABLES: dict[str, tuple[Callable[[Sets], str], dict[str, str]]] = {
    "headline": (quality, SETS),
    "stages": (stages, TWO_CORES),
    "devices": (quality, DEVICES),
    "device-stages": (stages, DEVICES),
    "shapes": (shapes, SHAPES),
    "shape-generators": (shape_generators, SHAPES),
    "scaling": (scaling, {"CounterFact": SETS["CounterFact"]}),
    "families": (quality, FAMILIES),
    "probes": (probes, PROBES),
    "router": (router, SETS),
    "further": (further, HARDER),
    "unseen": (quality, UNSEEN),
    "curve": (curve, CURVE),
    "raw": (quality, RAW),
    "evaluation": (evaluation_cost, {"Evaluation": "evaluation"}),
    "protocols": (protocols, {"Evaluation": "evaluation"}),
    "life": (life, {"Life": "life"}),
    "overhead": (overhead, {"Overhead": "overhead"}),
    "serving-load": (serving_load, {"Load": "serving"}),
    "serving-checks": (
        serving_checks,
        {
            "Answers": "serving_answers",
            "Pauses": "serving_pauses",
            "Crashes": "serving_crash",
            "Bad input": "serving_fuzz",
        },
    ),
    "serving-vllm": (serving_vllm, {"vLLM": "serving_vllm"}),
    "busy": (busy, {"Busy": "busy"}),
    "formats": (formats, {"Formats": "formats"}),
    "reading": (reading, {"Reading": "reading"}),
    "false-fires": (false_fires, {"Reading": "reading"}),
    "contrast": (contrast, {"Router": "contrast"}),
    "contrast-kinds": (partial(contrast_kinds, name="test contrast_science"), {"Router": "contrast"}),
    "contrast-examples": (partial(contrast_examples, name="test contrast_science"), {"Router": "contrast"}),
    "contrast-many-facts": (contrast_many_facts, {"Router, 10,000 edits": "contrast_10000_cuda"}),
    "contrast-many": (contrast_many, {"Router, 10,000 edits": "contrast_10000_cuda"}),
    "comparison": (comparison, {"1,000 edits": "comparison_1000"}),
    "comparison-quality": (comparison_quality, {"1,000 edits": "comparison_1000"}),
    "comparison-cost": (comparison_cost, {"1,000 edits": "comparison_1000"}),
    "comparison-settings": (comparison_settings, {"100 other edits": "comparison_settings"}),
    "comparison-ablations": (comparison, {"320 edits": "ablations_320"}),
    "recipe": (recipe, {"Recipes": "recipe"}),
    "recipe-gpu": (recipe, {"Recipes": "recipe_cuda"}),
    **{name: (partial(plain_rows, name=name), files) for name, files in PLAIN.items()},
}
