"""The frame of every editing method: a base model, edits as batches of tokens, and weights that are given back.

A method is one file beside this one. It edits a base model in place or around it, is asked like any other system, and
leaves the model bit for bit as it was.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from megedit.edits import Edit
from megedit.errors import MegError
from megedit.evaluate.systems import ModelSystem, System
from megedit.lm.backbone import Backbone, Lower
from megedit.lm.batches import IGNORED, Example, Padded, pad, tokenize_all
from megedit.lm.loading import load_base
from megedit.lm.structure import find_decoder_layers, find_feed_forward
from megedit.lm.template import Template
from megedit.runtime.callbacks import Advance, no_progress


@dataclass(frozen=True)
class Base:
    """A base model and the template in which it is edited and asked. name: as `load_base` takes it."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: Template

    @classmethod
    def load(cls, name: str, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> Base:
        """The base model of that name, in the template that a fit would choose. Raises MegError as `load_base`."""
        model, tokenizer = load_base(name, dtype=dtype, device=device)
        return cls(name, model, tokenizer, Template.for_tokenizer(tokenizer))

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers."""
        return find_decoder_layers(self.model)

    @property
    def hidden_size(self) -> int:
        size: int = self.model.config.get_text_config().hidden_size
        return size

    def layer_at(self, depth: float) -> int:
        """The number of the decoder layer at a depth, 0 for the first and 1 for the last."""
        return round(depth * (len(self.layers) - 1))

    def examples(self, edits: Sequence[Edit]) -> list[Example]:
        """Prompt and answer of each edit as tokens. Raises MegError when the model can answer with no target."""
        return tokenize_all(self.tokenizer, self.template, edits)


class Method(ABC):
    """An editing method on a base model: `edit` it, ask its `system`, `restore` it.

    settings: a frozen dataclass of the method's hyper-parameters, each annotated with a help text; the defaults are
    those of its paper, where that names any.
    """

    name: ClassVar[str]
    source: ClassVar[str]  # the paper
    settings_type: ClassVar[type[Any]]

    def __init__(self, base: Base, settings: Any = None, seed: int = 0) -> None:
        self.base, self.seed = base, seed
        self.settings = self.default_settings() if settings is None else settings

    @classmethod
    def default_settings(cls) -> Any:
        """The settings where none are given."""
        return cls.settings_type()

    @abstractmethod
    def edit(self, edits: Sequence[Edit], advance: Advance = no_progress) -> None:
        """Make the edits, all at once, on a model that has none. advance: called with the number of edits just done.

        Raises MegError for a model that the method cannot edit.
        """

    @abstractmethod
    def restore(self) -> None:
        """Give back the base model, bit for bit; does nothing where there are no edits."""

    @property
    @abstractmethod
    def stored_bytes(self) -> int:
        """Bytes that have to be kept for the edits beside the base model, in the precision that they are used in."""

    def system(self) -> System:
        """The edited model, to be asked."""
        return EditedSystem(self.base, self.name)


class EditedSystem(ModelSystem):
    """A base model as a method has edited it. A sample of its weights would not tell by which edits."""

    def __init__(self, base: Base, name: str) -> None:
        super().__init__(base.model, base.tokenizer, base.template, name)

    @property
    def identity(self) -> None:
        return None


class Weights:
    """Parameters of a model that a method changes, with their values before."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        """parameters: each is copied."""
        self._parameters = list(parameters)
        self._before = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def restore(self) -> None:
        """Put the old values back."""
        for parameter, before in zip(self._parameters, self._before, strict=True):
            parameter.copy_(before)

    @property
    def bytes(self) -> int:
        """The size of the parameters, which is that of their change."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._before)


class MatrixMethod(Method):
    """A method that changes the output matrices of some FFNs."""

    _weights: Weights | None = None

    def matrices(self, layers: Sequence[int]) -> list[nn.Linear]:
        """The output matrices of these layers, whose values are kept until `restore`."""
        found = [output_matrix(self.base.layers[layer])[1] for layer in layers]
        self._weights = Weights([matrix.weight for matrix in found])
        return found

    def restore(self) -> None:
        if self._weights is not None:
            self._weights.restore()
            self._weights = None

    @property
    def stored_bytes(self) -> int:
        return self._weights.bytes if self._weights is not None else 0


@dataclass(frozen=True)
class Batch:
    """Prompts with their answers. ids, mask: int64 (rows, columns), padded on the left, so that all end in one column.

    labels: int64 (rows, longest answer), the answers in the last columns, `IGNORED` before them.
    """

    indices: tuple[int, ...]  # which examples these rows are
    ids: Tensor
    mask: Tensor
    labels: Tensor

    @property
    def answer_start(self) -> Tensor:
        """The first column of each row's answer: int64 (rows,)."""
        return self.ids.shape[1] - (self.labels != IGNORED).sum(1)


def batch_of(base: Base, examples: Sequence[Example], indices: Sequence[int]) -> Batch:
    """Some of the examples as a batch on the model's device."""
    chosen = [examples[i] for i in indices]
    rows = pad([[*example.prompt, *example.answer] for example in chosen], base.tokenizer.pad_token_id)
    longest = max((len(example.answer) for example in chosen), default=0)
    labels = torch.full((len(chosen), longest), IGNORED)  # (rows, longest answer)
    for row, example in enumerate(chosen):
        labels[row, longest - len(example.answer) :] = torch.tensor(example.answer)
    return Batch(tuple(indices), *(tensor.to(base.device) for tensor in (rows.ids, rows.mask, labels)))


def batches(base: Base, examples: Sequence[Example], size: int, rng: random.Random | None = None) -> Iterator[Batch]:
    """All examples that have an answer in batches, in their order, or shuffled by `rng`."""
    usable = [i for i, example in enumerate(examples) if example.refused is None]
    if rng is not None:
        rng.shuffle(usable)
    for first in range(0, len(usable), size):
        yield batch_of(base, examples, usable[first : first + size])


def answer_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits from which each label would be chosen: (rows, longest answer, vocabulary)."""
    width = batch.labels.shape[1]
    output = model(**inputs_to(batch), logits_to_keep=width + 1, use_cache=False)
    logits: Tensor = output.logits[:, -width - 1 : -1]
    return logits


class Upper:
    """The layers of a base model from one on; what comes from those below is computed once for each example.

    For methods that run the same examples again and again and change nothing below the layer.
    """

    def __init__(self, base: Base, examples: Sequence[Example], layer: int, batch_size: int) -> None:
        self._backbone = Backbone(base.model, layer)
        self._form: Any = None
        self._below: dict[int, Tensor] = {}  # (tokens, d), by example
        for batch in batches(base, examples, batch_size) if layer else ():
            lower = self._backbone.lower(inputs_to(batch))
            assert lower.below is not None, "there is a layer below"
            self._form = lower.layer_form
            for index, states, mask in zip(batch.indices, lower.below, batch.mask, strict=True):
                self._below[index] = states[mask == 1]

    def answer_logits(self, batch: Batch) -> Tensor:
        """As the function of this name: (rows, longest answer, vocabulary)."""
        below = None
        if self._below:
            states = [self._below[index] for index in batch.indices]  # each (tokens, d)
            below = pad_sequence(states, batch_first=True, padding_side="left")  # (rows, columns, d)
        width = batch.labels.shape[1]
        return self._backbone.upper(Lower(below, inputs_to(batch), None, self._form), width + 1)[:, :-1]


def inputs_to(batch: Batch) -> dict[str, Tensor]:
    """The arguments of a forward pass over a batch."""
    return Padded(batch.ids, batch.mask).inputs(0, batch.ids.shape[1])


def answer_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each row's answer, the mean over its tokens: float32 (rows,).

    logits: (rows, longest answer, vocabulary). labels: int64 (rows, longest answer).
    """
    losses = F.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
    return losses.sum(1) / (labels != IGNORED).sum(1).clamp(min=1)


def output_matrix(layer: nn.Module) -> tuple[str, nn.Linear]:
    """The last linear map of a decoder layer's FFN, whose output goes to the residual stream, with its name there.

    It is the matrix that locate-and-edit methods change. Raises MegError where an FFN has none, or several, as a
    mixture of experts has.
    """
    place = find_feed_forward(layer)
    inside = [*place.entry.modules(), *place.exit.modules()]
    found: list[tuple[str, Any]] = [
        (name, module)
        for name, module in layer.named_modules()
        if any(module is other for other in inside) and getattr(getattr(module, "weight", None), "ndim", 0) == 2
    ]
    wide = [(name, module) for name, module in found if inputs_of(module) > outputs_of(module)]
    if len(wide) != 1:
        raise MegError(
            f"This method changes the output matrix of an FFN, and that of {type(layer).__name__} has {len(wide)} "
            "matrices that could be it; choose another method for this model."
        )
    return wide[0]


def inputs_of(module: Any) -> int:
    """The length of the vectors that a linear map reads; GPT-2's stores its matrix the other way round."""
    return int(module.weight.shape[0 if _transposed(module) else 1])


def outputs_of(module: Any) -> int:
    """The length of the vectors that a linear map writes."""
    return int(module.weight.shape[1 if _transposed(module) else 0])


@torch.no_grad()
def add_to(module: Any, change: Tensor) -> None:
    """Add a change (outputs, inputs) to the matrix of a linear map."""
    module.weight.add_(oriented(module, change).to(module.weight))


def oriented(module: Any, matrix: Tensor) -> Tensor:
    """A matrix (outputs, inputs) in the layout of a linear map's own, or one in that layout as (outputs, inputs)."""
    return matrix.T if _transposed(module) else matrix


def _transposed(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"
