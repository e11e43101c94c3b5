"""Write every measured table and figure of README.md and docs/ from benchmarks/results/*.json.

    python -m benchmarks.render            write them
    python -m benchmarks.render --check    write nothing; exit 1 and name what is not up to date

A table stands in a document between two HTML comments, `results:NAME` and `end`; what is between them is replaced.
A figure is an SVG in docs/images/ that carries the numbers it shows, so that a check needs no plotting library and
does not depend on its version. What has no result file yet reads "(not measured yet)".
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path

from benchmarks.figures import FIGURES, draw, drawn
from benchmarks.sources import MISSING, Result, Results, measured, present
from benchmarks.tables import TABLES

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"<!-- results:(\S+) -->\n(?:(?!<!-- results:).)*?<!-- end -->", re.DOTALL)


def load_results(root: Path) -> dict[str, Result]:
    return {path.stem: json.loads(path.read_text("utf-8")) for path in (root / "benchmarks" / "results").glob("*.json")}


def documents(root: Path) -> list[Path]:
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def figure_path(root: Path, name: str) -> Path:
    return root / "docs" / "images" / f"{name}.svg"


def block(name: str, document: Path, root: Path, results: Results) -> str:
    """The text between the comments `results:NAME` and `end` of a document. Raises ValueError for other names."""
    if name.removesuffix("-figure") in FIGURES and name.endswith("-figure"):
        figure = name.removesuffix("-figure")
        data, _, _, title = FIGURES[figure]
        link = os.path.relpath(figure_path(root, figure), document.parent)
        return MISSING if data(results) is None else f"![{title}]({Path(link).as_posix()})"
    if name not in TABLES:
        raise ValueError(f"{document.name}: no table or figure is called {name!r}")
    make, files = TABLES[name]
    found = present(results, files)
    return f"{make(found)}\n\n{measured(results, files)}" if found else MISSING


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
