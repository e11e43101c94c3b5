"""The measured tables of docs/serving.md and docs/vllm.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.markdown import Sets, number, table

KINDS = {"other": "other questions", "mixed": "half edited"}


def serving_load(sets: Sets) -> str:
    """Time and throughput of a server, with edits and without."""
    (found,) = sets.values()
    sizes = sorted((int(name.removeprefix("edits_")), name) for name in found if name.startswith("edits_"))
    rows = [[f"{size:,}", *row] for size, name in sizes for row in load_rows(found[name])]
    header = ["edits", "questions", "p50 off, ms", "p50 on", "%", "p99 off, ms", "p99 on", "%", "answers a second"]
    alone = number(found["one_by_one"]["requests_per_second"])
    times = f", {number(found['times_one_by_one'])} times fewer" if "times_one_by_one" in found else ""
    note = f"One answer after the other, by `MegModel`: {alone} a second{times}."
    return table(header, rows) + f"\n\n{note}"


def load_rows(load: Mapping[str, Any]) -> Iterator[list[str]]:
    """Times without edits and with them, by kind of questions."""
    for kind, title in KINDS.items():
        if kind not in load:
            continue
        of, row = load[kind], [title]
        for value in ("p50", "p99"):
            base, edited, percent = of["base"][value], of["edited"][value], of["percent"][value]
            row += [number(1000 * base, 0), number(1000 * edited, 0), number(percent)]
        yield [*row, number(of["edited"]["requests_per_second"])]


def serving_checks(sets: Sets) -> str:
    """Right answers under load, changes that survive a kill, and bad input."""
    rows = []
    if answers := sets.get("Answers"):
        what = f"{answers['requests']:,} requests of {answers['clients']} clients, {answers['with_an_edit']:,} edited"
        rows.append([what, "answers other than the Python model's", f"{answers['wrong']:,}"])
    if pauses := sets.get("Pauses"):
        what = f"{pauses['facts']} facts added in {number(pauses['adding_seconds'])} s, beside streamed answers"
        longest = f"{number(1000 * pauses['while_adding'], 0)} ({number(1000 * pauses['alone'], 0)} without)"
        rows.append([what, "longest time between two tokens, ms", longest])
    if crash := sets.get("Crashes"):
        made = crash["acknowledged"]
        changes, begun = made["put"] + made["remove"], made["consolidate"]
        what = (
            f"{crash['kills']:,} kills of the server, {changes:,} acknowledged changes, {begun:,} consolidations begun"
        )
        rows.append([what, "changes lost or half done", f"{crash['lost_or_half_done']:,}"])
    if fuzz := sets.get("Bad input"):
        memory = fuzz["memory_mb"]
        held = f"memory {memory[0]:,} MB at first, {max(memory):,} at most, {memory[-1]:,} at the end"
        what = f"{fuzz['requests']:,} made-up requests; {held}"
        rows.append([what, "server errors, tracebacks", f"{fuzz['failures'] + fuzz['tracebacks_in_the_log']:,}"])
    return table(["", "", "found"], rows)


def serving_vllm(sets: Sets) -> str:
    """vLLM's server with edits: its answers under load, and its time beside that without the plugin."""
    (found,) = sets.values()
    answers, bare = found["answers"], found["bare"]
    edited, base, idle = answers["edited"], answers["base"], answers["without_neuron"]

    strange = edited["of_another_question"] + base["of_another_question"]

    def than_alone(of: Mapping[str, Any]) -> str:
        gap = f" (gap at most {number(of['largest_gap'], 3)})" if of["other_than_alone"] else ""
        return f"{of['other_than_alone']:,}{gap}"

    rows = [
        [f"{answers['requests']:,} requests of {answers['clients']} clients", "lost", f"{answers['lost']:,}"],
        [
            f"{edited['by_python']:,} that `MegModel` answers with the target of an edit",
            "without it",
            f"{edited['missed']:,}",
        ],
        [f"{edited['requests']:,} with a neuron", "answered otherwise than alone", than_alone(edited)],
        [f"{base['requests']:,} without one", "answered otherwise than alone", than_alone(base)],
        ["those answered otherwise", "with the answer to another question", f"{strange:,}"],
        [
            f"{idle['questions']} questions without a neuron",
            "other with edits than without",
            f"{idle['other_than_off']}",
        ],
        [
            f"{bare['questions']} edited questions without the instruction",
            "without the target",
            f"{bare['questions'] - bare['with_target']}",
        ],
    ]
    header = ["questions", "p50 without, ms", "p50 with", "%", "p99 without, ms", "p99 with", "%", "answers a second"]
    note = f"The server was ready after {number(found['start_seconds'], 0)} seconds."
    return "\n\n".join((table(["", "", "found"], rows), table(header, load_rows(found["load"])), note))
