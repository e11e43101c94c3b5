"""CPU seconds from the start of the process to its end, for commands that need no model and for one that does.

python -m benchmarks.startup adapters/demo --question "The native language of Danielle Darrieux is"
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.common import write_result
from megedit.adapter.folder import find_adapter
from megedit.adapter.ledger import reading


def cpu_seconds(arguments: list[str], runs: int) -> float:
    """Median CPU time of a process, user and system, over several runs; one more goes before them.

    Raises subprocess.CalledProcessError where it fails.
    """

    def once() -> float:
        before = os.times()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    once()  # files into the page cache, compiled modules onto the disk
    return statistics.median(once() for _ in range(runs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter")
    parser.add_argument("--question", required=True, help="a question that an edit of the adapter answers")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    folder = find_adapter(options.adapter)
    with reading(folder) as ledger:
        counts = ledger.counts()
    meg = ["-m", "megedit"]
    commands = {
        "import rich, typer": ["-c", "import rich, typer"],
        "import megedit": ["-c", "import megedit"],
        "meg --help": [*meg, "--help"],
        "meg show": [*meg, "show", str(folder)],
        "meg list --limit 20": [*meg, "list", str(folder), "--limit", "20"],
        "meg log": [*meg, "log", str(folder)],
        "meg diff": [*meg, "diff", str(folder), str(folder)],
        "meg ask": [*meg, "ask", str(folder), options.question],
    }
    rows = [{"command": name, "cpu_seconds": cpu_seconds(command, options.runs)} for name, command in commands.items()]
    for row in rows:
        print(f"{row['cpu_seconds']:7.2f}  {row['command']}")
    settings = {"adapter": Path(options.adapter).name, "question": options.question, "runs": options.runs}
    print(write_result("startup", settings, {"edits": counts, "rows": rows}))


if __name__ == "__main__":
    main()
