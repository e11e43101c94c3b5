"""Collection in every layer of a model, as `meg probe` measures it, on CounterFact edits and their rephrases.

    python -m benchmarks.probe --data DIR
    python -m benchmarks.probe --data DIR --base gemma-3-270m-q4_k_m.gguf

Each neuron is tried on its edit's clean rephrase and on the one behind CounterFact's noise sentence. Writes
results/probe.json, behind the name that of the base where it is not the default.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from benchmarks.common import BASE, base_name, suffix, write_result
from benchmarks.edits import load_set
from megedit.collect import CollectionSettings
from megedit.layers import other_wordings, probe, recommended
from megedit.lm.loading import load_base
from megedit.lm.structure import find_decoder_layers
from megedit.lm.template import Template
from megedit.runtime.progress import Stages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--edits", type=int, default=64)
    parser.add_argument("--stride", type=int, default=1, help="only every so many-th layer")
    options = parser.parse_args()

    chosen = load_set(options.data, "counterfact", options.edits)
    noisy = chosen.more_rephrases["noisy_rephrases"]
    edits = [replace(edit, rephrases=(*edit.rephrases, noisy[edit.id])) for edit in chosen.edits]
    wordings = other_wordings(edits, (), 0, given=True)
    model, tokenizer = load_base(options.base)
    depth, template = len(find_decoder_layers(model)), Template.for_tokenizer(tokenizer)
    layers = range(0, depth, options.stride)
    stages = Stages()
    with stages.stage("Probing layers", len(layers)) as advance:
        results = probe(model, tokenizer, template, edits, wordings, layers, CollectionSettings(), advance)
    layer, why = recommended(results, len(wordings), depth)
    values = {
        "rows": [vars(result) for result in results],
        "depth": depth,
        "edits": len(edits),
        "wordings": len(wordings),
        "recommended": layer,
        "why": why,
        "seconds": stages.costs["Probing layers"]["seconds"],
    }
    used = {"base": base_name(options.base), "template": template.text}
    print(write_result(f"probe{suffix(options.base)}", used, values), layer, why)


if __name__ == "__main__":
    main()
