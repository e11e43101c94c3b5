"""The cost of collection and generator on models of the shapes of large ones, with random weights.

    python -m benchmarks.shapes --shape phi-2 --device cuda --batch-sizes 256 512 1024 2048 4096

The shapes are those of the paper, with the paper's layer: phi-2 (29 of 32), gpt-j (9 of 28), llama-3-8b (14 of 32); and
smollm2-135m for comparison. Weights and prompts are random, so nothing is learnt: every edit takes the given number of
steps, about what edits of a trained model take, and only time and memory are measured. The generator's time is that of
one training step on weight vectors of the shape's length, for the default and for the paper's DiT-B/2. A GPU is filled
by the largest of the batch sizes that it has the memory for; the larger ones are left out. Writes
results/shapes_SHAPE.json.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GPTJConfig,
    LlamaConfig,
    PhiConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from benchmarks.common import write_result
from megedit.collect import CollectionSettings, collect
from megedit.generator import PRESETS, GeneratorSettings, train_generator
from megedit.lm.backbone import Backbone
from megedit.lm.batches import Example
from megedit.runtime.device import default_dtype
from megedit.runtime.progress import peak_memory

PROMPT, ANSWER = (16, 32), 4  # tokens of a prompt, from and up to; of an answer with its end
VECTOR = 384  # numbers of a query's vector
TIMED = 10  # training steps of the generator
WARM_UP = 8  # edits collected before anything is timed


@dataclass(frozen=True)
class Shape:
    """A model without weights, and the layer of the neuron."""

    config: PretrainedConfig
    layer: int


SHAPES = {
    "phi-2": Shape(
        PhiConfig(
            vocab_size=51200,
            hidden_size=2560,
            intermediate_size=10240,
            num_hidden_layers=32,
            num_attention_heads=32,
        ),
        29,
    ),
    "gpt-j": Shape(GPTJConfig(), 9),
    "llama-3-8b": Shape(
        LlamaConfig(
            vocab_size=128256,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
        ),
        14,
    ),
    "smollm2-135m": Shape(
        LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            tie_word_embeddings=True,
        ),
        20,
    ),
}


def random_model(config: PretrainedConfig, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """The model on the device, its weights drawn there."""
    torch.manual_seed(0)
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.eval()
    model.requires_grad_(False)
    return model


def random_examples(count: int, vocabulary: int) -> list[Example]:
    """Prompts of many lengths and answers, of random tokens."""
    rng = torch.Generator().manual_seed(0)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(vocabulary, (length,), generator=rng).tolist())

    lengths = torch.randint(*PROMPT, (count,), generator=rng).tolist()
    return [Example(tokens(length), tokens(ANSWER)) for length in lengths]


def collection_row(backbone: Backbone, batch_size: int, steps: int, batches: int) -> dict[str, Any]:
    """Seconds and memory of collecting so many batches."""
    examples = random_examples(batch_size * batches, backbone.model.config.vocab_size)
    settings = CollectionSettings(
        batch_size=batch_size, shared=0, margin=1e9, shared_margin=1e9, steps=steps, retries=0
    )
    _reset_peak(backbone.device)
    started = time.perf_counter()
    collect(backbone, examples, settings, pad_id=0)
    seconds = time.perf_counter() - started
    return {
        "batch_size": batch_size,
        "seconds_per_edit": round(seconds / len(examples), 4),
        "edits_per_second": round(len(examples) / seconds, 2),
        "peak_memory_gib": _peak_gib(),
    }


def generator_row(name: str, settings: GeneratorSettings, backbone: Backbone) -> dict[str, Any]:
    """Seconds of one training step."""
    count = 2 * settings.batch_size
    rng = torch.Generator().manual_seed(0)
    weights = torch.randn(count, backbone.weight_size, generator=rng).to(backbone.device)
    vectors = torch.randn(count, VECTOR, generator=rng).to(backbone.device)

    def seconds(steps: int) -> float:
        limited = replace(settings, min_steps=steps, passes=0, check_every=steps)
        started = time.perf_counter()
        train_generator(weights, vectors, backbone.hidden_size, limited, 0, lambda generator: 0.0)
        return time.perf_counter() - started

    _reset_peak(backbone.device)
    seconds(1)
    return {
        "name": name,
        "seconds_per_step": round((seconds(1 + TIMED) - seconds(1)) / TIMED, 4),
        "peak_memory_gib": _peak_gib(),
    }


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()  # what an earlier size left would slow down the next one where memory is short
        torch.cuda.reset_peak_memory_stats(device)


def _peak_gib() -> float:
    """Peak memory of the GPU since the reset, or of the process so far."""
    peaks = peak_memory()
    return round(peaks.get("peak_gpu_memory_mb", peaks["peak_memory_mb"]) / 1024, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(SHAPES), required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--batches", type=int, default=2, help="batches that are timed, of each size")
    parser.add_argument("--steps", type=int, default=12, help="optimisation steps that every edit takes")
    options = parser.parse_args()

    shape = SHAPES[options.shape]
    model = random_model(shape.config, options.device, default_dtype(options.device))
    backbone = Backbone(model, shape.layer)
    collection_row(backbone, WARM_UP, options.steps, 1)
    rows = []
    for size in sorted(options.batch_sizes):
        try:
            rows.append(collection_row(backbone, size, options.steps, options.batches))
        except torch.OutOfMemoryError:
            print(f"{size} edits at a time do not fit into memory", flush=True)
            break
        print(rows[-1], flush=True)
    generators = []
    for name in ("fast", "paper"):
        generators.append(generator_row(name, PRESETS[name].generator, backbone))
        print(generators[-1], flush=True)
    results = {
        "weight_size": backbone.weight_size,
        "parameters_billions": round(sum(p.numel() for p in model.parameters()) / 1e9, 2),
        "dtype": str(model.dtype),
        "rows": rows,
        "generators": generators,
    }
    print(write_result(f"shapes_{options.shape.replace('-', '_')}", vars(options), results))


if __name__ == "__main__":
    main()
