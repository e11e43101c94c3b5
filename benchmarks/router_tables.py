"""The tables of what the router reads, and of what neurons answer in other prompt formats."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.markdown import NONE, Sets, number, table


def reading(sets: Sets) -> str:
    """What the verifier recognises of each set at several shares of false fires."""
    found = [item for values in sets.values() for item in sorted(values["sets"].items())]
    rates = [f"recognised at {rate} false" for rate in found[0][1]["recognised"]]
    rows = [[name, *map(str, row["texts"].values()), *map(number, row["recognised"].values())] for name, row in found]
    return table(["set", "texts that ask", "that do not", *rates], rows)


def false_fires(sets: Sets) -> str:
    """The curve that is shipped: what a share of near misses that may fire costs in recognition."""
    points = [point for values in sets.values() for point in values["curve"]]
    rows = [[f"{false:.1%}", number(threshold, 2), f"{recognised:.1%}"] for threshold, false, recognised in points]
    return table(["near misses that fire", "the verifier's threshold", "recognised"], rows)


def contrast(sets: Sets) -> str:
    """Of each set what the router recognises and what fires falsely, with intervals."""
    found = [item for values in sets.values() for item in values.items()]
    rows = [[name, str(row["facts"]), interval(row["recognised"]), interval(row["false"])] for name, row in found]
    return table(["set", "facts", "recognised", "false"], rows)


def contrast_kinds(sets: Sets, name: str) -> str:
    """The same of one set, by kind."""
    kinds = [item for values in sets.values() for item in values[name]["kinds"].items()]
    return table(["side: kind", "texts", "fires"], [[kind, str(row["count"]), interval(row)] for kind, row in kinds])


def contrast_examples(sets: Sets, name: str) -> str:
    """Some failures of one set."""
    sides = [item for values in sets.values() for item in values[name]["examples"].items()]
    titles = {"fire": "missed", "not": "fires falsely"}
    rows = [
        [titles[side], row["kind"], row["query"].replace("\n", " / "), row["fact"]] for side, of in sides for row in of
    ]
    return table(["", "kind", "text", "fact"], [[cell.replace("|", "/") for cell in row] for row in rows])


def contrast_many(sets: Sets) -> str:
    """Among many edits: other questions, the share that fires and that is read by the verifier."""
    rows = ((name, row) for values in sets.values() for name, row in values.items() if isinstance(row, dict))
    found = [(name, row) for name, row in rows if "fires_own" in row]
    columns = {"asked": 0, "fires_own": 1, "fires": 2, "read_by_verifier": 1}
    cells = [[name, *(number(row[column], digits) for column, digits in columns.items())] for name, row in found]
    return table(["question", "asked", "fires its own edit, %", "fires any edit, %", "read by the verifier, %"], cells)


def contrast_many_facts(sets: Sets) -> str:
    """The facts with contrast texts among them, as in `contrast`."""
    return contrast({title: {"contrast_science": values["contrast_science"]} for title, values in sets.items()})


def interval(estimate: Mapping[str, float] | None) -> str:
    """A share in per cent, with its bootstrap interval."""
    return NONE if estimate is None else f"{estimate['value']:.1f} ({estimate['low']:.1f} to {estimate['high']:.1f})"


def formats(sets: Sets) -> str:
    """Answers in other prompt formats, by the number of formats that a neuron was collected in beside its own."""
    rows = [row for values in sets.values() for row in values["rows"]]
    names = [str(row["contexts"]) for row in rows]
    of_formats = [[name, *(number(row["percent_right"][name]) for row in rows)] for name in rows[0]["percent_right"]]
    below = [["empty answers, of all", *(str(row["empty"]) for row in rows)]]
    below += [["collection, seconds", *(number(row["seconds"], 0) for row in rows)]]
    return table(["format, percent right", *(f"{name} further formats" for name in names)], of_formats + below)
