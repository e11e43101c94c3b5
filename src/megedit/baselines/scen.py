"""SCEN: an expert network for each edit, and an indexing neuron that says when it is used.

Source: Yao et al. 2024, Scalable Model Editing via Customized Expert Networks (arXiv 2404.02699). With h what enters
the FFN of one layer, and x = h / |h|, the expert of edit i adds to that FFN's output, from the end of the prompt on,

    V_i act(K_i x)

Stage 1 finds K_i and V_i by -log p(target | prompt), each edit alone. Stage 2 finds the indexing neuron n_i, whose
activation at a prompt's end is y_i = sigmoid(n_i . z); z is x less its mean over unrelated texts, of length 1 again,
and a 1 behind it. With y_i its activation at the edit's own prompt, and y_i' those at other edits and at unrelated
texts, it minimises

    exp(-y_i) + mean exp(y_i') + mean max(0, y_i' - y_i + margin)

where the last mean is over those within the margin. A prompt gets the expert whose neuron is the most active at its
end, if that activation is above a threshold; else the model is as it was. The expert stays for the whole answer. Layer,
margin and threshold are those of the public implementation, which has no hinge, so that its margin is a mere constant.

What differs from the paper: its experts are copies of the FFN's whole output matrix, fine-tuned from the prompt's first
token on, which no large number of edits has room for; here they are two small matrices. Experts and neurons read the
FFN's input, not that of its output matrix, and directions only, so that one learning rate serves all models; learning
rates and steps are therefore other ones. A neuron is trained against a sample of the other edits, later ones too, and
against unrelated texts. The paper trains one edit after the other; as nothing is shared, both stages take many at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megedit.baselines.method import Method, answer_losses
from megedit.baselines.prompts import Place, PromptSystem, unrelated_prompts, with_states
from megedit.edits import Edit
from megedit.evaluate.systems import System
from megedit.lm.backbone import Backbone
from megedit.lm.batches import Example, Prepared, batch_units, prepare
from megedit.lm.structure import Activation, first_input
from megedit.runtime.callbacks import Advance, no_progress

NEURONS = 512  # indexing neurons that are trained at a time


@dataclass(frozen=True)
class ScenSettings:
    """The experts, and the neurons that choose among them."""

    depth: Annotated[float, "of the layer: 0 the first, 1 the last"] = 0.65
    hidden: Annotated[int, "hidden size of an expert"] = 4
    steps: Annotated[int, "Adam steps for an expert at most"] = 40
    key_lr: Annotated[float, "learning rate of its first matrix"] = 0.015
    value_lr: Annotated[float, "learning rate of its second matrix"] = 0.5
    stop: Annotated[float, "loss of an expert, in nats a token, that is small enough to stop"] = 0.05
    batch_size: Annotated[int, "experts trained at a time; fewer when answers are long"] = 32
    index_steps: Annotated[int, "Adam steps for an indexing neuron"] = 200
    index_lr: Annotated[float, "learning rate of these"] = 0.05
    margin: Annotated[float, "lead of a neuron's activation at its own edit before those elsewhere"] = 0.3
    threshold: Annotated[float, "theta: activation above which an expert is used"] = 0.65
    others: Annotated[int, "other edits that a neuron is trained against at most"] = 1000
    unrelated: Annotated[int, "unrelated texts that it is trained against"] = 256


class Scen(Method):
    """The experts and their index."""

    name: ClassVar[str] = "scen"
    source: ClassVar[str] = "arXiv 2404.02699"
    settings_type: ClassVar[type[Any]] = ScenSettings
    settings: ScenSettings
    experts: Experts | None = None
    _place: ExpertPlace | None = None
    _hooks: tuple[Any, ...] = ()

    def edit(self, edits: Sequence[Edit], advance: Advance = no_progress) -> None:
        base, settings = self.base, self.settings
        backbone = Backbone(base.model, base.layer_at(settings.depth))
        examples = base.examples(edits)
        usable = [example for example in examples if example.refused is None]
        advance(len(examples) - len(usable))
        if not usable:
            return
        drawn = torch.Generator().manual_seed(self.seed)
        size = backbone.hidden_size
        keys = torch.randn(len(usable), settings.hidden, size, generator=drawn).to(base.device)  # (experts, hidden, d)
        values = torch.zeros_like(keys)
        ends = torch.zeros(len(usable), size, device=base.device)  # (experts, d), the states at the prompts' ends
        for indices, batch in self._prepared(backbone, usable):
            ends[indices] = batch.split.ffn_input[:, 0].float()
            keys[indices], values[indices] = trained(backbone, batch, keys[indices], settings)
            advance(len(indices))
        texts = [Example(prompt, ()) for prompt in unrelated_prompts(base, edits, settings.unrelated, self.seed)]
        others = [batch.split.ffn_input[:, 0] for _, batch in self._prepared(backbone, texts)]
        unrelated = torch.cat([ends[:0], *others]).float()  # (texts, d)
        centre = F.normalize(unrelated, dim=-1).sum(0) / max(len(unrelated), 1)  # (d,)
        neurons = index(read(ends, centre), read(unrelated, centre), settings, drawn)
        self.experts = Experts(keys, values, neurons, centre, backbone.activation, settings.threshold)
        self._place = ExpertPlace(self.experts)
        self._hooks = self._place.hooks(backbone)

    def _prepared(self, backbone: Backbone, examples: Sequence[Example]) -> Iterator[tuple[list[int], Prepared]]:
        """Batches of examples, with their indices, from the end of the prompt on."""
        for indices in batch_units(examples, [[i] for i in range(len(examples))], self.settings.batch_size):
            yield indices, prepare(backbone, examples, indices, "answer", self.base.tokenizer.pad_token_id)

    def restore(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._place, self.experts = (), None, None

    @property
    def stored_bytes(self) -> int:
        return self.experts.bytes if self.experts is not None else 0

    def system(self) -> System:
        return PromptSystem(self.base, self.name, self._place)


# ---------------------------------------------------------------------------------------------------
# Experts


@dataclass(frozen=True)
class Experts:
    """All experts, and the neurons that choose among them.

    keys, values: K and V, float32 (experts, hidden, d). neurons: n, float32 (experts, d + 1). centre: float32 (d,).
    """

    keys: Tensor
    values: Tensor
    neurons: Tensor
    centre: Tensor
    function: Activation
    threshold: float

    @property
    def bytes(self) -> int:
        """The size of all four."""
        tensors = (self.keys, self.values, self.neurons, self.centre)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def choose(self, states: Tensor) -> Tensor:
        """The expert of each prompt, -1 where none is active enough: int64 (rows,). states: (rows, d), at its end."""
        active = torch.sigmoid(read(states, self.centre) @ self.neurons.T)  # (rows, experts)
        most, which = active.max(1)  # (rows,), (rows,)
        return torch.where(most > self.threshold, which, -1)

    def output(self, states: Tensor, which: Tensor) -> Tensor:
        """The sum that each row's expert adds: float32 (rows, columns, d). states: as long. which: int64 (rows,)."""
        return expert_output(states, self.keys[which], self.values[which], self.function)


