"""Collected neurons in other prompt formats: is the answer right where the prompt is not the adapter's?

    python -m benchmarks.formats
    python -m benchmarks.formats --contexts 0 3 6

The invented facts of benchmarks/formats.jsonl, one neuron each, collected with so many further contexts as the settings
say, or as are given. Each fact is asked in ten formats, and answered greedily with its own neuron; routing is no part
of it. An answer is right when its first line is the target, up to case and a full stop. Writes results/formats.json.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.common import BASE, base_name, suffix, write_result
from megedit.collect import collect
from megedit.edits import Edit, load_edits
from megedit.errors import MegError
from megedit.evaluate.metrics import answers_target
from megedit.layers import known_layer
from megedit.lm.backbone import Backbone
from megedit.lm.batches import tokenize_all
from megedit.lm.decoding import decode, end_tokens
from megedit.lm.loading import load_base
from megedit.lm.template import MARKER, Template
from megedit.neuron import DynamicNeuron, NeuronWeights
from megedit.settings import CollectionSettings

FACTS = Path(__file__).parent / "formats.jsonl"
NEW_TOKENS = 16
EARLIER = (("user", "What is the capital of Norway?"), ("assistant", "The capital of Norway is Oslo."))
SYSTEM = ("system", "You work at the front desk of a company. Be polite.")
TEXTS = {
    "Q/A": f"Q: {MARKER}\nA:",
    "User/Assistant": f"User: {MARKER}\nAssistant:",
    "Alpaca": f"### Instruction:\n{MARKER}\n\n### Response:\n",
    "raw": MARKER,
    "raw, newline": f"{MARKER}\n",
    "another model's chat": f"<|user|>\n{MARKER}\n<|assistant|>\n",
}


def formats(tokenizer: PreTrainedTokenizerBase, template: Template) -> dict[str, Template]:
    """The formats by name; those that the model's chat template cannot write are left out."""
    found = {"adapter's template": template}
    for name, turns in (("chat alone", ()), ("system prompt", (SYSTEM,)), ("second turn", EARLIER)):
        try:
            found[name] = Template.in_conversation(tokenizer, *turns)
        except MegError:
            print(f"left out, since the model has no such chat: {name}")
    return {**found, **{name: Template(text) for name, text in TEXTS.items()}}


def answers(
    backbone: Backbone, tokenizer: PreTrainedTokenizerBase, prompts: list[str], weights: NeuronWeights, positions: str
) -> list[str]:
    """The greedy answer to each prompt with its own neuron."""
    model: Any = backbone.model
    neuron = DynamicNeuron(backbone.place, backbone.activation)
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left").to(model.device)
    rows, width = torch.arange(len(prompts), device=model.device), inputs["input_ids"].shape[1]
    start = torch.full_like(rows, width - 1 if positions == "answer" else 0)
    with neuron.active(weights, rows, start, len(prompts)):
        generate: Any = model.generate
        decoded = decode(generate, tokenizer, inputs, end_tokens(model, tokenizer), NEW_TOKENS)
    neuron.detach()
    return [answer.text for answer in decoded]


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, edits: list[Edit], settings: CollectionSettings
) -> dict[str, Any]:
    """Collect the facts' neurons and ask them in all formats: percent right, empty answers, the wrong ones."""
    template = Template.for_tokenizer(tokenizer)
    known = known_layer(model)
    backbone = Backbone(model, known[0] if known else round(2 / 3 * model.config.get_text_config().num_hidden_layers))
    examples = tokenize_all(tokenizer, template, edits, settings.contexts)
    started = time.perf_counter()
    found = collect(backbone, examples, settings, tokenizer.pad_token_id)
    seconds = time.perf_counter() - started
    weights = NeuronWeights.from_vectors(found.weights.to(backbone.device), backbone.hidden_size)
    rows, wrong, empty = {}, {}, 0
    for name, form in formats(tokenizer, template).items():
        prompts = [form.format(edit.prompt) for edit in edits]
        given = [text.strip() for text in answers(backbone, tokenizer, prompts, weights, settings.positions)]
        pairs = list(zip(edits, given, strict=True))
        missed = {edit.id: text for edit, text in pairs if not answers_target(text, edit.target)}
        rows[name] = round(100 * (1 - len(missed) / len(edits)), 1)
        wrong[name] = missed
        empty += sum(not text for text in given)
    return {
        "contexts": settings.contexts,
        "percent_right": rows,
        "empty": empty,
        "collected_percent": round(100 * float(found.succeeded.float().mean()), 1),
        "mean_steps": round(float(found.steps.float().mean()), 1),
        "seconds": round(seconds, 1),
        "wrong": wrong,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--contexts", type=int, nargs="+", help="numbers of further contexts; default: the setting")
    parser.add_argument("--facts", type=Path, default=FACTS)
    options = parser.parse_args()

    model, tokenizer = load_base(options.base, device=options.device)
    edits, rows = list(load_edits(options.facts)), []
    for contexts in options.contexts or [CollectionSettings().contexts]:
        row = measure(model, tokenizer, edits, replace(CollectionSettings(), contexts=contexts))
        print(json.dumps({name: value for name, value in row.items() if name != "wrong"}), flush=True)
        rows.append(row)
    settings = {"base": base_name(options.base), "facts": len(edits), "new_tokens": NEW_TOKENS}
    print(write_result(f"formats{suffix(options.base)}", settings, {"rows": rows}))


if __name__ == "__main__":
    main()
