"""The weight generator: a conditional diffusion model that turns a query's vector into the weights of its neuron."""

from megedit.generator.diffusion import WeightGenerator, anchored
from megedit.generator.training import far_off, missed, train_generator
from megedit.settings import PRESETS, GeneratorSettings

__all__ = [
    "PRESETS",
    "GeneratorSettings",
    "WeightGenerator",
    "anchored",
    "far_off",
    "missed",
    "train_generator",
]
