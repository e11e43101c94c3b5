"""Draw docs/images/map.svg, the rooms of the package and what imports what, from the code's own imports.

    python -m benchmarks.architecture            draw it
    python -m benchmarks.architecture --check    write nothing; exit 1 when the picture is not up to date

A room is a folder of `src/megedit` or a file of its own in it. `ROOMS` is their order: a room imports only from rooms
before it, which `tests/test_architecture.py` checks.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "megedit"
PICTURE = ROOT / "docs" / "images" / "map.svg"

ROOMS = {
    "errors": "the one error for users",
    "settings": "every setting, with its help text",
    "runtime": "files, devices, processes, progress",
    "edits": "from a file of facts to edits",
    "pseudo": "facts that are not edited",
    "lm": "the frozen language model",
    "neuron": "the dynamic neuron",
    "optimise": "many neurons at a time, by gradients",
    "collect": "knowledge-weight collection",
    "layers": "which layer takes the neuron",
    "encoder": "the text encoder",
    "router": "candidates, gate and verifier",
    "generator": "the weight generator",
    "checks": "whether generated neurons answer",
    "adapter": "the folder of data that holds all edits",
    "fitting": "the parts in order, resumable",
    "routes": "the route and the neuron of a query",
    "model": "generate, route, detach",
    "vllm": "the plugin for vLLM",
    "explain": "why a question is answered as it is",
    "operations": "edits added, removed, undone",
    "evaluate": "protocols, metrics, reports",
    "baselines": "the rival methods, side by side",
    "serve": "OpenAI's routes, edits beside them, a page",
    "cli": "the command meg",
}
FOUNDATION = ("errors", "settings", "runtime")  # imported from everywhere; the picture leaves these arrows out
PARTS = ("neuron", "collect", "encoder", "router", "generator")  # the five boxes of Figure 2 of the paper


def room(module: str) -> str:
    """The room of `megedit.a.b` is `a`; of the package itself, which exports names of all rooms, the empty text."""
    return [*module.split("."), ""][1]


def module_name(path: Path) -> str:
    """The dotted name of a file of the package."""
    return ".".join(["megedit", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")


def imported(path: Path) -> Iterator[str]:
    """The modules of the package that a file imports: at its head, inside functions and for type checkers."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("megedit."))
        elif isinstance(node, ast.ImportFrom) and node.module == "megedit":
            yield from (f"megedit.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("megedit."):
            yield str(node.module)


def imports() -> dict[tuple[str, str], list[str]]:
    """For each pair of rooms of which the first imports from the second: the modules that do so."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = module_name(path)
        for other in imported(path):
            pair = room(module), room(other)
            if "" not in pair and "__main__" not in pair and pair[0] != pair[1]:
                found.setdefault(pair, []).append(f"{module} imports {other}")
    return found


def direct(pairs: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The imports that no chain of other imports implies."""
    below = {name: {b for a, b in pairs if a == name} for name in ROOMS}

    def reached(name: str) -> set[str]:
        return {name}.union(*(reached(other) for other in below[name]))

    return {(a, b) for a, b in pairs if not any(b in reached(other) for other in below[a] - {b})}


def floors(pairs: set[tuple[str, str]]) -> list[list[str]]:
    """The rooms in rows, the foundation first: each stands directly below the lowest of those that import from it."""
    depth: dict[str, int] = {}
    for name in reversed(ROOMS):  # all that import from a room have their depth before it
        if name not in FOUNDATION:
            depth[name] = max((depth[a] + 1 for a, b in pairs if b == name), default=0)
    lowest = max(depth.values())
    return [list(FOUNDATION), *([name for name in depth if depth[name] == lowest - row] for row in range(lowest + 1))]


WIDTH, HEIGHT, ACROSS, DOWN, EDGE = 232, 44, 18, 34, 14
STYLE = """
text { font-family: system-ui, sans-serif; fill: #1f2328; text-anchor: middle }
.name { font-size: 14px; font-weight: 600 } .purpose { font-size: 11px; fill: #59636e }
.room { fill: #f6f8fa; stroke: #afb8c1 } .part { fill: #ddf4ff; stroke: #54aeff }
path { fill: none; stroke: #8c959f; stroke-width: 1.2 } .paper { fill: #ffffff }
"""


def picture() -> str:
    """The SVG: rooms on their floors, the command at the top, an arrow to each room that is imported from directly."""
    pairs = {(a, b) for a, b in imports() if b not in FOUNDATION}
    rows = floors(pairs)
    columns = max(len(row) for row in rows)
    width = 2 * EDGE + columns * WIDTH + (columns - 1) * ACROSS
    height = 2 * EDGE + len(rows) * HEIGHT + (len(rows) - 1) * DOWN
    place: dict[str, tuple[float, float]] = {}  # middle of the upper edge
    arrows = direct(pairs)
    for number, row in enumerate(rows):
        wished = {  # over the middle of what it imports from
            name: sum(below) / len(below) if (below := [place[b][0] for a, b in arrows if a == name]) else 0.0
            for name in row
        }
        row.sort(key=lambda name: wished[name])
        left = (width - len(row) * WIDTH - (len(row) - 1) * ACROSS) / 2
        y: float = height - EDGE - HEIGHT - number * (HEIGHT + DOWN)
        for index, name in enumerate(row):
            place[name] = (left + index * (WIDTH + ACROSS) + WIDTH / 2, y)
    lines = []
    for a, b in sorted(arrows):
        (x1, y1), (x2, y2) = place[a], place[b]
        y1, bend = y1 + HEIGHT, (y2 - y1 - HEIGHT) / 2
        lines.append(
            f'<path d="M{x1:.0f} {y1:.0f} C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2 - 3:.0f}"'
            ' marker-end="url(#head)"/>'
        )
    for name, (x, y) in place.items():
        kind = "part" if name in PARTS else "room"
        lines += [
            f'<rect class="{kind}" x="{x - WIDTH / 2:.0f}" y="{y:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>',
            f'<text class="name" x="{x:.0f}" y="{y + 18:.0f}">{name}</text>',
            f'<text class="purpose" x="{x:.0f}" y="{y + 34:.0f}">{ROOMS[name]}</text>',
        ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">',
            "<title>The rooms of the package, and from which rooms above the lowest row each imports</title>",
            f"<style>{STYLE}</style>",
            '<marker id="head" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M1 1 L7 4 L1 7" style="fill: #8c959f; stroke: none"/></marker>',
            f'<rect class="paper" width="{width}" height="{height}" rx="8"/>',
            *lines,
            "</svg>\n",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the picture is not up to date")
    check, drawn = parser.parse_args().check, picture()
    if PICTURE.is_file() and PICTURE.read_text("utf-8") == drawn:
        return
    if check:
        sys.exit(f"{PICTURE.relative_to(ROOT)}: not up to date")
    PICTURE.write_text(drawn, "utf-8")
    print(f"{PICTURE.relative_to(ROOT)}: written")


if __name__ == "__main__":
    main()
