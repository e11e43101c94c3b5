"""Settings of the weight generator, and the presets a user chooses from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class GeneratorSettings:
    """Denoiser, diffusion and training."""

    denoiser: Literal["dit", "mlp"] = field(default="dit", metadata={"help": "DiT, or an MLP regressor to compare"})
    prediction: Literal["sample", "v_prediction"] = field(
        default="sample",
        metadata={"help": "what the denoiser predicts: the clean weights (x0) or the velocity v"},
    )
    trunk: bool = field(default=True, metadata={"help": "add an MLP of the condition to every token, beside adaLN"})
    patch: int = field(default=576, metadata={"help": "numbers of the weight vector that make one token"})
    width: int = field(default=512, metadata={"help": "width of a token"})
    depth: int = field(default=1, metadata={"help": "DiT blocks"})
    heads: int = field(default=8, metadata={"help": "attention heads"})
    trunk_width: int = field(default=2048, metadata={"help": "hidden width of the condition's MLP"})
    train_timesteps: int = field(default=1000, metadata={"help": "diffusion steps in training"})
    sample_steps: int = field(default=1, metadata={"help": "DDIM steps"})
    anchor: float = field(
        default=0.9,
        metadata={"help": "share of the nearest edit's vector in the condition of a query; 0: the query's alone"},
    )
    balance: float = field(
        default=0.5,
        metadata={"help": "edits are drawn by the frequency of their neuron to the power of minus this; 0: evenly"},
    )
    settle: float = field(
        default=0.25,
        metadata={"help": "last share of the steps, in which edits are drawn evenly and the wrong ones more often"},
    )
    focus: float = field(
        default=10.0, metadata={"help": "how many times as often the wrong ones are drawn while training settles"}
    )
    timestep_bias: float = field(
        default=3.0, metadata={"help": "timesteps in training are 1 - u^bias of the way to pure noise; 1: evenly"}
    )
    steps: int = field(default=2000, metadata={"help": "training steps at most, where `passes` are fewer"})
    passes: int = field(default=100, metadata={"help": "passes over the edits at most, where `steps` are fewer"})
    check_every: int = field(
        default=200,
        metadata={"help": "steps between checks of the stop rule, at least; there are twenty checks at most"},
    )
    batch_size: int = field(default=256, metadata={"help": "edits a step"})
    lr: float = field(default=2e-3, metadata={"help": "AdamW learning rate"})
    ema: float = field(default=0.99, metadata={"help": "decay of the weight average that ships"})

    def __post_init__(self) -> None:
        if self.denoiser not in ("dit", "mlp"):
            raise ValueError(f"denoiser must be 'dit' or 'mlp', not {self.denoiser!r}")
        if self.prediction not in ("sample", "v_prediction"):
            raise ValueError(f"prediction must be 'sample' or 'v_prediction', not {self.prediction!r}")
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        for name in ("patch", "width", "depth", "sample_steps", "steps", "check_every", "batch_size", "focus"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.passes < 0:
            raise ValueError(f"passes must be at least 0, not {self.passes}")
        for name in ("settle", "anchor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, not {getattr(self, name)}")
        if self.timestep_bias <= 0:
            raise ValueError(f"timestep_bias must be above 0, not {self.timestep_bias}")
        if not 1 <= self.sample_steps <= self.train_timesteps:
            raise ValueError("sample_steps must be between 1 and train_timesteps")

    def training_steps(self, edits: int) -> int:
        """How many steps training takes at most for this many edits."""
        return max(self.steps, math.ceil(self.passes * edits / self.batch_size))


PRESETS = {
    "fast": GeneratorSettings(),
    "paper": GeneratorSettings(  # DiT-B/2, section 4.1 of the paper
        prediction="v_prediction",
        trunk=False,
        patch=100,
        width=768,
        depth=12,
        heads=12,
        sample_steps=50,
        anchor=0.0,
        balance=0.0,
        settle=0.0,
        timestep_bias=1.0,
        steps=400_000,
        check_every=5000,
        batch_size=256,
        lr=1e-4,
        ema=0.9999,
    ),
    "mlp": GeneratorSettings(denoiser="mlp"),
}
