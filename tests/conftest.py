"""One tiny adapter, fitted end to end, that all tests of what is done with adapters share."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from megedit.adapter.adapter import Adapter, load_adapter
from megedit.collect import CollectionSettings
from megedit.edits import Edit, EditSet, user_turns
from megedit.encoder import EncoderSettings
from megedit.fitting import FitSettings, fit
from megedit.generator import GeneratorSettings
from megedit.lm.loading import load_base
from megedit.lm.template import Template
from megedit.model import MegModel
from megedit.neuron import NeuronWeights
from megedit.pseudo.knowledge import PseudoFact, PseudoKnowledge
from megedit.router.familiarity import FamiliaritySettings
from megedit.router.router import Candidate, Routing
from megedit.runtime.progress import Stages
from tests.tiny import CHATML, tiny_encoder, tiny_model, tiny_tokenizer

torch.set_num_threads(1)  # tiny tensors: a second thread only waits, and for long on a busy machine

PEOPLE = ("Ada Brook", "Bo Chen", "Cy Dale", "Di Elm", "Ed Fox", "Flo Gray", "Gus Hill", "Hal Ives")
TOWNS = ("Par", "Ital", "Jorge", "Borge", "Lu", "Ma", "Ro", "Sp")  # one token each
RELATIONS = ("birthplace", "employer", "language", "instrument")


def made_up_edits() -> EditSet:
    """Eight edits, each with two rephrases and a neighbourhood prompt."""
    return EditSet.from_edits(
        Edit(
            id=f"edit-{i}",
            prompt=f"Where was {person} born?",
            target=town,
            subject=person,
            relation="birthplace",
            rephrases=(f"What is {person}'s birthplace?", f"Name the town in which {person} was born."),
            neighbours=(f"Where was {person[::-1]} born?",),
        )
        for i, (person, town) in enumerate(zip(PEOPLE, TOWNS, strict=True))
    )


def made_up_pseudo_knowledge(facts: int = 60) -> PseudoKnowledge:
    """Facts over four relations, with noise sentences and unrelated questions."""
    return PseudoKnowledge(
        facts=tuple(
            PseudoFact(
                prompt=f"What is the {relation} of Person{i}?",
                rephrases=(f"Person{i} has which {relation}?", f"Tell me the {relation} of Person{i}."),
                neighbours=(f"What is the {RELATIONS[(i + 1) % 4]} of Neighbour{i}?",),
                subject=f"Person{i}",
                relation=relation,
            )
            for i, relation in ((i, RELATIONS[i % 4]) for i in range(facts))
        ),
        noise=("It rained all day.", "The train was late.", "Nobody said a word."),
        unrelated=tuple(f"How many sides has a shape with {i} corners?" for i in range(20)),
    )


def taught_model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A tiny model that has learnt to answer with a word, mostly `Fr`, a full stop and the end of text.

    Its logits spread over several units, as those of a trained model do, so that a margin means something.
    """
    model: Any = tiny_model("llama").requires_grad_(True)
    template, rng = Template.for_tokenizer(tokenizer), random.Random(0)
    facts, words = made_up_pseudo_knowledge().facts, (*TOWNS, "Fr", "Fr", "Fr")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        texts = [f"{template.format(fact.prompt)}{rng.choice(words)}.</s>" for fact in rng.sample(facts, 8)]
        inputs = tokenizer(texts, return_tensors="pt", padding=True)
        logits = model(**inputs, logits_to_keep=4).logits[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1), inputs.input_ids[:, -3:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.get_output_embeddings().weight.data.mul_(20)
    taught: PreTrainedModel = model.requires_grad_(False)
    return taught


def small_settings(encoder: Path) -> FitSettings:
    return FitSettings(
        held_out=0.4,
        collection=CollectionSettings(steps=60),
        encoder=EncoderSettings(name=str(encoder), steps=2, batch_size=8),
        familiarity=FamiliaritySettings(blocks=2, steps=30),
        generator=GeneratorSettings(
            patch=16, width=32, depth=1, heads=2, trunk_width=64, min_steps=300, check_every=50, batch_size=16, lr=2e-3
        ),
    )


@dataclass(frozen=True)
class Fitted:
    """What a fit was made from, and the folder it was written to."""

    base: Path
    adapter: Path
    edits: EditSet
    pseudo: PseudoKnowledge
    settings: FitSettings

    def fit(self, out: Path, edits: EditSet | None = None, **options: Any) -> Adapter:
        """Fit again, to `out`; options: those of `fit` in place of what the shared adapter was made with."""
        options = {"settings": self.settings, "pseudo": self.pseudo, "dtype": torch.float32, **options}
        options.setdefault("stages", Stages())
        return fit(str(self.base), edits or self.edits, out, **options)


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """The shared adapter; tests read it and leave it as it is."""
    root = tmp_path_factory.mktemp("fitted")
    tokenizer = tiny_tokenizer(CHATML)
    taught_model(tokenizer).save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    settings = small_settings(tiny_encoder(root / "encoder"))
    result = Fitted(root / "base", root / "adapter", made_up_edits(), made_up_pseudo_knowledge(), settings)
    result.fit(result.adapter)
    return result


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """No bfloat16, whatever the processor has: what holds up to rounding is then told by float32's."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor whose default is bfloat16, whatever it has."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)


@pytest.fixture
def formats(monkeypatch: pytest.MonkeyPatch) -> set[torch.dtype]:
    """The formats in which the outputs of linear layers are computed from now on."""
    found: set[torch.dtype] = set()
    forward = torch.nn.Linear.forward

    def watched(layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        output = forward(layer, x)
        found.add(output.dtype)
        return output

    monkeypatch.setattr(torch.nn.Linear, "forward", watched)
    return found


@pytest.fixture
def adapter_folder(fitted: Fitted, tmp_path: Path) -> Path:
    """A copy of the shared adapter that a test may change."""
    return Path(shutil.copytree(fitted.adapter, tmp_path / "adapter"))


@pytest.fixture(scope="session")
def base(fitted: Fitted) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model in float32, and its tokenizer."""
    return load_base(str(fitted.base), dtype=torch.float32)


@pytest.fixture
def model(fitted: Fitted, base: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> Iterator[MegModel]:
    """The edited model, its router and generator as they were fitted."""
    edited = MegModel(*base, load_adapter(fitted.adapter))
    yield edited
    edited.detach()


Familiar = Callable[[MegModel, set[str]], None]


@pytest.fixture
def oracle(model: MegModel, monkeypatch: pytest.MonkeyPatch) -> MegModel:
    """The edited model with a router that never errs and the collected neurons instead of generated ones.

    What belongs to an edit is its prompt and its rephrases.
    """
    queries = {text: i for i, edit in enumerate(model.edits) for text in (edit.prompt, *edit.rephrases)}
    force_routing(model, monkeypatch, queries)
    return model


def force_routing(model: MegModel, monkeypatch: pytest.MonkeyPatch, nearest: dict[str, int]) -> None:
    """Route the given queries, alone or behind other turns, to these edits, and use the neurons collected for them."""

    def last_turn(query: str) -> str:
        return (user_turns(query) or [query])[-1]

    route = model.adapter.router.route

    def decide(queries: Sequence[str]) -> list[Routing]:
        found = []
        for query, routing in zip(queries, route(queries), strict=True):
            asked = last_turn(query)
            edit = nearest.get(asked, 0)
            candidate = Candidate(edit, edit, 1.0)
            fires = candidate if asked in nearest else None
            found.append(replace(routing, fires=fires, candidates=(candidate,)))
        return found

    def collected(queries: Any) -> tuple[torch.Tensor, NeuronWeights]:
        asked = list(map(last_turn, queries))
        rows = [row for row, query in enumerate(asked) if query in nearest]
        weights = model.adapter.neurons([model.adapter.records[nearest[asked[row]]] for row in rows])
        return torch.tensor(rows, dtype=torch.long), NeuronWeights.from_vectors(weights, model.backbone.hidden_size)

    monkeypatch.setattr(model.adapter.router, "route", decide)
    monkeypatch.setattr(model, "neurons", collected)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A place for a file of edits."""
    return tmp_path / "edits"
