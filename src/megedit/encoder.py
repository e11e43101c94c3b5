"""The text encoder: a sentence encoder, tuned so that a query and its rephrases get nearly the same vector.

Source: MeG (arXiv 2512.14395), section 3.1: InfoNCE on pseudo-knowledge, facts that are not edited. Positives are
rephrases, half of them behind a noise sentence; negatives are the other facts of the batch, which come from two
relations only, and for each fact another question about the same subject.
"""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights

from megedit.edits import clean_query, user_turns
from megedit.errors import MegError
from megedit.lm.loading import resolve_folder
from megedit.pseudo.knowledge import PseudoFact, PseudoKnowledge
from megedit.pseudo.wordings import OtherQuestions
from megedit.runtime.callbacks import Advance, no_progress
from megedit.runtime.checkpoint import NOWHERE, Checkpoint, Run, set_rate
from megedit.runtime.device import default_dtype, mixed_precision
from megedit.runtime.lowrank import apply_changes
from megedit.runtime.processes import ALONE, Processes
from megedit.runtime.shipped import ENCODER, shipped
from megedit.runtime.tensors import load_tensors, save_tensors
from megedit.settings import MINILM
from megedit.settings import EncoderSettings as EncoderSettings

SENTENCE_END = re.compile(r"[.!?…][\"'”)\]]*\s+")
RELATIONS_PER_BATCH = 2
TEMPERATURE = 0.05  # tau of InfoNCE
CHECKPOINT_EVERY = 25  # steps
WEIGHTS = "weights.safetensors"
ENCODED_AT_ONCE = 128  # texts
EMBEDDED_AT_ONCE = 48  # texts of a training step, on a processor; a GPU takes all of them
TOKENISED_AT_ONCE = 8192  # texts, sorted by length before they are cut into batches
READINGS = 4  # of a query
FEWEST_WORDS = 3  # of a sentence that is read alone
READ_END = 64  # tokens from the end that are read of a text longer than the encoder's window
OFFLINE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}  # no code of a folder is ever run

# The poolings of sentence-transformers, without those factors that normalisation takes away again: states (texts,
# tokens, size) and mask (texts, tokens), 1 where there is a token, 0 behind the last -> (texts, size).
POOLING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": lambda states, mask: (states * mask[..., None]).sum(1),
    "mean_sqrt_len_tokens": lambda states, mask: (states * mask[..., None]).sum(1),
    "weightedmean": lambda states, mask: (states * (mask * mask.cumsum(1))[..., None]).sum(1),
    "max": lambda states, mask: states.masked_fill(mask[..., None] == 0, -torch.inf).amax(1),
    "cls": lambda states, mask: states[:, 0],
    "lasttoken": lambda states, mask: states.take_along_dim(mask.sum(1)[:, None, None] - 1, 1)[:, 0],
}
_FLAGS = {  # what older folders call them, each a field that is true or false
    "mean": "mean_tokens",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean_tokens",
    "max": "max_tokens",
    "cls": "cls_token",
    "lasttoken": "lasttoken",
}