def expert_output(states: Tensor, keys: Tensor, values: Tensor, function: Activation) -> Tensor:
    """The sum that the expert of each row adds: float32 (rows, columns, d).

    states: the FFN's input (rows, columns, d). keys, values: float32 (rows, hidden, d).
    """
    hidden = function(F.normalize(states.float(), dim=-1) @ keys.mT)  # (rows, columns, hidden)
    return hidden @ values


def trained(backbone: Backbone, batch: Prepared, keys: Tensor, settings: ScenSettings) -> tuple[Tensor, Tensor]:
    """The experts of a batch of edits, one a row, from keys (rows, hidden, d) and no values: their keys and values."""
    found = torch.stack([keys, torch.zeros_like(keys)])  # (2, rows, hidden, d)
    keys, values = (part.clone().requires_grad_(True) for part in found)  # (rows, hidden, d) each
    groups: list[dict[str, Any]] = [{"params": [keys], "lr": settings.key_lr}, {"params": [values]}]
    optimizer = torch.optim.Adam(groups, settings.value_lr)
    left = torch.ones(len(keys), dtype=torch.bool, device=keys.device)  # (rows,)
    with backbone.plain_attention():
        for _ in range(settings.steps):
            added = expert_output(batch.split.ffn_input, keys, values, backbone.activation)  # (rows, positions, d)
            logits = backbone.suffix(batch.split, added, batch.labels.shape[1])  # (rows, answer, vocabulary)
            losses = answer_losses(logits, batch.labels)  # (rows,)
            left &= losses >= settings.stop  # an expert that is good enough is kept as it is
            if not left.any():
                break
            keys.grad, values.grad = torch.autograd.grad(losses[left].sum(), [keys, values])
            optimizer.step()
            found[:, left] = torch.stack([keys.detach()[left], values.detach()[left]])
    return found[0], found[1]


