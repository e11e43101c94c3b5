"""Train the verifier on the corpus; an interrupted run goes on when the same command is given again.

    python -m training.reading                    # on the processor
    python -m training.reading --device cuda

Writes training/data/verifier.safetensors. The batches, their order and the schedule are the same on every machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.nn import ParameterDict
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from megedit.pseudo import load_pseudo_knowledge
from megedit.runtime.callbacks import Advance
from megedit.runtime.checkpoint import Checkpoint, Run, set_rate
from megedit.runtime.device import default_dtype, mixed_precision
from megedit.runtime.progress import Stages
from megedit.runtime.resume import Workspace
from megedit.runtime.tensors import save_tensors
from training.corpus import DATA, FILES, ContrastFact, corpus, split
from training.pairs import Pairs
from training.reader import DOWN, MINILM, UP, WEIGHTS, Verifier, edit_text, padded

LORA = ("query", "key", "value", "dense")  # the matrices of MiniLM that are changed
SCALE = 2  # of the changes: lora_alpha / r
POOL = 16  # batches that are drawn and sorted by length together
WORKERS = min(4, os.cpu_count() or 1)  # processes that draw them
WARM_UP = 0.05  # of the steps
LAST_RATE = 0.02  # of the learning rate
CHECKPOINT_EVERY = 8  # pools
AVERAGE = 0.999  # of the weights, which are kept, over the steps

Batch = tuple[Tensor, Tensor, Tensor, Tensor]  # ids, segments, mask (pairs, tokens); labels (pairs,)


@dataclass(frozen=True)
class Recipe:
    """What a training run is made of."""

    steps: int = 6600
    batch_size: int = 256  # pairs
    lr: float = 7e-4
    rank: int = 32
    seed: int = 0


class Pools(Dataset[list[Batch]]):
    """Pool i of the run: POOL batches, each of pairs of about one length. The same i, the same batches."""

    def __init__(self, verifier: Verifier, facts: list[ContrastFact], recipe: Recipe) -> None:
        self._pairs = Pairs(facts, load_pseudo_knowledge().noise)
        self._tokens, self._recipe = verifier.tokens, recipe

    def __len__(self) -> int:
        return -(-self._recipe.steps // POOL)

    def __getitem__(self, i: int) -> list[Batch]:
        size = self._recipe.batch_size
        pool = self._pairs.draw(POOL * size, f"{self._recipe.seed} {i}")
        rows = self._tokens([p.query for p in pool], [edit_text(p.prompt, p.target) for p in pool])
        order = sorted(range(len(pool)), key=lambda k: len(rows[k][0]))
        batches = []
        for number in torch.randperm(POOL, generator=torch.Generator().manual_seed(i)).tolist():
            part = order[number * size : (number + 1) * size]
            batches.append((*padded([rows[k] for k in part]), torch.tensor([float(pool[k].asks) for k in part])))
        return batches


def main() -> None:
    """Train and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--model", default=MINILM, help="all-MiniLM-L6-v2: its folder or package")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--batch-size", type=int, default=Recipe.batch_size)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    options = parser.parse_args()
    recipe = Recipe(options.steps, options.batch_size, seed=options.seed)
    facts, _ = split(corpus())
    with Workspace(options.out, fingerprint(recipe)) as work:
        with Stages().stage("Training the verifier", recipe.steps) as advance:
            tensors = train(options.model, facts, recipe, options.device, work.checkpoint("verifier"), advance)
        save_tensors(tensors, options.out, packed=True)
        work.remove()


def fingerprint(recipe: Recipe) -> str:
    """A digest of the corpus and the recipe."""
    digest = hashlib.sha256(json.dumps(asdict(recipe)).encode())
    for name in FILES:
        digest.update((DATA / name).read_bytes())
    return digest.hexdigest()


def train(
    name: str, facts: list[ContrastFact], recipe: Recipe, device: str, checkpoint: Checkpoint, advance: Advance
) -> dict[str, Tensor]:
    """Binary cross-entropy of the pairs' logits; returned are the averaged changes, as `Verifier.change` reads them."""
    torch.manual_seed(recipe.seed)
    verifier = Verifier(name)
    config = LoraConfig(r=recipe.rank, lora_alpha=SCALE * recipe.rank, target_modules=list(LORA))
    changed = get_peft_model(verifier.model, config)
    assert isinstance(changed, PeftModel)
    verifier.model = changed  # type: ignore[assignment]
    verifier.to(device).train()
    trained = {name: p for name, p in verifier.named_parameters() if p.requires_grad}
    current = ParameterDict({name.replace(".", " "): p for name, p in trained.items()})
    average = AveragedModel(current, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))
    optimizer = torch.optim.AdamW(trained.values(), lr=recipe.lr, weight_decay=0.01, fused=True)
    run, first = Run({"current": current, "average": average}, optimizer, torch.Generator()), 0
    if state := checkpoint.load():
        run.restore(state)
        first = int(state["step"])
        advance(first)
    pools = Pools(verifier, facts, recipe)
    left = DataLoader(
        pools,
        batch_size=None,
        sampler=range(first // POOL, len(pools)),
        num_workers=WORKERS,
        generator=torch.Generator(),  # its own: dropout's random numbers are those of the steps alone
        multiprocessing_context="fork" if WORKERS else None,
    )
    step, dtype = first, default_dtype(device)
    for pool in left:
        for *inputs, labels in pool[: recipe.steps - step]:
            set_rate(optimizer, recipe.lr * rate(step, recipe.steps))
            with mixed_precision(torch.device(device), dtype):
                logits = verifier(*(tensor.to(device) for tensor in inputs))  # (pairs,)
            loss = F.binary_cross_entropy_with_logits(logits, labels.to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
            optimizer.step()
            average.update_parameters(current)
            step += 1
            advance(1)
        if step % (CHECKPOINT_EVERY * POOL) == 0:
            checkpoint.save(run.state(step=torch.tensor(step)))
    found = {name.replace(" ", "."): p.detach() for name, p in average.module.named_parameters()}
    return {stored_name(name): value * scale(name) for name, value in found.items()}


def rate(step: int, steps: int) -> float:
    """The share of the learning rate at a step: a warm-up, then a linear decay."""
    return min((step + 1) / (WARM_UP * steps + 1), 1.0) * max(1 - step / steps, LAST_RATE)


def stored_name(name: str) -> str:
    """The name of peft's factor as `Verifier.change` reads it; the head's stays."""
    name = name.removeprefix("model.base_model.model.").removesuffix(".default.weight")
    return name.replace(".lora_A", DOWN).replace(".lora_B", UP)


def scale(name: str) -> float:
    """lora_alpha / r, which goes into the factor `up`."""
    return SCALE if ".lora_B." in name else 1.0


if __name__ == "__main__":
    main()
