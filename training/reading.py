"""Train the networks that read: the encoder and both verifiers. An interrupted run goes on when it is started again.

    python -m training.reading                            # all, on the processor
    python -m training.reading verifier --device cuda
    python -m training.reading verifier --start src/megedit/data/verifier.safetensors

Each is all-MiniLM-L6-v2 with low-rank changes (LoRA, arXiv 2106.09685), which are what is written. The batches, their
order and the schedule are the same on every machine; a processor takes fewer and smaller batches than a GPU.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import ParameterDict
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from megedit.encoder import TextEncoder, shipped_encoder
from megedit.lm.loading import resolve_folder
from megedit.pseudo import load_pseudo_knowledge
from megedit.pseudo.knowledge import short_key
from megedit.router.verifier import Verifier, edit_text, padded
from megedit.runtime.callbacks import Advance
from megedit.runtime.checkpoint import Checkpoint, Run, set_rate
from megedit.runtime.device import default_dtype, mixed_precision
from megedit.runtime.lowrank import DOWN, UP
from megedit.runtime.progress import Stages
from megedit.runtime.resume import Workspace
from megedit.runtime.shipped import ENCODER, shipped
from megedit.runtime.tensors import load_tensors, save_tensors
from megedit.settings import MINILM
from training.corpus import DATA, FILES, ContrastFact, corpus, split, texts, written_files
from training.near import nearest
from training.pairs import Pairs

Network = Literal["encoder", "verifier", "second_verifier"]

LORA = ("query", "key", "value", "dense")  # the matrices of MiniLM that are changed
SCALE = 2  # of the changes: lora_alpha / r
POOL = 16  # batches that are drawn together
WORKERS = min(8, os.cpu_count() or 1)  # processes that draw them
WARM_UP = 0.05  # of the steps
LAST_RATE = 0.02  # of the learning rate
CHECKPOINT_EVERY = 8  # pools


@dataclass(frozen=True)
class Recipe:
    """What a training run is made of. average: decay of the average of the weights, which is kept.

    dropout: with MiniLM's; on a processor a step without it takes half the time.
    """

    steps: int
    batch_size: int
    lr: float
    average: float
    dropout: bool = True
    rank: int = 32
    seed: int = 0


RECIPES: dict[Network, Recipe] = {
    "encoder": Recipe(steps=300, batch_size=256, lr=5e-4, average=0.98),  # triples
    "verifier": Recipe(steps=3000, batch_size=1024, lr=1e-3, average=0.998),  # pairs
}
# In two hours on two processor cores there is time for one in 24 of the pairs.
ON_PROCESSOR: dict[Network, Recipe] = {
    "encoder": Recipe(steps=300, batch_size=64, lr=5e-4, average=0.98, dropout=False),
    "verifier": Recipe(steps=2000, batch_size=64, lr=7e-4, average=0.998, dropout=False),
}
for recipes in (RECIPES, ON_PROCESSOR):
    recipes["second_verifier"] = replace(recipes["verifier"], seed=1)


class Task(Protocol):
    """A network to train. `networks.model` is MiniLM, whose matrices are changed; all else in `networks` is trained."""

    @property
    def networks(self) -> nn.Module: ...

    def pool(self, seed: str) -> list[Any]:
        """POOL batches; the same seed, the same batches."""
        ...

    def loss(self, batch: Any) -> Tensor:
        """The loss of a batch."""
        ...


class Verifying:
    """Binary cross-entropy of the logits of pairs. The batches of a pool are each of pairs of about one length."""

    def __init__(self, name: str, facts: list[ContrastFact], recipe: Recipe, device: str) -> None:
        self.networks = Verifier(name)
        self._tokens, self._size = self.networks.tokens, recipe.batch_size
        pseudo = load_pseudo_knowledge()
        self._pairs = Pairs(facts, pseudo.noise, nearest(facts, pseudo.unrelated, shipped_encoder(device)))
        self._device, self._dtype = torch.device(device), default_dtype(device)

    def pool(self, seed: str) -> list[tuple[Tensor, ...]]:
        size = self._size
        pool = self._pairs.draw(POOL * size, seed)
        rows = self._tokens([p.query for p in pool], [edit_text(p.prompt, p.target) for p in pool])
        order = sorted(range(len(pool)), key=lambda k: len(rows[k][0]))
        batches: list[tuple[Tensor, ...]] = []
        for number in torch.randperm(POOL, generator=torch.Generator().manual_seed(hash_of(seed))).tolist():
            part = order[number * size : (number + 1) * size]
            batches.append((*padded([rows[k] for k in part]), torch.tensor([float(pool[k].asks) for k in part])))
        return batches

    def loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        *inputs, labels = (tensor.to(self._device) for tensor in batch)
        with mixed_precision(self._device, self._dtype):
            logits = self.networks(*inputs)  # (pairs,)
        return F.binary_cross_entropy_with_logits(logits, labels)


class Encoding:
    """InfoNCE of (query, prompt, hard negative) triples, as `TextEncoder.tune` has it."""

    def __init__(self, name: str, facts: list[ContrastFact], recipe: Recipe, device: str) -> None:
        self._encoder = TextEncoder(resolve_folder(name), device=device)
        self._encoder.model.register_module("pooler", None)
        self.networks: nn.Module = nn.ModuleDict({"model": self._encoder.model})
        self._size, self._pairs = recipe.batch_size, Pairs(facts, load_pseudo_knowledge().noise)

    def pool(self, seed: str) -> list[list[tuple[str, str, str]]]:
        return [self._pairs.triples(self._size, f"{seed} {number}") for number in range(POOL)]

    def loss(self, batch: list[tuple[str, str, str]]) -> Tensor:
        self._encoder.model = self.networks.model  # type: ignore[assignment]  # once it has its changes
        return self._encoder.loss(batch)


TASKS: dict[Network, Callable[[str, list[ContrastFact], Recipe, str], Task]] = {
    "encoder": Encoding,
    "verifier": Verifying,
    "second_verifier": Verifying,
}


class Pools(Dataset[list[Any]]):
    """Pool i of a run; the same i, the same batches."""

    def __init__(self, task: Task, recipe: Recipe) -> None:
        self._draw, self._recipe = task.pool, recipe

    def __len__(self) -> int:
        return -(-self._recipe.steps // POOL)

    def __getitem__(self, i: int) -> list[Any]:
        return self._draw(f"{self._recipe.seed} {i}")


def main() -> None:
    """Train and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", choices=get_args(Network), help="all when not given")
    parser.add_argument("--out", type=Path, default=shipped("."), help="folder to write to")
    parser.add_argument("--model", default=MINILM, help="all-MiniLM-L6-v2: its folder or package")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--start", type=Path, help="changes to go on from")
    for name, kind in (("steps", int), ("batch-size", int), ("lr", float), ("average", float), ("seed", int)):
        parser.add_argument(f"--{name}", type=kind)
    options = parser.parse_args()
    facts, _ = split(corpus())
    networks: list[Network] = [options.network] if options.network else list(RECIPES)
    for network in networks:
        given = {name: getattr(options, name) for name in ("steps", "batch_size", "lr", "average", "seed")}
        recipes = ON_PROCESSOR if torch.device(options.device).type == "cpu" else RECIPES
        recipe = replace(recipes[network], **{name: value for name, value in given.items() if value is not None})
        start = load_tensors(options.start) if options.start else None
        path = options.out / f"{network}.safetensors"
        with Workspace(path, fingerprint(recipe, options.start)) as work:
            with Stages().stage(f"Training the {network}", recipe.steps) as advance:
                task = TASKS[network](options.model, facts, recipe, options.device)
                tensors = train(task, recipe, options.device, work.checkpoint(network), advance, start)
            save_tensors(tensors, path, packed=True)
            work.remove()
    write_seen(options.out / "seen.npy", facts, keep=options.start is not None or len(networks) < len(RECIPES))


