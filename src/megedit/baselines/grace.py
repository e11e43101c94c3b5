"""GRACE: a codebook in one layer. Near a stored key, the layer's output is replaced by a stored value.

Source: Hartvigsen et al. 2023, Aging with GRACE (arXiv 2211.11031). Keys are the states that enter the layer at the
last token of a prompt. A prompt whose state lies within a key's radius gets that key's value there instead of the
layer's output. An edit that lies in no radius is a new key; one that lies in that of a key with its own target widens
it; one in that of another target is a new key, and both radii shrink to half the distance (algorithm 1). Values are
found by gradients.

Values do not depend on each other, so that they are optimised in batches here; keys and radii are set one edit after
the other, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from megedit.baselines.method import Batch, Method, Upper, answer_losses, batches
from megedit.baselines.prompts import Place, PromptSystem, hooked, with_states
from megedit.edits import Edit
from megedit.evaluate.systems import System
from megedit.runtime.callbacks import Advance, no_progress


@dataclass(frozen=True)
class GraceSettings:
    """The codebook and its values."""

    depth: Annotated[float, "of the layer: 0 the first, 1 the last"] = 0.75
    radius: Annotated[float, "of a new key, in units of the states that enter the layer"] = 1.0
    steps: Annotated[int, "Adam steps for a value"] = 100
    lr: Annotated[float, "learning rate of these"] = 1.0
    stop: Annotated[float, "loss of a value, in nats a token, that is small enough to stop"] = 0.05
    batch_size: Annotated[int, "values optimised at a time"] = 32


class Grace(Method):
    """The codebook in a layer."""

    name: ClassVar[str] = "grace"
    source: ClassVar[str] = "arXiv 2211.11031"
    settings_type: ClassVar[type[Any]] = GraceSettings
    settings: GraceSettings
    codebook: Codebook | None = None
    _hook: Any = None

    def edit(self, edits: Sequence[Edit], advance: Advance = no_progress) -> None:
        base, settings = self.base, self.settings
        examples = base.examples(edits)
        number = base.layer_at(settings.depth)
        layer, upper = base.layers[number], Upper(base, examples, number, settings.batch_size)
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for batch in batches(base, examples, settings.batch_size):
            keys, values = self._optimised(layer, upper, batch)
            found.update(zip(batch.indices, zip(keys, values, strict=True), strict=True))
            advance(len(batch.indices))
        codebook = Codebook(settings.radius)
        for i, (key, value) in sorted(found.items()):
            codebook.add(key, value, edits[i].target)
        self.codebook, self._place = codebook, PromptEnd()
        self._hook = layer.register_forward_hook(self._place.hook(codebook.replaced))
        advance(len(edits) - len(found))

    def _optimised(self, layer: nn.Module, upper: Upper, batch: Batch) -> tuple[Tensor, Tensor]:
        """The keys of a batch, and values with which the model gives their targets: float32 (rows, d) each."""
        settings, place = self.settings, PromptEnd()
        ends = batch.answer_start - 1  # (rows,)
        kept: dict[str, Tensor] = {}

        def keep(entered: Tensor, output: Tensor) -> Tensor:
            kept["keys"], kept["values"] = entered.float(), output.float()
            return output

        with torch.no_grad(), hooked(layer, place.hook(keep)):
            place.columns = ends
            upper.answer_logits(batch)
        values = kept["values"].clone().requires_grad_(True)
        optimizer = torch.optim.Adam([values], lr=settings.lr)
        with hooked(layer, place.hook(lambda entered, output: values.to(output.dtype))):
            for _ in range(settings.steps):
                place.columns = ends
                losses = answer_losses(upper.answer_logits(batch), batch.labels)  # (rows,)
                if bool((losses < settings.stop).all()):
                    break
                # a value that is good enough rests
                (values.grad,) = torch.autograd.grad(losses[losses >= settings.stop].sum(), [values])
                optimizer.step()
        return kept["keys"], values.detach()

    def restore(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook = self.codebook = None

    @property
    def stored_bytes(self) -> int:
        return self.codebook.bytes if self.codebook is not None else 0

    def system(self) -> System:
        return PromptSystem(self.base, self.name, self._place if self._hook else None)


class Codebook:
    """Keys, radii, values and targets."""

    def __init__(self, radius: float) -> None:
        self._first_radius = radius
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._targets: list[str] = []
        self._radii: list[float] = []
        self._table: tuple[Tensor, Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self._keys, *self._values)) + 4 * len(self)

    def add(self, key: Tensor, value: Tensor, target: str) -> None:
        """Store an edit. key, value: float32 (d,)."""
        self._table = None
        near = self._nearest(key)
        if near is not None:
            index, distance = near
            if distance <= self._radii[index] + self._first_radius:
                if self._targets[index] == target:
                    self._radii[index] = max(self._radii[index], distance)
                    return
                self._radii[index] = min(self._radii[index], distance / 2)
                self._append(key, value, target, distance / 2)
                return
        self._append(key, value, target, self._first_radius)

    def _append(self, key: Tensor, value: Tensor, target: str, radius: float) -> None:
        self._keys.append(key)
        self._values.append(value)
        self._targets.append(target)
        self._radii.append(radius)

    def _nearest(self, key: Tensor) -> tuple[int, float] | None:
        if not self._keys:
            return None
        distance, index = (torch.stack(self._keys) - key).norm(dim=1).min(0)
        return int(index), float(distance)

    def replaced(self, entered: Tensor, output: Tensor) -> Tensor:
        """The output (rows, d) of the layer, the stored value where a row's input (rows, d) is within a radius."""
        if not self._keys:
            return output
        if self._table is None:
            radii = torch.tensor(self._radii, device=self._keys[0].device)
            self._table = torch.stack(self._keys), torch.stack(self._values), radii
        keys, values, radii = self._table
        distance, index = torch.cdist(entered.float(), keys).min(1)  # (rows,)
        inside = distance <= radii[index]
        return torch.where(inside[:, None], values[index].to(output.dtype), output)


class PromptEnd(Place):
    """The place at which a layer's output is changed: the last token of a prompt, in the next forward pass alone.

    columns: int64 (rows,), or None where nothing is changed.
    """

    columns: Tensor | None = None

    def begin(self, mask: Tensor) -> None:
        self.columns = torch.full((len(mask),), mask.shape[1] - 1, device=mask.device)

    def end(self) -> None:
        self.columns = None

    def hook(self, change: Any) -> Any:
        """A forward hook by which `change` makes of the input and output there, (rows, d) each, the new output."""

        def run(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            columns, self.columns = self.columns, None
            if columns is None:
                return None

            def changed(states: Tensor) -> Tensor:
                rows = torch.arange(len(states), device=states.device)
                new = change(args[0][rows, columns], states[rows, columns])  # (rows, d)
                return states.index_put((rows, columns), new)  # (rows, columns, d)

            return with_states(output, changed)

        return run
