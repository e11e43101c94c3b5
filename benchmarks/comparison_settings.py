"""Settings of the rival methods, tried on edits that the comparison does not have.

    python -m benchmarks.comparison_settings --data DIR --edits 100

The defaults are those of the papers, for models fifty times as large. Of each method, the default and some other
values of the setting that matters most are tried on later edits of CounterFact; `benchmarks.comparison` takes the best
by Score. Writes results/comparison_settings.json. Rows are kept in build/comparison_settings until then.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from shutil import copytree

from rich.console import Console

from benchmarks.common import BASE, base_name, write_result
from benchmarks.comparison import SETTINGS, write_lines
from benchmarks.edits import load_set
from megedit.baselines.bench import Bench, run
from megedit.cli.bench import settings_of

FOLDER = Path(__file__).parent.parent / "build" / "comparison_settings"
BEHIND = 10_000  # edits that comparisons may have; those behind them are tried
TRIED: dict[str, tuple[tuple[str, ...], ...]] = {
    "ft": ((), ("lr=1e-3",), ("lr=2e-4",)),
    "locft-bf": ((), ("lr=1e-3",), ("depth=0.3",)),
    "memit": ((), ("moment_weight=1500",), ("moment_weight=150",)),
    "pmet": ((), ("moment_weight=600",), ("moment_weight=60",)),
    "alphaedit": ((), ("threshold=2e-3",), ("ridge=1", "threshold=2e-3")),
    "ultraedit": ((), ("eta=1e-6",), ("eta=1e-4",)),
    "grace": ((), ("radius=3",), ("radius=10",)),
    "wise": ((), ("lr=1e-3",)),
    "scen": ((), ("threshold=0.8",)),
    "retrieval": ((), ("similarity=0.7",), ("similarity=0.8",)),
    "semantic-cache": ((), ("similarity=0.7",), ("similarity=0.6",)),
}


def main() -> None:
    """Try all, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--methods", default=",".join(TRIED))
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    data = FOLDER / "counterfact.jsonl"
    later = load_set(options.data, "counterfact", BEHIND + options.edits).edits.edits[BEHIND:]
    write_lines(data, [edit.to_json() for edit in later])
    plan = Bench(options.base, str(data), (options.edits,), (), options.edits, seed=options.seed)
    run(plan, FOLDER / "unedited", Console(stderr=True))  # the row that all are compared with
    rows = []
    for name in options.methods.split(","):
        for number, changes in enumerate(TRIED[name]):
            settings = settings_of([name], [f"{name}.{change}" for change in changes])
            folder = FOLDER / f"{name}-{number}"
            copytree(FOLDER / "unedited" / "rows", folder / "rows", dirs_exist_ok=True)
            tried = replace(plan, methods=(name,), settings=settings)
            row = run(tried, folder, Console(stderr=True))["rows"][-1]
            rows.append({"changes": list(changes), **row})
            print(name, *changes, (row.get("metrics") or {}).get("score"), flush=True)
    settings = {"edits": options.edits, "behind": BEHIND, "base": base_name(options.base), "seed": options.seed}
    print(write_result(SETTINGS, settings, {"rows": rows}))


if __name__ == "__main__":
    main()
