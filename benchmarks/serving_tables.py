"""The measured tables of docs/serving.md."""

from __future__ import annotations

from benchmarks.markdown import Sets, number, table


def serving_load(sets: Sets) -> str:
    """Time and throughput of a server, with edits and without."""
    (found,) = sets.values()
    sizes = sorted((int(name.removeprefix("edits_")), name) for name in found if name.startswith("edits_"))
    kinds = {"other": "other questions", "mixed": "half edited"}
    rows = []
    for size, name in sizes:
        for kind, title in kinds.items():
            if kind not in found[name]:
                continue
            of = found[name][kind]
            row = [f"{size:,}", title]
            for value in ("p50", "p99"):
                base, edited, percent = of["base"][value], of["edited"][value], of["percent"][value]
                row += [number(1000 * base, 0), number(1000 * edited, 0), number(percent)]
            rows.append([*row, number(of["edited"]["requests_per_second"])])
    header = ["edits", "questions", "p50 off, ms", "p50 on", "%", "p99 off, ms", "p99 on", "%", "answers a second"]
    alone = number(found["one_by_one"]["requests_per_second"])
    times = f", {number(found['times_one_by_one'])} times fewer" if "times_one_by_one" in found else ""
    note = f"One answer after the other, by `MegModel`: {alone} a second{times}."
    return table(header, rows) + f"\n\n{note}"


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
        what = f"{fuzz['requests']:,} made-up requests; memory {memory[0]:,} MB, then {memory[-1]:,} MB"
        rows.append([what, "server errors, tracebacks", f"{fuzz['failures'] + fuzz['tracebacks_in_the_log']:,}"])
    return table(["", "", "found"], rows)