class ExpertPlace(Place):
    """The FFN to whose output the experts add. chosen: int64 (rows,), the expert of each prompt or -1."""

    def __init__(self, experts: Experts) -> None:
        self._experts = experts
        self._entered: Tensor | None = None

    def hooks(self, backbone: Backbone) -> tuple[Any, ...]:
        """Hook into the FFN of a model; the handles by which the hooks are removed."""
        place = backbone.place
        return (
            place.entry.register_forward_pre_hook(self._enter, with_kwargs=True),
            place.exit.register_forward_hook(self._leave),
        )

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._entered = None if self.prompts is None else first_input(args, kwargs)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        entered, self._entered = self._entered, None
        if self.prompts is None or entered is None:
            return None
        states = entered.view(len(self.prompts), -1, entered.shape[-1])  # (rows, columns, d)
        first = 0
        if self.chosen is None:
            first = self.prompts.shape[1] - 1
            self.chosen = self._experts.choose(states[:, first])  # (rows,)
        rows = (self.chosen >= 0).nonzero()[:, 0]
        if not len(rows):
            return None
        added = self._experts.output(states[rows, first:], self.chosen[rows])  # (chosen rows, columns, d)

        def changed(before: Tensor) -> Tensor:
            after = before.clone().view(states.shape)  # (rows, columns, d)
            after[rows, first:] = (after[rows, first:].float() + added).to(after.dtype)
            return after.view(before.shape)

        return with_states(output, changed)


# ---------------------------------------------------------------------------------------------------
# Indexing neurons


def read(states: Tensor, centre: Tensor) -> Tensor:
    """The z that neurons read: float32 (rows, d + 1). states: (rows, d). centre: of their directions (d,)."""
    directions = F.normalize(F.normalize(states.float(), dim=-1) - centre, dim=-1)  # (rows, d)
    return F.pad(directions, (0, 1), value=1.0)


def index(own: Tensor, unrelated: Tensor, settings: ScenSettings, drawn: torch.Generator) -> Tensor:
    """One neuron for each edit: float32 (edits, d + 1).

    own: the z of the edits (edits, d + 1). unrelated: those of unrelated texts (texts, d + 1).
    """
    found = [torch.zeros_like(own[:0])]
    for first in range(0, len(own), NEURONS):
        part = own[first : first + NEURONS]  # (neurons, d + 1)
        order = torch.randperm(len(own), generator=drawn)
        rest = order[(order < first) | (order >= first + NEURONS)][: settings.others].to(own.device)
        states = torch.cat([part, own[rest], unrelated])  # (states, d + 1)
        neurons = torch.zeros_like(part, requires_grad=True)
        optimizer = torch.optim.Adam([neurons], settings.index_lr)
        for _ in range(settings.index_steps):
            loss = index_losses(torch.sigmoid(states @ neurons.T), settings.margin).sum()
            (neurons.grad,) = torch.autograd.grad(loss, [neurons])
            optimizer.step()
        found.append(neurons.detach())
    return torch.cat(found)


def index_losses(active: Tensor, margin: float) -> Tensor:
    """The loss of each neuron: float32 (neurons,).

    active: the neurons' activations, float32 (states, neurons); state i is neuron i's own, further ones are nobody's.
    """
    own = active.diagonal()  # (neurons,)
    other = torch.ones_like(active, dtype=torch.bool).fill_diagonal_(False)  # (states, neurons)
    silent = (active.exp() * other).sum(0) / other.sum(0).clamp(min=1)  # (neurons,)
    short = (active - own + margin).clamp(min=0) * other  # (states, neurons)
    apart = short.sum(0) / (short > 0).sum(0).clamp(min=1)  # (neurons,)
    return (-own).exp() + silent + apart