def write_seen(path: Path, facts: list[ContrastFact], keep: bool) -> None:
    """Keys of all texts that are trained on, by which evaluations leave them out.

    keep: those in the file stay, which a network that is not trained from the start has seen.
    """
    of_facts = ((fact.prompt, *(text for side in (fact.fire, fact.other) for _, text in texts(side))) for fact in facts)
    keys = {short_key(text) for found in (*of_facts, load_pseudo_knowledge().unrelated) for text in found}
    if keep and path.is_file():
        keys |= set(np.load(path, allow_pickle=False).tolist())
    np.save(path, np.array(sorted(keys), dtype="V5"))


def fingerprint(recipe: Recipe, start: Path | None) -> str:
    """A digest of what a run reads: corpus, noise, questions, encoder, recipe, and the changes that it goes on from."""
    digest = hashlib.sha256(json.dumps(asdict(recipe)).encode())
    read = [shipped(name) for name in ("noise.txt", "unrelated.txt", ENCODER)]
    for path in [*(DATA / name for name in FILES), *written_files(), *read, *([start] if start else [])]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def train(
    task: Task,
    recipe: Recipe,
    device: str,
    checkpoint: Checkpoint,
    advance: Advance,
    start: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Train the low-rank changes of a task's network; returned is their average, as `apply_changes` reads them.

    start: changes to go on from.
    """
    torch.manual_seed(recipe.seed)
    networks: Any = task.networks
    networks.model = get_peft_model(
        networks.model, LoraConfig(r=recipe.rank, lora_alpha=SCALE * recipe.rank, target_modules=list(LORA))
    )
    networks.to(device).train(recipe.dropout)
    trained = {name: p for name, p in networks.named_parameters() if p.requires_grad}
    if start is not None:
        with torch.no_grad():
            for name, p in trained.items():
                p.copy_(start[stored_name(name)] / scale(name))
    current = ParameterDict({name.replace(".", " "): p for name, p in trained.items()})
    average = AveragedModel(current, multi_avg_fn=get_ema_multi_avg_fn(recipe.average))
    optimizer = torch.optim.AdamW(trained.values(), lr=recipe.lr, weight_decay=0.01, fused=True)
    run, first = Run({"current": current, "average": average}, optimizer, torch.Generator()), 0
    if state := checkpoint.load():
        run.restore(state)
        first = int(state["step"])
        advance(first)
    pools = Pools(task, recipe)
    left = DataLoader(
        pools,
        batch_size=None,
        sampler=range(first // POOL, len(pools)),
        num_workers=WORKERS,
        generator=torch.Generator(),  # its own: dropout's random numbers are those of the steps alone
        multiprocessing_context="fork" if WORKERS else None,
    )
    step = first
    for pool in left:
        for batch in pool[: recipe.steps - step]:
            set_rate(optimizer, recipe.lr * rate(step, recipe.steps))
            loss = task.loss(batch)
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
    """The name of peft's factor as `apply_changes` reads it; the head's stays."""
    name = name.removeprefix("model.base_model.model.").removesuffix(".default.weight")
    return name.replace(".lora_A", DOWN).replace(".lora_B", UP)


def scale(name: str) -> float:
    """lora_alpha / r, which goes into the factor `up`."""
    return SCALE if ".lora_B." in name else 1.0


def hash_of(text: str) -> int:
    """A number from a text, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest())


if __name__ == "__main__":
    main()
