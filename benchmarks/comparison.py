"""All editing methods side by side on CounterFact, by `meg bench`.

    python -m benchmarks.comparison --data DIR --edits 1000
    python -m benchmarks.comparison --data DIR --edits 10000 --methods meg,retrieval-verified,grace
    python -m benchmarks.comparison --data DIR --edits 320 --ablations     # MegEdit without one of its parts each

The edits are the first ones of counterfact.jsonl, as in `benchmarks.edits`: a clean rephrase and a neighbour each,
questions left out that the shipped networks were trained on. Beside them, the first facts of contrast_science.jsonl are
edited, and asked with their contrast texts. Of the settings that benchmarks.comparison_settings tried, each method has
the best. Writes results/comparison_EDITS.json, or ablations_EDITS.json. Rows are kept in build/comparison until then,
and only missing ones are made.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.common import BASE, RESULTS, base_name, on_device, suffix, write_result
from benchmarks.edits import load_set
from benchmarks.make_shipped_data import records
from megedit.baselines import ABLATIONS, METHODS
from megedit.baselines.bench import Bench, run
from megedit.cli.bench import settings_of
from megedit.runtime.files import write_whole

FOLDER = Path(__file__).parent.parent / "build" / "comparison"
SETTINGS = "comparison_settings"  # the result of benchmarks.comparison_settings
ASKED, FACTS = 400, 40  # edits, and facts with contrast texts, that are asked
METHODS_BY_DEFAULT = [name for name in METHODS if name != "malmen"]  # its hypernetwork takes long to train


def main() -> None:
    """Run the bench and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--methods", default=",".join(METHODS_BY_DEFAULT))
    parser.add_argument("--ablations", action="store_true", help="instead of the methods")
    parser.add_argument("--asked", type=int, default=ASKED)
    parser.add_argument("--set", action="append", default=[], metavar="METHOD.NAME=VALUE")
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = FOLDER / f"{options.edits}{suffix(options.base)}{on_device(options.device)}"
    folder.mkdir(parents=True, exist_ok=True)
    edits, contrast = folder / "counterfact.jsonl", folder / "contrast.jsonl"
    write_lines(edits, [edit.to_json() for edit in load_set(options.data, "counterfact", options.edits).edits])
    write_lines(contrast, first_facts(options.data / "contrast_science.jsonl"))
    names = ("meg", *ABLATIONS) if options.ablations else tuple(options.methods.split(","))
    plan = Bench(
        base=options.base,
        data=str(edits),
        sizes=(options.edits,),
        methods=names,
        asked=options.asked,
        contrast=str(contrast),
        settings=settings_of(names, [*best(names), *options.set]),
        seed=options.seed,
        device=options.device,
    )
    result = run(plan, folder, Console(stderr=True))
    settings = {"edits": options.edits, "asked": options.asked, "contrast_facts": FACTS, "seed": options.seed}
    settings |= {"base": base_name(options.base), "set": {name: asdict(of) for name, of in plan.settings.items()}}
    kind = "ablations" if options.ablations else "comparison"
    name = f"{kind}_{options.edits}{suffix(options.base)}{on_device(options.device)}"
    print(write_result(name, settings, {"rows": result["rows"]}))


def best(names: Sequence[str]) -> list[str]:
    """Changes to the methods' defaults, METHOD.NAME=VALUE, that had the highest Score where several were tried."""
    path = RESULTS / f"{SETTINGS}.json"
    rows = json.loads(path.read_text("utf-8"))["results"]["rows"] if path.is_file() else []
    found: list[str] = []
    for name in names:
        tried = [row for row in rows if row["method"] == name and "error" not in row]
        if tried:
            chosen = max(tried, key=lambda row: row["metrics"]["score"]["value"])
            found += [f"{name}.{change}" for change in chosen["changes"]]
    return found


def first_facts(path: Path) -> list[dict[str, Any]]:
    """The first facts of a file, and what their texts ask for where that is one of them."""
    facts = records(path)[:FACTS]
    prompts = {fact["prompt"] for fact in facts}
    return [
        {**fact, "asks": {text: prompt for text, prompt in fact.get("asks", {}).items() if prompt in prompts}}
        for fact in facts
    ]


def write_lines(path: Path, objects: list[dict[str, Any]]) -> None:
    """A file of JSON lines; one that is there with the same content is left alone."""
    write_whole(path, "".join(json.dumps(of, ensure_ascii=False) + "\n" for of in objects))


if __name__ == "__main__":
    main()
