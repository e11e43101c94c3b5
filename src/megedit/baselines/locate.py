"""The parts that locate-and-edit methods share: where the subject ends, keys and targets there, second moments of keys.

Sources: ROME (Meng et al. 2022, arXiv 2202.05262) and MEMIT (Meng et al. 2023, arXiv 2210.07229). An FFN's output
matrix W is read as a memory, W k = m: k is its input at the last token of the subject. The layers that are changed are
a range; the hidden state h of the last of them should become z = h + delta, with delta found by gradients (MEMIT, eq.
16). MEMIT averages over prompts behind five generated openings; here there is the prompt alone. As in its public
implementation, the search for delta ends where the answer is likely enough.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from megedit.baselines.method import Base, answer_losses, output_matrix
from megedit.edits import Edit
from megedit.errors import MegError
from megedit.lm.backbone import Backbone, Lower
from megedit.lm.batches import IGNORED, Example, encode_answer, pad
from megedit.lm.loading import fingerprint
from megedit.pseudo.knowledge import load_pseudo_knowledge
from megedit.runtime.cache import cache_folder
from megedit.runtime.callbacks import Advance, no_progress
from megedit.runtime.files import replacing

ESSENCE = "{} is a"  # what the model says after this should stay (MEMIT's KL term)
MOMENT_WINDOW = 512  # tokens of a text


@dataclass(frozen=True)
class LocateSettings:
    """Where MEMIT and its kin change a model, and how the target values are found."""

    first: Annotated[float, "depth of the first layer that is changed: 0 the first, 1 the last"] = 0.13
    last: Annotated[float, "depth of the last one, whose hidden state is optimised"] = 0.27
    steps: Annotated[int, "Adam steps for a target value"] = 25
    lr: Annotated[float, "learning rate of these"] = 0.5
    kl: Annotated[float, "weight of the KL divergence on '{subject} is a'"] = 0.0625
    decay: Annotated[float, "weight of the squared length of delta, as a share of the hidden state's"] = 0.5
    clamp: Annotated[float, "length of delta at most, as a share of the hidden state's"] = 0.75
    stop: Annotated[float, "loss of the answer, in nats a token, at which the search for delta ends"] = 0.05
    batch_size: Annotated[int, "edits optimised at a time"] = 32
    text: Annotated[str, "file of texts, one a line, for the second moments of keys; shipped ones where empty"] = ""
    tokens: Annotated[int, "tokens of these texts that are read at most"] = 100_000

    def layers(self, base: Base) -> list[int]:
        """The layers that are changed."""
        return list(range(base.layer_at(self.first), base.layer_at(self.last) + 1))


@dataclass(frozen=True)
class Places:
    """Edits that can be located. examples: their tokens. ends: index of the subject's last token in each prompt."""

    edits: list[Edit]
    examples: list[Example]
    ends: list[int]


def places(base: Base, edits: Sequence[Edit]) -> Places:
    """Where the subject of each edit ends; the end of the prompt where it names none. Refused edits are left out."""
    found = Places([], [], [])
    for edit, example in zip(edits, base.examples(edits), strict=True):
        if example.refused is None:
            found.edits.append(edit)
            found.examples.append(example)
            found.ends.append(_subject_end(base, edit, example))
    return found


def _subject_end(base: Base, edit: Edit, example: Example) -> int:
    """The tokens of the prompt's text up to the subject's end, but one."""
    text = base.template.format(edit.prompt)
    before, _, _ = base.template.text.partition("{query}")
    at = edit.prompt.rfind(edit.subject) if edit.subject else -1
    if at < 0 or edit.subject is None:
        return len(example.prompt) - 1
    end = len(before) + at + len(edit.subject)
    offsets = base.tokenizer(text, return_offsets_mapping=True).offset_mapping
    inside = [i for i, (start, _) in enumerate(offsets[: len(example.prompt)]) if start < end]
    return inside[-1] if inside else len(example.prompt) - 1


