"""The text encoder: vectors, files, the order of the training triples, and tuning on a toy problem."""

import json
import math
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megedit.encoder import (
    RELATIONS_PER_BATCH,
    EncoderSettings,
    TextEncoder,
    info_nce,
    last_sentences,
    training_triples,
)
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
    states = encoder.model(**encoder.tokenizer([query], return_tensors="pt")).last_hidden_state
    return torch.nn.functional.normalize(pool(states[0]), dim=0)


def weighted_sum(states: Tensor) -> Tensor:
    """The first state once, the second twice and so on."""
    return (states * torch.arange(1, len(states) + 1)[:, None]).sum(0)


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize(
    ("config", "pooling", "pool"),
    [
        (None, "mean", lambda states: states.mean(0)),
        ({"pooling_mode": "cls"}, "cls", lambda states: states[0]),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls", lambda states: states[0]),
        ({"pooling_mode_max_tokens": True}, "max", lambda states: states.amax(0)),
        ({"pooling_mode_lasttoken": True}, "lasttoken", lambda states: states[-1]),
        ({"pooling_mode": "weightedmean"}, "weightedmean", lambda states: weighted_sum(states)),
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
    expected = torch.stack([pooled(encoder, query, pool) for query in QUERIES])
    torch.testing.assert_close(encoder.encode(QUERIES), expected)
    assert TextEncoder(tmp_path, "max").pooling == "max"


def test_many_texts_come_back_in_their_order(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [" ".join(["word"] * (i % 7 + 1)) + f" {i}" for i in range(23)]
    expected = torch.cat([encoder.encode([text]) for text in texts])
    monkeypatch.setattr("megedit.encoder.TOKENISED_AT_ONCE", 10)
    monkeypatch.setattr("megedit.encoder.ENCODED_AT_ONCE", 4)
    torch.testing.assert_close(encoder.encode(texts), expected, rtol=1e-4, atol=1e-5)  # float32 rounding


def test_what_the_writer_did_not_mean_is_not_read(encoder: TextEncoder) -> None:
    spellings = ["3. Who wrote\u200b  Emma? ", "Who wrote Emma?", "- Who wrote Emma?", "Who wrote Emma?"]
    assert len(encoder.encode(spellings).unique(dim=0)) == 1


@pytest.mark.parametrize("texts", [[""], ["", "Rome"], ["\u200b"]])
def test_nothing_to_read(encoder: TextEncoder, texts: list[str]) -> None:
    assert encoder.encode(texts).isfinite().all()


PREAMBLE = "Once upon a time there was a town by a river, and nobody knew its name. " * 80
QUESTION = "Who wrote Emma?"


def test_the_end_of_a_long_text_is_read(encoder: TextEncoder) -> None:
    """Not its beginning, which is the same for all questions behind one preamble."""
    texts = [PREAMBLE + QUESTION, PREAMBLE + "What is the capital of France?", QUESTION, PREAMBLE[:100] + QUESTION]
    assert encoder.overlong(texts) == [0, 1]
    first, second = encoder.encode(texts[:2])
    assert first @ second < 0.99
    cut = last_sentences(PREAMBLE + QUESTION, 100)
    assert cut == PREAMBLE[:72] + QUESTION
    one_word = "abcdefgh" * 1000
    assert encoder.overlong([one_word]) == [0] and encoder.encode([one_word]).isfinite().all()


@pytest.mark.parametrize(
    ("text", "length", "end"),
    [
        ("It rained. The sun came. Who is it?", 25, "Who is it?"),
        ("It rained. The sun came. Who is it?", 26, "The sun came. Who is it?"),
        ("It rained. The sun came. Who is it?", 99, "The sun came. Who is it?"),
        ("a sentence of many words", 12, "many words"),
        ("abcdefgh", 3, "fgh"),
        ("abcdefgh", 0, ""),
    ],
)
def test_the_last_sentences(text: str, length: int, end: str) -> None:
    assert last_sentences(text, length) == end


def test_no_code_of_a_folder_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a configuration names, nothing is run, asked or looked for on the network."""
    plant(tiny_encoder(tmp_path))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("the network was used"))
    encoder = TextEncoder(tmp_path)
    (saved := tmp_path / "saved").mkdir()
    encoder.save(saved)
    plant(saved)
    TextEncoder(saved, encoder.pooling).encode(QUERIES)
    assert not (tmp_path / "ran").exists()


def plant(folder: Path) -> None:
    """Let the folder ask for its own code, and for an attention kernel of the hub, wherever transformers may look."""
    (folder / "mine.py").write_text(f"from pathlib import Path\nPath({str(folder.parent / 'ran')!r}).touch()\n")
    kinds = {"AutoConfig": "Config", "AutoModel": "Model", "AutoProcessor": "Processor"}
    code: dict[str, object] = {kind: f"mine.{name}" for kind, name in kinds.items()}
    code["AutoTokenizer"] = ["mine.Tokenizer", "mine.Tokenizer"]
    kernel = "kernels-community/flash-attn"
    more = {"auto_map": code, "attn_implementation": kernel, "_attn_implementation": kernel}
    for name in ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
        path = folder / name
        fields = json.loads(path.read_text("utf-8")) if path.is_file() else {"processor_class": "Mine"}
        path.write_text(json.dumps({**fields, **more}), "utf-8")


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
        ("1_Pooling/config.json", '{"pooling_mode_cls_token": true, "pooling_mode_max_tokens": true}'),
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


def test_info_nce_by_hand() -> None:
    """Cosines 1 and 0 at a temperature of 1/2: each rephrase is at its own query, or at nobody's."""
    east, north, west = torch.eye(3)
    found = info_nce(torch.stack([east]), torch.stack([east]), torch.stack([north]), 0.5)
    assert found.item() == pytest.approx(math.log(1 + math.exp(-2)))
    lost = info_nce(torch.stack([east, west]), torch.stack([north, west]), torch.stack([north, east]), 0.5)
    each = [math.log(3 + math.exp(2)), math.log(3 + math.exp(2)) - 2]
    assert lost.item() == pytest.approx(sum(each) / 2)


def test_rows_of_one_length_at_a_time_change_no_gradient(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = list(training_triples(pseudo_knowledge(), TINY, 0))[:8]
    gradients = []
    for at_once in (3, 100):
        monkeypatch.setattr("megedit.encoder.EMBEDDED_AT_ONCE", at_once)
        encoder = TextEncoder(folder)  # no dropout: not in training
        encoder.model.requires_grad_(True)
        encoder.loss(batch).backward()
        gradients.append(encoder.model.get_input_embeddings().weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)  # float32 rounding


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
        encoder.tune(pseudo_knowledge(3), EncoderSettings(steps=1), seed=0, progress=no_step)


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


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"batch_size": 1}, {"lr": 0.0}])
def test_settings_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EncoderSettings(**wrong)  # type: ignore[arg-type]
