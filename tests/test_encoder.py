"""The text encoder: vectors, files, the order of the training triples, and tuning on a toy problem."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sentence_transformers.base.modules import Transformer
from torch import Tensor

from megedit.encoder import RELATIONS_PER_BATCH, EncoderSettings, TextEncoder, training_triples
from megedit.errors import MegError
from megedit.pseudo.knowledge import PseudoFact, PseudoKnowledge
from tests.tiny import tiny_encoder

QUERIES = ["The capital of France is", "The mother tongue of Jorge Luis Borges is", "Rome"]
TINY = EncoderSettings(steps=30, batch_size=8, lr=3e-3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder")
    tiny_encoder(path)
    return path


@pytest.fixture
def encoder(folder: Path) -> TextEncoder:
    return TextEncoder(folder)


def fact(number: int, relation: str, neighbours: bool = True) -> PseudoFact:
    """A fact about a made-up person, whose name stands in all wordings."""
    name = f"{'abcdefghij'[number % 10] * 3} {'klmnopqrst'[number // 10] * 3}"
    return PseudoFact(
        prompt=f"the {relation} of {name} is",
        rephrases=(f"what is the {relation} of {name}?", f"{name} has the {relation}"),
        neighbours=(f"the {relation} of zzz {number} is",) if neighbours else (),
        subject=name,
        relation=relation,
    )


def pseudo_knowledge(per_relation: int = 12, neighbours: bool = True) -> PseudoKnowledge:
    facts = tuple(
        fact(per_relation * r + i, relation, neighbours)
        for r, relation in enumerate(("capital", "tongue", "mother"))
        for i in range(per_relation)
    )
    return PseudoKnowledge(facts, noise=("It rained.",), unrelated=("Who is there?",))


def test_unit_vectors(encoder: TextEncoder) -> None:
    vectors = encoder.encode(QUERIES)
    assert vectors.shape == (3, encoder.size) == (3, 32)
    assert vectors.dtype == torch.float32 and not vectors.requires_grad
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    assert len(vectors.unique(dim=0)) == 3
    assert encoder.encode([]).shape == (0, 32)


def test_the_batch_does_not_matter(encoder: TextEncoder) -> None:
    vectors = encoder.encode(QUERIES)
    for query, vector in zip(QUERIES, vectors, strict=True):
        torch.testing.assert_close(encoder.encode([query])[0], vector, rtol=1e-4, atol=1e-5)  # float32 rounding


@torch.no_grad()
def pooled(encoder: TextEncoder, query: str, pool: Callable[[Tensor], Tensor]) -> Tensor:
    """The vector of a query, from the BERT model's own output."""
    transformer = encoder.model[0]
    assert isinstance(transformer, Transformer) and transformer.tokenizer is not None
    states = transformer.auto_model(**transformer.tokenizer([query], return_tensors="pt")).last_hidden_state
    return torch.nn.functional.normalize(pool(states[0]), dim=0)


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize(
    ("config", "pooling", "pool"),
    [
        (None, "mean", lambda states: states.mean(0)),
        ({"pooling_mode": "cls"}, "cls", lambda states: states[0]),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls", lambda states: states[0]),
        ({"pooling_mode_max_tokens": True}, "max", lambda states: states.amax(0)),
        ({"pooling_mode_mean_tokens": True}, "mean", lambda states: states.mean(0)),
    ],
)
def test_pooling_is_read_from_the_folder(
    tmp_path: Path, config: dict[str, object] | None, pooling: str, pool: Callable[[Tensor], Tensor]
) -> None:
    tiny_encoder(tmp_path)
    if config is not None:
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config), "utf-8")
    encoder = TextEncoder(tmp_path)
    assert encoder.pooling == pooling
    torch.testing.assert_close(encoder.encode(QUERIES[:1])[0], pooled(encoder, QUERIES[0], pool))
    assert TextEncoder(tmp_path, "max").pooling == "max"


def test_saving_twice_changes_nothing(encoder: TextEncoder, tmp_path: Path) -> None:
    before = encoder.encode(QUERIES)
    encoder.save(tmp_path / "first")
    loaded = TextEncoder(tmp_path / "first", encoder.pooling)
    vectors = loaded.encode(QUERIES)
    torch.testing.assert_close(vectors, before, rtol=0, atol=2e-2)  # matrices are kept in 8 bits
    loaded.save(tmp_path / "second")
    assert torch.equal(TextEncoder(tmp_path / "second", encoder.pooling).encode(QUERIES), vectors)
    first, second = (tmp_path / name / "weights.safetensors" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    assert all(p.dtype == torch.float32 for p in loaded.model.parameters())


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", None),
        ("config.json", "{"),
        ("model.safetensors", None),
        ("model.safetensors", "no tensors"),
        ("1_Pooling/config.json", "{"),
        ("1_Pooling/config.json", '{"pooling_mode": "sum"}'),
    ],
)
def test_a_folder_that_cannot_be_loaded(tmp_path: Path, file: str, content: str | None) -> None:
    tiny_encoder(tmp_path)
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    if content is None:
        path.unlink()
    else:
        path.write_text(content, "utf-8")
    with pytest.raises(MegError, match=r"could not be loaded"):
        TextEncoder(tmp_path)


def similarities(encoder: TextEncoder, pseudo: PseudoKnowledge) -> tuple[float, float]:
    """Mean cosine of a rephrase to its own query and to the nearest other one."""
    queries = encoder.encode([fact.prompt for fact in pseudo.facts])
    rephrases = encoder.encode([fact.rephrases[0] for fact in pseudo.facts])
    cosines = rephrases @ queries.T
    own = cosines.diagonal()
    return own.mean().item(), cosines.fill_diagonal_(-1).amax(1).mean().item()