class TextEncoder:
    """A BERT-like model, pooling and normalisation: texts to unit vectors.

    window: tokens of a text that the model can read. compute_dtype: the format of matrix products; weights and vectors
    are float32.
    """

    def __init__(
        self,
        folder: str | Path,
        pooling: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        """Load what `save` wrote, or a transformers or sentence-transformers folder; `pooling` is read from the latter.

        dtype: `compute_dtype`, by default what is fast on the device. Nothing in the folder is run and nothing is
        downloaded. Raises MegError when the folder cannot be loaded.
        """
        folder = Path(folder)
        try:
            self.pooling = pooling or _pooling_of(folder)
            if self.pooling not in POOLING:
                raise ValueError(f"its pooling is {self.pooling!r}; it must be one of {', '.join(POOLING)}")
            self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **OFFLINE)
            self.model = _load_model(folder)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
            raise MegError(f"The text encoder in {folder} could not be loaded: {error}") from error
        self.model.to(torch.device(device)).eval()  # type: ignore[arg-type]  # of the stubs of transformers
        self.compute_dtype = dtype or default_dtype(device)
        positions = getattr(self.model.config, "max_position_embeddings", None)
        self._pad_id: int = 0 if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        self.window: int = min(self.tokenizer.model_max_length, positions or self.tokenizer.model_max_length)

    def change(self, path: Path) -> None:
        """Add low-rank changes from a file to the weights. Raises MegError where they are not those of this model."""
        try:
            apply_changes(self.model, load_tensors(path))
        except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
            raise MegError(f"The changes in {path} do not fit the text encoder: {error}") from error

    @property
    def size(self) -> int:
        """Length of the vectors."""
        size: int = self.model.config.hidden_size
        return size

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors of cleaned texts: float32 (texts, size), on the CPU.

        Of a text longer than the window, only the last sentences are read.
        """
        vectors = torch.zeros(len(texts), self.size)
        for first in range(0, len(texts), TOKENISED_AT_ONCE):
            rows = self._tokens(texts[first : first + TOKENISED_AT_ONCE])
            order = longest_first(rows)
            for start in range(0, len(rows), ENCODED_AT_ONCE):
                batch = order[start : start + ENCODED_AT_ONCE]
                vectors[[first + i for i in batch]] = self._embed([rows[i] for i in batch]).cpu()
        return vectors

    def overlong(self, texts: Sequence[str]) -> list[int]:
        """Indices of the texts that are longer than the window, so that only their last sentences are read."""
        lengths = map(len, token_ids(self.tokenizer, [clean_query(text) for text in texts]))
        return [i for i, length in enumerate(lengths) if length > self.window]

    def save(self, folder: str | Path) -> None:
        """Write configuration, tokenizer and, in eight bits a number, the weights."""
        self.model.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        save_tensors(self.model.state_dict(), Path(folder) / WEIGHTS, packed=True)

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
        triples = list(training_triples(pseudo, settings, seed))
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
                set_rate(optimizer, settings.lr * _linear(step, settings.steps))
                batch = triples[step * settings.batch_size : (step + 1) * settings.batch_size]
                batch = batch[: len(batch) // processes.count * processes.count]
                loss = self.loss(processes.own(batch), processes)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                processes.average_gradients(self.model.parameters())
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                optimizer.step()
                progress(1)
                if (step + 1) % CHECKPOINT_EVERY == 0:
                    checkpoint.save(run.state(step=torch.tensor(step + 1)))
        self.model.eval()

    def loss(self, triples: Sequence[tuple[str, str, str]], processes: Processes = ALONE) -> Tensor:
        """InfoNCE of (rephrase, query, hard negative) triples, with gradients."""
        columns = zip(*triples, strict=True)
        rows = self._tokens([text for column in columns for text in column])
        # rows of about one length at a time: little padding
        order = longest_first(rows)
        size = EMBEDDED_AT_ONCE if self.model.device.type == "cpu" else len(order)
        parts = (order[first : first + size] for first in range(0, len(order), size))
        vectors = torch.cat([self._embed([rows[i] for i in part]) for part in parts])  # (3 x facts, size), sorted
        vectors = vectors[torch.tensor(order).argsort()]
        rephrases, queries, negatives = vectors.split(len(triples))  # each (facts, size)
        return info_nce(rephrases, queries, negatives, TEMPERATURE, processes)

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each cleaned text, those of its last sentences where all would not fit."""
        cleaned = [clean_query(text) for text in texts]
        rows = [row or [self._pad_id] for row in token_ids(self.tokenizer, cleaned)]
        for i, row in enumerate(rows):
            if len(row) > self.window:
                end = last_sentences(cleaned[i], len(cleaned[i]) * READ_END // len(row))
                rows[i] = token_ids(self.tokenizer, [end], truncation=True, max_length=self.window)[0]
        return rows

    def _embed(self, rows: Sequence[list[int]]) -> Tensor:
        """Unit vectors of token ids: float32 (texts, size), on the model's device."""
        tokens = [torch.tensor(row) for row in rows]
        ids = pad_sequence(tokens, batch_first=True, padding_value=self._pad_id).to(self.model.device)
        mask = pad_sequence([torch.ones_like(row) for row in tokens], batch_first=True).to(ids)  # (texts, tokens)
        with mixed_precision(self.model.device, self.compute_dtype):
            states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state  # (texts, tokens, size)
        return F.normalize(POOLING[self.pooling](states.float(), mask), dim=1)


def info_nce(
    rephrases: Tensor, queries: Tensor, negatives: Tensor, temperature: float, processes: Processes = ALONE
) -> Tensor:
    """Cross-entropy of finding each rephrase's own query among all queries and hard negatives, by their cosine.

    All three are float32 (facts, size), unit length. The candidates are those of all processes.
    """
    candidates = torch.cat([processes.gather(queries), processes.gather(negatives)])  # (2 x all facts, size)
    own = processes.rank * len(queries) + torch.arange(len(queries), device=queries.device)  # (facts,)
    return F.cross_entropy(rephrases @ candidates.T / temperature, own)


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


def shipped_encoder(
    device: str | torch.device = "cpu", dtype: torch.dtype | None = None, changes: Path | None = None
) -> TextEncoder:
    """all-MiniLM-L6-v2 with the changes that the package ships, or those in a file.

    device, dtype: as for `TextEncoder`.
    """
    encoder = TextEncoder(resolve_folder(MINILM), device=device, dtype=dtype)
    encoder.change(changes or shipped(ENCODER))
    return encoder


def readings(query: str) -> list[str]:
    """A query as it is to be compared with edits: whole, and parts of it that may ask for something on their own.

    Of several sentences these are the last and every question; of a conversation, the last turn of the user, alone and
    behind the one before. At most `READINGS`; of fewer than `FEWEST_WORDS` words, a sentence asks for nothing alone.
    """
    turns = user_turns(query)
    said = [" ".join(turns[-2:]), turns[-1]] if turns else []
    text = clean_query(turns[-1] if turns else query)
    ends = [found.end() for found in SENTENCE_END.finditer(text)]
    parts = [text[start:end].strip() for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
    asking = [part for part in parts if part is parts[-1] or part.rstrip("\"'”)] ").endswith("?")]
    alone = [part for part in asking if len(part.split()) >= FEWEST_WORDS and part != text]
    return [query, *dict.fromkeys([*said, *alone[len(said) - READINGS + 1 :]])]


def last_sentences(text: str, length: int) -> str:
    """The last sentences of a text, together at most `length` characters; its last words where one is longer."""
    start = max(len(text) - length, 0)
    for boundary in (SENTENCE_END, re.compile(r"\s+")):
        found = boundary.search(text, start)
        if found and found.end() < len(text):
            return text[found.end() :]
    return text[start:]


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], **options: Any) -> list[list[int]]:
    """The token ids of each text. options: those of the tokenizer."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(list(texts), verbose=False, **options).input_ids
    return ids


def longest_first(rows: Sequence[Sequence[int]]) -> list[int]:
    """Indices of rows by falling length, so that rows of about one length stand together."""
    return sorted(range(len(rows)), key=lambda i: -len(rows[i]))


def _linear(step: int, steps: int) -> float:
    """The share of the learning rate at a step: a warm-up over the first tenth, then a linear decay to 0."""
    warm_up = steps // 10
    return min((step + 1) / (warm_up + 1), (steps - step) / (steps - warm_up))


def _load_model(folder: Path) -> PreTrainedModel:
    """The model in float32, from the packed weights of `TextEncoder.save` or from safetensors of transformers."""
    config = AutoConfig.from_pretrained(folder, **OFFLINE)
    if getattr(config, "quantization_config", None):
        raise ValueError("it is quantised; give it in float32 or half precision")
    # attention as transformers chooses it: a configuration may name a kernel on the hub, which would be run
    options: dict[str, Any] = {"attn_implementation": None, "dtype": torch.float32}
    if not (folder / WEIGHTS).is_file():
        model = AutoModel.from_pretrained(folder, config=config, use_safetensors=True, **options, **OFFLINE)
    else:
        with no_init_weights():
            model = AutoModel.from_config(config, trust_remote_code=False, **options)
        model.load_state_dict(load_tensors(folder / WEIGHTS))
    return cast(PreTrainedModel, model)


def _pooling_of(folder: Path) -> str:
    """The pooling a sentence-transformers folder names; mean pooling for a plain transformers folder."""
    config = folder / "1_Pooling" / "config.json"
    if not config.is_file():
        return "mean"
    fields = json.loads(config.read_text("utf-8"))
    named = fields.get("pooling_mode") or [
        name for name, suffix in _FLAGS.items() if fields.get(f"pooling_mode_{suffix}")
    ]
    if isinstance(named, str):
        return named
    if len(named) > 1:
        raise ValueError(f"it joins several poolings, {' and '.join(named)}; one is possible")
    return named[0] if named else "mean"
