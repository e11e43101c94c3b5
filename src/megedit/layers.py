"""The choice of a layer for the neuron: edits are collected in each, and their neurons tried on other wordings.

Source: MeG (arXiv 2512.14395), figures 5 to 7, where the best layer differs from model to model. Nothing is trained
but neurons, so a probe takes seconds a layer. A neuron that answers an edit's other wordings is what router and
generator can hand over at best.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from megedit.collect import CollectionSettings, answer_leads_of, collect, prepare_all
from megedit.edits import Edit, EditSet
from megedit.errors import MegError
from megedit.lm.backbone import Backbone
from megedit.lm.batches import tokenize, tokenize_all
from megedit.lm.loading import fingerprint, load_base
from megedit.lm.structure import find_decoder_layers
from megedit.lm.template import Template
from megedit.pseudo.knowledge import load_pseudo_knowledge
from megedit.runtime.callbacks import Advance, no_progress
from megedit.runtime.files import write_json
from megedit.runtime.progress import Stages
from megedit.runtime.provenance import machine, versions
from megedit.runtime.resume import Workspace

PAPER = "the paper's layer for this model (arXiv 2512.14395)"
# by model_type, hidden size, layers and size of the vocabulary
KNOWN_LAYERS = {
    ("phi", 2560, 32, 51200): (29, PAPER),
    ("gptj", 4096, 28, 50400): (9, PAPER),
    ("llama", 4096, 32, 128256): (14, PAPER),
    ("llama", 576, 30, 49152): (20, "measured for SmolLM2-135M (docs/benchmarks.md)"),
    ("gemma3_text", 640, 18, 262144): (9, "measured for Gemma-3-270M (docs/benchmarks.md)"),
}
USUAL = 2 / 3  # of the depth; which of several equally good layers is taken
SHORT = (1 / 3, 1 / 2, 2 / 3, 5 / 6)  # of the depth: the layers of a short probe
SHORT_EDITS = 32


@dataclass(frozen=True)
class Wording:
    """Another wording of the edit with this index."""

    edit: int
    text: str


@dataclass(frozen=True)
class LayerResult:
    """The outcome of collection in one layer.

    reliability, generality: percent of the edits, and of the other wordings, to which the collected neuron gives the
    whole answer, its end included. norm: mean Euclidean norm of the neurons' values. seconds: of collection, an edit.
    """

    layer: int
    reliability: float
    generality: float
    norm: float
    seconds: float

    @property
    def score(self) -> float:
        """Harmonic mean of reliability and generality."""
        total = self.reliability + self.generality
        return 2 * self.reliability * self.generality / total if total else 0.0


def known_layer(model: PreTrainedModel) -> tuple[int, str] | None:
    """The layer for a well-known model, and where that is from."""
    config = model.config.get_text_config()
    return KNOWN_LAYERS.get((config.model_type, config.hidden_size, config.num_hidden_layers, config.vocab_size))


def other_wordings(edits: Sequence[Edit], noise: Sequence[str], seed: int, given: bool) -> list[Wording]:
    """Two other wordings of each edit: the rephrases that it brings, if `given`; else its query behind two of the noise
    sentences, or alone where there are none."""
    rng = random.Random(seed)
    found = []
    for i, edit in enumerate(edits):
        texts = edit.rephrases[:2] if given else ()
        sentences = rng.sample(noise, min(2, len(noise)))
        texts = texts or tuple(f"{sentence} {edit.prompt}" for sentence in sentences) or (edit.prompt,)
        found += [Wording(i, text) for text in texts]
    return found


def answerable(tokenizer: PreTrainedTokenizerBase, template: Template, edits: Iterable[Edit]) -> list[Edit]:
    """Those of the edits with whose targets the model can answer."""
    return [edit for edit in edits if tokenize(tokenizer, template, edit).refused is None]


def probe(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    edits: Sequence[Edit],
    wordings: Sequence[Wording],
    layers: Sequence[int],
    settings: CollectionSettings,
    advance: Advance = no_progress,
    keep: Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]] = lambda name, compute: compute(),
) -> list[LayerResult]:
    """Collect the edits in each of these layers, and try their neurons on the other wordings.

    An edit that fails is not tried again: a layer in which that happens is no good one. advance: called after each
    layer. keep: given the name of a layer's result and what computes it, returns it; it may have it from before.
    Raises MegError for a layer out of range, ValueError for an edit that is not `answerable`.
    """
    examples = [tokenize(tokenizer, template, edit) for edit in edits]
    others = [tokenize(tokenizer, template, replace(edits[w.edit], prompt=w.text)) for w in wordings]
    pad_id, settings = tokenizer.pad_token_id, replace(settings, retries=0)
    results = []
    for layer in layers:
        backbone = Backbone(model, layer)

        def measure(backbone: Backbone = backbone) -> dict[str, Any]:
            started = time.perf_counter()
            found = collect(backbone, examples, settings, pad_id)
            seconds = time.perf_counter() - started
            weights = found.weights[[w.edit for w in wordings]].to(backbone.device)
            leads = answer_leads_of(backbone, prepare_all(backbone, others, settings, pad_id), weights)
            result = LayerResult(
                layer=backbone.layer,
                reliability=round(100 * float(found.succeeded.float().mean()), 2),
                generality=round(100 * float((leads > 0).float().mean()), 2),
                norm=round(float(found.weights[:, -backbone.hidden_size :].norm(dim=1).mean()), 3),
                seconds=round(seconds / len(edits), 4),
            )
            return asdict(result)

        results.append(LayerResult(**keep(f"layer-{layer:03}", measure)))
        advance(1)
    return results


def recommended(results: Sequence[LayerResult], wordings: int, depth: int) -> tuple[int, str]:
    """The layer to use, and why: of the best layer and those within its standard error, the one nearest to two thirds
    of the depth.

    A layer is judged by the mean score of itself and the layers right beside it, as far as they were probed: good
    layers lie side by side, and one that stands out among its neighbours does so by chance.
    """
    found = {result.layer: result for result in results}
    beside = {i: [found[near].score for near in (i - 1, i, i + 1) if near in found] for i in found}
    means = {layer: fmean(scores) for layer, scores in beside.items()}
    best = max(means, key=means.__getitem__)
    share, tried = means[best] / 100, wordings * len(beside[best])
    error = 100 * max(math.sqrt(share * (1 - share) / tried), 1 / tried)
    good = [layer for layer in means if means[best] - means[layer] <= error]
    chosen = min(good, key=lambda layer: (abs(layer - USUAL * depth), -layer))
    result = found[chosen]
    why = f"reliability {result.reliability:.1f}, generality {result.generality:.1f} on {wordings} other wordings"
    if len(good) > 1:
        others = ", ".join(str(layer) for layer in good if layer != chosen)
        why += f"; as good, but further from two thirds of the depth: {others}"
    return chosen, why


def choose_layer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    edits: EditSet,
    noise: Sequence[str],
    settings: CollectionSettings,
    seed: int,
    stages: Stages,
) -> tuple[int, str]:
    """The layer for a model, and why: the known one, or what a short probe of some edits recommends.

    The probe never looks at rephrases that the edits bring, so that they can be evaluated with.
    """
    if known := known_layer(model):
        return known
    depth = len(find_decoder_layers(model))
    layers = sorted({min(round(depth * part), depth - 1) for part in SHORT})
    rows = torch.linspace(0, len(edits) - 1, min(len(edits), SHORT_EDITS)).long().tolist()
    some = answerable(tokenizer, template, (edits[row] for row in rows))
    some = some or answerable(tokenizer, template, edits)[:SHORT_EDITS]
    wordings = other_wordings(some, noise, seed, given=False)
    with stages.stage("Probing layers", len(layers)) as advance:
        results = probe(model, tokenizer, template, some, wordings, layers, settings, advance)
    return recommended(results, len(wordings), depth)


def probe_model(
    base: str,
    edits: Sequence[Edit],
    out: str | Path,
    *,
    layers: Sequence[int] | None = None,
    stride: int = 1,
    own_rephrases: bool = True,
    template: str = "auto",
    settings: CollectionSettings | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    stages: Stages | None = None,
) -> dict[str, Any]:
    """Probe the layers of a base model, write the result to the JSON file `out`, and return it.

    A probe that was interrupted goes on when it is called with the same arguments again. base: as for `load_base`.
    layers: those to try, by default every `stride`-th. own_rephrases: the edits' own rephrases are the other wordings,
    where they bring some. template: as for `Template.for_tokenizer`.

    Returns, as the file holds it: `layers`, a `LayerResult` each as a dictionary; the `recommended` one, and `why`; the
    `depth` of the model; and the settings, model, versions and machine it was made with.

    Raises:
        MegError: the base model cannot be loaded, a layer is out of range, the model can answer with none of the
            targets, or the file cannot be written.
    """
    out, stages, settings = Path(out), stages or Stages(), settings or CollectionSettings()
    with stages.stage("Loading the base model"):
        model, tokenizer = load_base(base, dtype=dtype, device=device)
    depth, form = len(find_decoder_layers(model)), Template.for_tokenizer(tokenizer, template)
    chosen = _chosen(layers, stride, depth)
    examples = tokenize_all(tokenizer, form, edits)
    some = [edit for edit, example in zip(edits, examples, strict=True) if example.refused is None]
    wordings = other_wordings(some, load_pseudo_knowledge().noise, seed, given=own_rephrases)
    used = {"dtype": str(model.dtype), "template": asdict(form), "collection": asdict(settings)}
    inputs = {
        "base": fingerprint(model),
        **used,
        "edits": [edit.to_json() for edit in some],
        "wordings": [asdict(wording) for wording in wordings],
    }
    with Workspace(out, hashlib.sha256(json.dumps(inputs).encode()).hexdigest()) as work:
        with stages.stage("Probing layers", len(chosen)) as advance:
            results = probe(model, tokenizer, form, some, wordings, chosen, settings, advance, work.json)
        layer, why = recommended(results, len(wordings), depth)
        values = {"base": base, "depth": depth, "recommended": layer, "why": why}
        values |= {"layers": [asdict(result) for result in results], "edits": len(some), "wordings": len(wordings)}
        values |= {"seed": seed, "fingerprint": inputs["base"], "settings": used}
        values |= {"machine": machine(), "versions": versions()}
        write_json(out, values)
        work.remove()
    return values


def _chosen(layers: Sequence[int] | None, stride: int, depth: int) -> list[int]:
    """The layers to try, by default every `stride`-th. Raises MegError for one that the model does not have."""
    chosen = list(range(0, depth, stride)) if layers is None else sorted(set(layers))
    if wrong := [layer for layer in chosen if not 0 <= layer < depth]:
        raise MegError(f"Layer {wrong[0]} is out of range: the model has layers 0 to {depth - 1}.")
    return chosen