# ---------------------------------------------------------------------------------------------------
# Keys, and hidden states


@torch.no_grad()
def at_subject(base: Base, found: Places, module: nn.Module, batch_size: int, *, inputs: bool) -> Tensor:
    """The state that enters a module at the last token of each subject, or leaves it: float32 (edits, size)."""
    rows: list[Tensor] = []
    for first in range(0, len(found.edits), batch_size):
        prompts = [example.prompt for example in found.examples[first : first + batch_size]]
        batch = pad(prompts, base.tokenizer.pad_token_id).to(base.device)
        shifts = [batch.width - len(prompt) for prompt in prompts]
        columns = torch.tensor([s + e for s, e in zip(shifts, found.ends[first : first + batch_size], strict=True)])
        state = states_at(base, module, batch.inputs(0, batch.width), inputs=inputs)  # (rows, columns, size)
        rows.append(state[torch.arange(len(prompts)), columns.to(state.device)].float())
    return torch.cat(rows) if rows else torch.zeros(0, 0)


class _Reached(Exception):
    """Ends a forward pass at a module."""


@torch.no_grad()
def states_at(base: Base, module: nn.Module, batch: Mapping[str, Tensor], *, inputs: bool) -> Tensor:
    """The states that enter a module, or leave it, in a batch; the model is run up to there: (rows, columns, size).

    batch: the arguments of a forward pass over whole rows. inputs: those that enter.
    """
    found: list[Tensor] = []

    def before(of: nn.Module, args: tuple[Any, ...]) -> None:
        found.append(args[0])
        raise _Reached

    def after(of: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)
        raise _Reached

    hook = module.register_forward_pre_hook(before) if inputs else module.register_forward_hook(after)
    try:
        base.model.base_model(**batch, use_cache=False)
    except _Reached:
        pass
    finally:
        hook.remove()
    return found[0].view(*batch["input_ids"].shape, -1)


