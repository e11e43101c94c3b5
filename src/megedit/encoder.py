"""The text encoder: a sentence encoder, tuned so that a query and its rephrases get nearly the same vector.

Source: MeG (arXiv 2512.14395), section 3.1: InfoNCE on pseudo-knowledge, facts that are not edited. Positives are
rephrases, half of them behind a noise sentence; negatives are the other facts of the batch, which come from two
relations only, and for each fact another question about the same subject. The loss is that of sentence-transformers.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util import batch_to_device
from torch import Tensor

from megedit.errors import MegError
from megedit.pseudo.knowledge import PseudoFact, PseudoKnowledge
from megedit.pseudo.wordings import OtherQuestions
from megedit.runtime.callbacks import Advance, no_progress
from megedit.runtime.checkpoint import NOWHERE, Checkpoint, Run, set_rate
from megedit.runtime.device import mixed_precision
from megedit.runtime.processes import ALONE, Processes
from megedit.runtime.tensors import load_tensors, save_tensors
from megedit.settings import EncoderSettings as EncoderSettings

RELATIONS_PER_BATCH = 2
CHECKPOINT_EVERY = 25  # steps
WEIGHTS = "weights.safetensors"


class TextEncoder:
    """A BERT-like model, pooling and normalisation: queries to unit vectors.

    The modules are always these three, whatever a folder asks for, so that a folder from a stranger is only data.
    """

    def __init__(self, folder: str | Path, pooling: str | None = None, device: str | torch.device = "cpu") -> None:
        """Load what `save` wrote, or a transformers or sentence-transformers folder; `pooling` is read from the latter.

        Raises MegError when the folder cannot be loaded.
        """
        try:
            self.pooling = pooling or _pooling_of(Path(folder))
            options = {"local_files_only": True}
            with _readable(Path(folder)) as readable:
                transformer = Transformer(
                    str(readable),
                    model_kwargs={**options, "use_safetensors": True, "dtype": torch.float32},
                    config_kwargs=options,
                )
            modules = [transformer, Pooling(transformer.get_embedding_dimension(), self.pooling), Normalize()]
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise MegError(f"The text encoder in {folder} could not be loaded: {error}") from error
        self.model = SentenceTransformer(modules=modules, device=str(device))
        self.model.eval().requires_grad_(True)

    @property
    def size(self) -> int:
        """Length of the vectors."""
        size = self.model.get_embedding_dimension()
        assert size is not None
        return size

    def encode(self, queries: Sequence[str]) -> Tensor:
        """Unit vectors of the queries: float32 (queries, size), on the CPU."""
        if not queries:
            return torch.zeros(0, self.size)
        with mixed_precision(self.model.device):
            vectors = self.model.encode(
                list(queries),
                batch_size=128,
                convert_to_tensor=True,
                normalize_embeddings=True,
                show_progress_bar=False,
            )
        return F.normalize(vectors.float().cpu(), dim=1)

    def save(self, folder: str | Path) -> None:
        """Write configuration, tokenizer and, in eight bits a number, the weights."""
        transformer = self.model[0]
        assert isinstance(transformer, Transformer)
        transformer.auto_model.config.save_pretrained(str(folder))
        transformer.tokenizer.save_pretrained(str(folder))
        save_tensors(transformer.auto_model.state_dict(), Path(folder) / WEIGHTS, packed=True)

    def tune(
        self,
        pseudo: PseudoKnowledge,
        settings: EncoderSettings,
        seed: int,
        progress: Advance = no_progress,
        checkpoint: Checkpoint = NOWHERE,
        processes: Processes = ALONE,
    ) -> None:
        """Tune the encoder in place with InfoNCE; `progress` is called with the number of steps just done.

        The rows of a batch are divided among the processes; each fact has the facts of all of them as negatives.
        Raises MegError when the pseudo-knowledge is too small for one batch.
        """
        if settings.steps == 0:
            return
        rows = list(training_triples(pseudo, settings, seed))
        device, warmup = self.model.device, settings.steps // 10
        infonce = MultipleNegativesRankingLoss(
            self.model, scale=1 / settings.temperature, gather_across_devices=processes.count > 1
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model.train()
            optimizer = torch.optim.AdamW(self.model.parameters(), lr=settings.lr, weight_decay=0.0, fused=True)
            run, first = Run({"encoder": self.model}, optimizer, torch.Generator()), 0
            if state := checkpoint.load():
                run.restore(state)
                first = int(state["step"])
                progress(first)
            for step in range(first, settings.steps):
                left = (settings.steps - step) / (settings.steps - warmup)
                set_rate(optimizer, settings.lr * min((step + 1) / (warmup + 1), left))
                batch = rows[step * settings.batch_size : (step + 1) * settings.batch_size]
                batch = batch[: len(batch) // processes.count * processes.count]
                columns = zip(*processes.own(batch), strict=True)
                features = [batch_to_device(self.model.preprocess(list(texts)), device) for texts in columns]
                with mixed_precision(device):
                    loss = infonce(features, torch.empty(0))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                processes.average_gradients(self.model.parameters())
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                optimizer.step()
                progress(1)
                if (step + 1) % CHECKPOINT_EVERY == 0:
                    checkpoint.save(run.state(step=torch.tensor(step + 1)))
        self.model.eval()


def training_triples(pseudo: PseudoKnowledge, settings: EncoderSettings, seed: int) -> Iterator[tuple[str, str, str]]:
    """(rephrase, query, hard negative) triples, batch after batch, each batch from two relations.

    The hard negative asks something else about the same subject. Where no such question is known, it asks the same
    about another subject, as the other queries of the batch do.

    Raises MegError when there are fewer facts than one batch needs.
    """
    if len(pseudo.facts) < settings.batch_size:
        raise MegError(
            f"Tuning the encoder needs at least {settings.batch_size} pseudo-facts, there are {len(pseudo.facts)}; "
            "give more pseudo-knowledge or set a smaller encoder batch size."
        )
    rng = random.Random(seed)
    relations: dict[str, list[PseudoFact]] = defaultdict(list)
    for fact in pseudo.facts:
        relations[fact.relation or ""].append(fact)
    names = sorted(relations)
    sizes = [len(relations[name]) for name in names]
    questions = OtherQuestions(pseudo.facts)
    for _ in range(settings.steps):
        pool: list[PseudoFact] = []
        while len(pool) < settings.batch_size:
            drawn = {name for name in rng.choices(names, sizes, k=RELATIONS_PER_BATCH)}
            pool = list(
                {id(fact): fact for fact in [*pool, *(f for name in sorted(drawn) for f in relations[name])]}.values()
            )
        for fact in rng.sample(pool, settings.batch_size):
            rephrase = rng.choice(fact.rephrases)
            if pseudo.noise and rng.random() < settings.noise:
                rephrase = pseudo.behind_noise(rephrase, rng)
            negative = questions.about(fact, rng)
            if negative is None:
                others = fact.neighbours or pseudo.unrelated or tuple(f.prompt for f in pool if f is not fact)
                negative = rng.choice(others)
            yield rephrase, fact.prompt, negative


@contextmanager
def _readable(folder: Path) -> Iterator[Path]:
    """The folder, or, if `TextEncoder.save` wrote it, a copy that transformers can read for as long as the context."""
    if not (folder / WEIGHTS).is_file():
        yield folder
        return
    with tempfile.TemporaryDirectory() as copy:
        for path in folder.glob("*.json"):
            shutil.copy(path, copy)
        save_file(load_tensors(folder / WEIGHTS), Path(copy) / "model.safetensors", {"format": "pt"})
        yield Path(copy)


def _pooling_of(folder: Path) -> str:
    """The pooling mode a sentence-transformers folder names; mean pooling for a plain transformers folder."""
    config = folder / "1_Pooling" / "config.json"
    if not config.is_file():
        return "mean"
    fields = json.loads(config.read_text("utf-8"))
    if isinstance(mode := fields.get("pooling_mode"), str):
        return mode
    named = {
        "cls": "pooling_mode_cls_token",
        "mean": "pooling_mode_mean_tokens",
        "max": "pooling_mode_max_tokens",
    }
    return next((mode for mode, name in named.items() if fields.get(name)), "mean")