def test_tuning_brings_rephrases_to_their_query(encoder: TextEncoder) -> None:
    pseudo, steps = pseudo_knowledge(), list[int]()
    own, other = similarities(encoder, pseudo)
    encoder.tune(pseudo, TINY, seed=0, progress=steps.append)
    tuned_own, tuned_other = similarities(encoder, pseudo)
    assert tuned_own - tuned_other > own - other + 0.1
    assert steps == [1] * TINY.steps
    assert not encoder.model.training
    vectors = encoder.encode(QUERIES)
    assert torch.equal(encoder.encode(QUERIES), vectors)  # no dropout left on


def test_a_seed_names_an_encoder(folder: Path) -> None:
    vectors = []
    for seed in (0, 0, 1):
        encoder = TextEncoder(folder)
        encoder.tune(
            pseudo_knowledge(), EncoderSettings(steps=3, batch_size=8, lr=1e-3), seed, progress=lambda done: None
        )
        vectors.append(encoder.encode(QUERIES))
    assert torch.equal(vectors[0], vectors[1])
    assert not torch.equal(vectors[0], vectors[2])


def no_step(done: int) -> None:
    pytest.fail("a training step was taken")


def test_no_steps_change_nothing(encoder: TextEncoder) -> None:
    before = encoder.encode(QUERIES)
    encoder.tune(PseudoKnowledge((), (), ()), EncoderSettings(steps=0), seed=0, progress=no_step)
    assert torch.equal(encoder.encode(QUERIES), before)


def test_too_little_pseudo_knowledge(encoder: TextEncoder) -> None:
    with pytest.raises(MegError, match="needs at least 64 pseudo-facts, there are 9"):
        encoder.tune(pseudo_knowledge(3), EncoderSettings(), seed=0, progress=no_step)


def triples(pseudo: PseudoKnowledge, settings: EncoderSettings, seed: int = 0) -> list[list[tuple[str, str, str]]]:
    """The triples, batch by batch."""
    rows = list(training_triples(pseudo, settings, seed))
    assert len(rows) == settings.steps * settings.batch_size
    return [rows[i : i + settings.batch_size] for i in range(0, len(rows), settings.batch_size)]


def test_batches_of_two_relations() -> None:
    pseudo = pseudo_knowledge(12)
    by_prompt = {fact.prompt: fact for fact in pseudo.facts}
    assert len(by_prompt) == 36
    seen = set()
    for batch in triples(pseudo, TINY):
        facts = [by_prompt[query] for _, query, _ in batch]
        assert len(set(facts)) == TINY.batch_size  # no fact stands twice in a batch
        relations = {fact.relation for fact in facts}
        assert len(relations) <= RELATIONS_PER_BATCH
        seen |= relations
    assert seen == {"capital", "tongue", "mother"}


def test_small_relations_are_put_together() -> None:
    settings = EncoderSettings(steps=5, batch_size=8)
    for batch in triples(pseudo_knowledge(3), settings):
        assert len({query for _, query, _ in batch}) == 8


def test_rephrases_and_negatives_belong_to_the_fact() -> None:
    pseudo = pseudo_knowledge()
    by_prompt = {fact.prompt: fact for fact in pseudo.facts}
    for batch in triples(pseudo, TINY):
        for rephrase, query, negative in batch:
            fact = by_prompt[query]
            assert rephrase.removeprefix("It rained. ") in fact.rephrases
            assert fact.subject and fact.relation
            assert fact.subject in negative and fact.relation not in negative


@pytest.mark.parametrize(("noise", "expected"), [(0.0, {False}), (0.5, {False, True}), (1.0, {True})])
def test_the_share_of_noise(noise: float, expected: set[bool]) -> None:
    settings = EncoderSettings(steps=20, batch_size=8, noise=noise)
    batches = triples(pseudo_knowledge(), settings)
    assert {batch[0][0].startswith("It rained. ") for batch in batches} == expected


def test_where_there_is_no_other_question() -> None:
    facts = tuple(replace(fact, relation="") for fact in pseudo_knowledge().facts)
    by_prompt = {fact.prompt: fact for fact in facts}
    for batch in triples(PseudoKnowledge(facts, (), ()), TINY):
        assert all(negative in by_prompt[query].neighbours for _, query, negative in batch)


@pytest.mark.parametrize("unrelated", [(), ("Who is there?",)])
def test_a_fact_is_never_its_own_negative(unrelated: tuple[str, ...]) -> None:
    facts = tuple(replace(fact, relation="") for fact in pseudo_knowledge(3, neighbours=False).facts)
    pseudo = PseudoKnowledge(facts, (), unrelated)
    prompts = {fact.prompt for fact in facts}
    for batch in triples(pseudo, EncoderSettings(steps=200, batch_size=2)):
        for _, query, negative in batch:
            assert negative != query
            assert negative in prompts or negative in unrelated


def test_the_order_is_that_of_the_seed() -> None:
    pseudo = pseudo_knowledge()
    assert triples(pseudo, TINY, 0) == triples(pseudo, TINY, 0)
    assert triples(pseudo, TINY, 0) != triples(pseudo, TINY, 1)


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"batch_size": 1}, {"lr": 0.0}, {"temperature": 0.0}])
def test_settings_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EncoderSettings(**wrong)  # type: ignore[arg-type]