@torch.no_grad()
def second_moment(base: Base, layer: int, settings: LocateSettings) -> Tensor:
    """The mean of k k^T over the tokens of texts, of the keys of a layer: float32 (inputs, inputs).

    It is computed once for a model, a layer and texts, and kept in the cache folder.
    """
    name, matrix = output_matrix(base.layers[layer])
    texts = _texts(settings.text)
    parts = [fingerprint(base.model), name, str(layer), str(settings.tokens), *texts]
    path = cache_folder() / "second-moments" / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()}.safetensors"
    if path.is_file():
        return load_file(path)["moment"].to(base.device)
    total, count = torch.zeros((), device=base.device), 0
    rows = sorted(_token_rows(base, texts, settings.tokens), key=len)  # of like length, so that there is little padding
    for first in range(0, len(rows), settings.batch_size):
        batch = pad(rows[first : first + settings.batch_size], base.tokenizer.pad_token_id).to(base.device)
        keys = states_at(base, matrix, batch.inputs(0, batch.width), inputs=True)  # (rows, columns, inputs)
        flat = keys[batch.mask == 1].float()  # (tokens, inputs)
        total, count = total + flat.T @ flat, count + len(flat)
    moment = total / max(count, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        save_file({"moment": moment.cpu().contiguous()}, partial)
    return moment


def _token_rows(base: Base, texts: Sequence[str], tokens: int) -> Iterator[list[int]]:
    """The tokens of texts, cut to `MOMENT_WINDOW` each, and so many in all at most."""
    for text in texts:
        row = base.tokenizer(text).input_ids[: min(MOMENT_WINDOW, tokens)]
        if row:
            yield row
        tokens -= len(row)
        if tokens <= 0:
            break


def _texts(path: str) -> list[str]:
    """The texts of a file, or the shipped ones. Raises MegError when the file cannot be read."""
    if not path:
        shipped = load_pseudo_knowledge()
        facts = [text for fact in shipped.facts for text in (fact.prompt, *fact.rephrases)]
        return [*shipped.noise, *shipped.unrelated, *facts]
    try:
        with open(path, encoding="utf-8") as file:
            found = [line.strip() for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise MegError(
            f"{path} cannot be read as texts ({error}); give a UTF-8 file with a text on each line."
        ) from error
    if not found:
        raise MegError(f"{path} has no text in it; give a file with a text on each line.")
    return found


# ---------------------------------------------------------------------------------------------------
# Target values


def target_changes(
    base: Base,
    found: Places,
    layer: int,
    modules: Sequence[nn.Module],
    lengths: Sequence[Tensor],
    settings: LocateSettings,
    advance: Advance = no_progress,
) -> list[Tensor]:
    """Changes to the outputs of modules at the subject's last token, with which the model gives the target.

    layer: the one that the modules are in, or are; those below it are run once. lengths: float32 (edits,) for each
    module, the lengths by which the changes are clamped and decayed. Returns float32 (edits, d) for each module.
    Minimised are -log p(target), MEMIT's KL term and the length, by Adam, each edit alone.
    """
    deltas = [torch.zeros(len(found.edits), base.hidden_size, device=base.device) for _ in modules]
    order = sorted(range(len(found.edits)), key=lambda i: len(found.examples[i].prompt) - found.ends[i])
    backbone = Backbone(base.model, layer)
    for first in range(0, len(order), settings.batch_size):
        rows = order[first : first + settings.batch_size]
        asked = _Part.of(base, backbone, found, rows)
        essence = _Part.essence(base, backbone, [found.edits[i] for i in rows])
        sizes = [length[rows] for length in lengths]  # each (rows,)
        for whole, part in zip(deltas, _optimised(asked, essence, modules, sizes, settings), strict=True):
            whole[rows] = part
        advance(len(rows))
    return deltas


def _optimised(
    asked: _Part, essence: _Part, modules: Sequence[nn.Module], sizes: Sequence[Tensor], settings: LocateSettings
) -> list[Tensor]:
    """The changes of one batch of edits: float32 (rows, d) for each module. sizes: float32 (rows,) for each.

    An edit whose answer is likely enough rests, and is not run any more.
    """
    deltas = [torch.zeros(len(size), asked.hidden_size, device=size.device, requires_grad=True) for size in sizes]
    optimizer = torch.optim.Adam(deltas, lr=settings.lr)
    with torch.no_grad():
        before = essence.log_probs(modules, deltas) if settings.kl else None  # (rows, vocabulary)
    left = torch.arange(len(sizes[0]), device=sizes[0].device)  # (left,), the rows that are still run
    for _ in range(settings.steps):
        now = [delta[left] for delta in deltas]  # each (left, d)
        answers = answer_losses(asked.logits(modules, now), asked.labels)  # (left,)
        losses, going = answers, answers.detach() >= settings.stop
        if not going.any():
            break
        if before is not None:
            said = essence.log_probs(modules, now)  # (left, vocabulary)
            losses = losses + settings.kl * F.kl_div(said, before, log_target=True, reduction="none").sum(-1)
        for delta, size in zip(now, sizes, strict=True):
            losses = losses + settings.decay * (delta.norm(dim=1) / size).square()
        for delta, gradient in zip(deltas, torch.autograd.grad(losses[going].sum(), deltas), strict=True):
            delta.grad = gradient
        kept = [delta.detach().clone() for delta in deltas]
        optimizer.step()
        if not going.all():
            left, asked, essence = left[going], asked[going], essence[going]
            sizes, before = [size[going] for size in sizes], None if before is None else before[going]
        with torch.no_grad():
            for delta, old, size in zip(deltas, kept, sizes, strict=True):
                longest = settings.clamp * size  # (left,)
                old[left] = delta[left] * (longest / delta[left].norm(dim=1).clamp(min=1e-12)).clamp(max=1)[:, None]
                delta.copy_(old)  # those that rest are as they were
    return [delta.detach() for delta in deltas]


@dataclass(frozen=True)
class _Part:
    """A batch from the first column and layer on that a change can touch.

    columns: int64 (rows,), where the subject ends, counted from that column. labels: int64 (rows, longest answer), in
    the last columns.
    """

    backbone: Backbone
    lower: Lower
    columns: Tensor
    labels: Tensor

    @property
    def hidden_size(self) -> int:
        return self.backbone.hidden_size

    @classmethod
    def of(cls, base: Base, backbone: Backbone, found: Places, rows: Sequence[int]) -> _Part:
        """Prompts and targets."""
        chosen = [found.examples[i] for i in rows]
        ends = [found.ends[i] for i in rows]
        return cls._made(base, backbone, [(*e.prompt, *e.answer) for e in chosen], ends, [e.answer for e in chosen])

    @classmethod
    def essence(cls, base: Base, backbone: Backbone, edits: Sequence[Edit]) -> _Part:
        """`ESSENCE` for each subject, without a template."""
        texts = [encode_answer(base.tokenizer, edit.subject or edit.prompt, ESSENCE.format("")) for edit in edits]
        ends = [len(subject) - 1 for subject, _ in texts]
        return cls._made(base, backbone, [(*a, *b) for a, b in texts], ends, [() for _ in texts])

    @classmethod
    def _made(
        cls,
        base: Base,
        backbone: Backbone,
        rows: Sequence[Sequence[int]],
        ends: Sequence[int],
        answers: Sequence[Sequence[int]],
    ) -> _Part:
        batch = pad(rows, base.tokenizer.pad_token_id).to(base.device)
        columns = torch.tensor([batch.width - len(row) + end for row, end in zip(rows, ends, strict=True)])
        start = int(columns.min())
        cache = backbone.context(batch.inputs(0, start)) if start else None
        lower = backbone.lower(batch.inputs(start, batch.width), cache)
        longest = max(map(len, answers))
        labels = torch.full((len(rows), longest), IGNORED)
        for i, answer in enumerate(answers):
            labels[i, longest - len(answer) :] = torch.tensor(answer, dtype=torch.long)
        return cls(backbone, lower, (columns - start).to(base.device), labels.to(base.device))

    def __getitem__(self, rows: Tensor) -> _Part:
        return _Part(self.backbone, self.lower[rows], self.columns[rows], self.labels[rows])

    def logits(self, modules: Sequence[nn.Module], deltas: Sequence[Tensor]) -> Tensor:
        """Logits from which each label would be chosen, or those behind the last token where there are none.

        deltas: float32 (rows, d) for each module. Returns (rows, longest answer or 1, vocabulary).
        """
        wanted = self.labels.shape[1]
        with ExitStack() as context:
            for module, delta in zip(modules, deltas, strict=True):
                context.enter_context(added(module, self.columns, delta))
            logits = self.backbone.upper(self.lower, wanted + 1)
        return logits[:, :-1] if wanted else logits

    def log_probs(self, modules: Sequence[nn.Module], deltas: Sequence[Tensor]) -> Tensor:
        """Log-probabilities of what follows the last token: float32 (rows, vocabulary). deltas: as in `logits`."""
        return self.logits(modules, deltas)[:, -1].float().log_softmax(-1)


@contextmanager
def added(module: nn.Module, columns: Tensor, delta: Tensor) -> Iterator[None]:
    """Within the context, add vectors (rows, d) to a module's output, each in its row's column (int64 (rows,))."""
    rows = torch.arange(len(columns), device=columns.device)

    def change(of: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        shaped = states.view(len(columns), -1, states.shape[-1])
        change = torch.zeros_like(shaped).index_put((rows, columns), delta.to(shaped.dtype))
        changed = (shaped + change).view(states.shape)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    hook = module.register_forward_hook(change)
    try:
        yield
    finally:
        hook.remove()
