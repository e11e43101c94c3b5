"""The router: a network that memorises, an entropy that tells, and a threshold read from held-out queries."""

import json
import math
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from megedit.encoder import TextEncoder
from megedit.errors import MegError
from megedit.router.calibration import CalibrationSet, calibrate, calibrate_rule
from megedit.router.decision import RULES, Calibration, Decision, Enrolled, Features
from megedit.router.familiarity import (
    FamiliarityNetwork,
    FamiliaritySettings,
    train_familiarity,
    training_steps,
)
from megedit.router.index import EditVectors
from megedit.router.router import Router, encode_queries, last_sentence, log_entropy
from megedit.settings import Rule

SIZE, EDITS = 32, 24
SETTINGS = FamiliaritySettings(classes=10, blocks=2, steps=120, batch_size=EDITS, lr=3e-3)


def unit_vectors(rows: int, seed: int) -> Tensor:
    return normalize(torch.randn(rows, SIZE, generator=torch.Generator().manual_seed(seed)), dim=1)


def near(vectors: Tensor, seed: int) -> Tensor:
    """Rephrases: unit vectors at a cosine of about 0.98 to these."""
    return normalize(vectors + 0.2 * unit_vectors(len(vectors), seed), dim=1)


@pytest.fixture(scope="module")
def edits() -> Tensor:
    return unit_vectors(EDITS, 0)


@pytest.fixture(scope="module")
def network(edits: Tensor) -> FamiliarityNetwork:
    return train_familiarity(edits, SETTINGS, seed=0)


@pytest.mark.parametrize(
    ("query", "last"),
    [
        ("Who wrote the book?", None),
        ("It rained all day. Who wrote the book?", "Who wrote the book?"),
        ('She said "no." Really! Who wrote\nthe book? ', "Who wrote\nthe book?"),
        ("(It rained.) Who wrote the book", "Who wrote the book"),
        ("Where was Dr. Martin Luther King born?", "Martin Luther King born?"),
        ("Which port does billing use? Be brief.", "Be brief."),
        ("Version 1.2 was when published?", None),
        ("", None),
        ("One sentence without an end", None),
    ],
)
def test_the_last_of_several_sentences(query: str, last: str | None) -> None:
    assert last_sentence(query) == last


class Encoder:
    """Vectors by text, and the texts that were asked for."""

    def __init__(self, vectors: dict[str, Tensor]) -> None:
        self.vectors, self.asked = vectors, list[str]()

    def encode(self, queries: list[str]) -> Tensor:
        self.asked += queries
        return torch.stack([self.vectors[query] for query in queries])


def test_the_reading_nearer_to_an_edit_counts(edits: Tensor) -> None:
    question, belongs = "Who is the present owner?", "The Atlas project changed hands. Who is the present owner?"
    behind, alone = "It rained. Who leads the Atlas project?", "Who leads the Atlas project?"
    strange = unit_vectors(2, 3)
    encoder = Encoder(
        {behind: strange[0], alone: edits[4], belongs: near(edits[:1], 5)[0], question: strange[1], "Plain": edits[2]}
    )
    known, subjects = EditVectors.pack(edits), [None] * EDITS
    vectors = encode_queries(cast(TextEncoder, encoder), [behind, "Plain", belongs], known, subjects)
    torch.testing.assert_close(vectors, torch.stack([edits[4], edits[2], encoder.vectors[belongs]]))
    assert encoder.asked == [behind, "Plain", belongs, alone, question]
    encoder.asked.clear()
    encode_queries(cast(TextEncoder, encoder), ["Plain"], known, subjects)
    assert encoder.asked == ["Plain"]


@pytest.mark.parametrize(("subject", "counts"), [("Michael Jordan", True), ("Jordan Peterson", False), (None, False)])
def test_a_short_last_sentence_must_name_the_subject(edits: Tensor, subject: str | None, counts: bool) -> None:
    query, alone = "It rained. Michael Jordan, the", "Michael Jordan, the"
    encoder = Encoder({query: unit_vectors(1, 3)[0], alone: edits[4]})
    vectors = encode_queries(cast(TextEncoder, encoder), [query], EditVectors.pack(edits), [subject] * EDITS)
    torch.testing.assert_close(vectors[0], edits[4] if counts else encoder.vectors[query])


def test_entropy_by_hand() -> None:
    network = FamiliarityNetwork(SIZE, FamiliaritySettings(classes=4, blocks=1)).eval()
    vectors = unit_vectors(2, 1)
    torch.nn.init.zeros_(network.head.weight)
    for logits, expected in (
        ([0.0, 0.0, 0.0, 0.0], math.log(4)),
        ([math.log(3), 0.0, -200.0, -200.0], -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))),
        ([500.0, 0.0, 0.0, 0.0], 0.0),
    ):
        network.head.bias.data = torch.tensor(logits)
        torch.testing.assert_close(network.entropy(vectors), torch.full((2,), expected))


def test_the_network_memorises(network: FamiliarityNetwork, edits: Tensor) -> None:
    known, rephrased = network.entropy(edits), network.entropy(near(edits, 2))
    strange = network.entropy(unit_vectors(200, 3))
    assert known.max() < 0.5 * strange.mean()
    assert rephrased.mean() < 0.5 * strange.mean()
    assert (strange >= 0).all() and (strange <= math.log(SETTINGS.classes)).all()
    assert len(network(edits).argmax(1).unique()) > SETTINGS.classes / 2  # of the random classes, most are in use


def test_a_seed_names_a_network(network: FamiliarityNetwork, edits: Tensor) -> None:
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    again = train_familiarity(edits, SETTINGS, seed=0)
    assert torch.equal(torch.random.get_rng_state(), state)
    other = train_familiarity(edits, SETTINGS, seed=1)
    for name, parameter in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], parameter)
    assert not torch.equal(other.head.weight, network.head.weight)
    assert not network.training and not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize(("edits", "steps"), [(1, 300), (3000, 300), (3840, 300), (10_000, 781)])
def test_how_many_steps(edits: int, steps: int) -> None:
    assert training_steps(edits, FamiliaritySettings(steps=300, batch_size=256)) == steps


def test_progress_counts_the_steps(edits: Tensor) -> None:
    done: list[int] = []
    settings = FamiliaritySettings(classes=2, blocks=1, steps=4, batch_size=7 * EDITS)
    train_familiarity(edits, settings, 0, done.append)
    assert done == [1] * training_steps(EDITS, settings) == [1] * 4


SUBJECTS = [f"Town {i}" for i in range(EDITS)]


def held_out(subjects: bool = True) -> CalibrationSet:
    """Twenty facts; their rephrases name the subject, the strange queries do not."""
    enrolled = unit_vectors(20, 10)
    names = [f"River {i}" if subjects else None for i in range(20)]
    texts = [f"Where does the river {i} end?" for i in range(20)] + [f"Where is mount {i}?" for i in range(60)]
    return CalibrationSet(enrolled, names, near(enrolled, 11), unit_vectors(60, 12), texts)


def test_near_queries_count_little_for_the_threshold(edits: Tensor) -> None:
    usual = held_out()
    vectors = torch.cat([usual.unfamiliar, usual.familiar])  # nothing tells the last ones from rephrases
    texts = replace(usual, unfamiliar=vectors, queries=[*usual.queries, *usual.queries[:20]])
    settings = replace(SETTINGS, rule="similarity", false_positives=0.05)
    counted = calibrate(EditVectors.pack(edits), SUBJECTS, texts, settings, 0).decision
    assert counted.true_positive_rate < 0.5
    for cost in (0.0, 0.25):
        settings = replace(settings, near_cost=cost)
        little = calibrate(EditVectors.pack(edits), SUBJECTS, replace(texts, near=20), settings, 0).decision
        assert little.true_positive_rate == 1 and little.false_positive_rate <= 0.05


def test_the_threshold_weighs_near_queries_against_rephrases() -> None:
    """Eight rephrases at 0.9 and two at 0.5; ten near queries at 0.6; ten strange ones at 0.1."""
    similarity = np.array([0.9] * 8 + [0.5] * 2 + [0.1] * 10 + [0.6] * 10)
    features = Features(np.zeros(30), similarity, np.ones(30))
    truth, counted = np.arange(30) < 10, np.arange(30) < 20
    for cost, recognised in ((0.0, 1.0), (0.19, 1.0), (0.21, 0.8)):
        settings = FamiliaritySettings(near_cost=cost)
        decision, _ = calibrate_rule("similarity", features, truth, counted, settings)
        assert decision.true_positive_rate == recognised and decision.false_positive_rate == 0


@pytest.mark.parametrize("rule", ["entropy", "similarity", "combined", "named", "subject"])
def test_an_easy_set_is_separated(edits: Tensor, rule: Rule) -> None:
    settings = FamiliaritySettings(
        classes=10, blocks=2, steps=120, batch_size=EDITS, lr=3e-3, rule=rule, false_positives=0.09
    )
    done: list[int] = []
    calibration = calibrate(EditVectors.pack(edits), SUBJECTS, held_out(), settings, 0, done.append)
    assert sum(done) == training_steps(EDITS + 20, settings)
    assert calibration.rule == rule
    auc = {name: reached.auc for name, reached in calibration.rules.items()}
    assert auc.keys() == RULES.keys()
    assert auc["similarity"] == auc["combined"] == auc["named"] == auc["subject"] == 1
    assert auc["entropy"] > 0.97
    chosen = calibration.decision
    assert chosen.true_positive_rate > 0.9 and chosen.false_positive_rate < 0.1
    for name, weight, sign in zip(Features._fields, chosen.weights, (-1, 1, 1), strict=True):
        assert sign * weight > 0 if name in RULES[rule] else weight == 0
    # the rates are those of the threshold on the very same queries
    network = train_familiarity(torch.cat([EditVectors.pack(edits).unpack(), held_out().enrolled]), settings, 0)
    texts = held_out().queries
    enrolled = [Enrolled(subject) for subject in (*SUBJECTS, *held_out().subjects)]
    router = Router(network, EditVectors.pack(torch.cat([edits, held_out().enrolled])), enrolled, calibration)
    familiar = router.route(held_out().familiar, texts[:20])
    unfamiliar = router.route(held_out().unfamiliar, texts[20:])
    assert familiar.named.all() and not unfamiliar.named.any()
    assert familiar.familiar.float().mean().item() == pytest.approx(chosen.true_positive_rate)
    assert unfamiliar.familiar.float().mean().item() == pytest.approx(chosen.false_positive_rate)
    # the curve runs from strict to lenient and ends where everything passes
    thresholds, false_positive, true_positive = zip(*calibration.curve, strict=True)
    assert list(thresholds) == sorted(thresholds, reverse=True)
    assert list(false_positive) == sorted(false_positive) and list(true_positive) == sorted(true_positive)
    assert (false_positive[-1], true_positive[-1]) == (1.0, 1.0)
    assert all(map(math.isfinite, thresholds))


def test_calibration_is_deterministic(edits: Tensor) -> None:
    torch.manual_seed(1)
    first = calibrate(EditVectors.pack(edits), SUBJECTS, held_out(), SETTINGS, 0)
    torch.manual_seed(2)
    assert calibrate(EditVectors.pack(edits), SUBJECTS, held_out(), SETTINGS, 0) == first


def test_what_does_not_name_the_subject_must_be_surer() -> None:
    """The threshold lets some strange queries through, but none of those that do not name the subject they are near."""
    similarity = np.concatenate([np.linspace(0.4, 1, 50), np.linspace(0, 0.95, 50), np.linspace(0, 0.95, 200)])
    named = np.concatenate([np.ones(50), np.zeros(50), np.ones(200)])  # rephrases, strange ones, others about a subject
    named[20] = 0  # a rephrase too
    features = Features(np.zeros(300), similarity, named)
    truth, counted = np.arange(300) < 50, np.arange(300) < 100
    lenient = FamiliaritySettings(false_positives=0.5, near_cost=0.0)
    decision, _ = calibrate_rule("named", features, truth, counted, lenient)
    strange = decision.weights.similarity * similarity[50:100]
    assert (strange >= decision.threshold).any() and not (strange >= decision.unnamed_threshold).any()
    assert decision.false_positive_rate == 0 and decision.true_positive_rate == 0.98
    plain, _ = calibrate_rule("similarity", features, truth, counted, lenient)
    assert plain.unnamed_threshold == plain.threshold and plain.false_positive_rate > 0.1


def test_without_subjects_the_combined_rule_decides(edits: Tensor) -> None:
    calibration = calibrate(EditVectors.pack(edits), [None] * EDITS, held_out(subjects=False), SETTINGS, 0)
    assert calibration.rule == "combined" and "subject" not in calibration.rules


def test_too_few_queries_to_calibrate(edits: Tensor) -> None:
    few = replace(held_out(), unfamiliar=unit_vectors(1, 12), queries=held_out().queries[:21])
    with pytest.raises(MegError, match="too few to calibrate the router"):
        calibrate(EditVectors.pack(edits), SUBJECTS, few, SETTINGS, 0)


def some_calibration(rule: Rule = "combined", threshold: float = 9.5) -> Calibration:
    decision = Decision(Features(-2.0, 10.0, 0.0), threshold, threshold, 0.99, 0.97, 0.01)
    subject = Decision(Features(-2.0, 10.0, 4.0), threshold + 3, threshold + 5, 0.999, 0.99, 0.01)
    alone = Decision(Features(0.0, 10.0, 0.0), 8.0, 8.0, 0.98, 0.9, 0.01)
    rules: dict[Rule, Decision] = {"combined": decision, "subject": subject, "similarity": alone, "named": alone}
    return Calibration(rule, rules, [(1.25, 0.0, 0.5), (-0.1, 1.0, 1.0)])


def test_calibration_json_round_trip() -> None:
    calibration = some_calibration()
    assert Calibration.from_json(json.loads(json.dumps(calibration.to_json()))) == calibration


def test_route(network: FamiliarityNetwork, edits: Tensor) -> None:
    router = Router(network, EditVectors.pack(edits), [Enrolled()] * EDITS, some_calibration())
    queries = torch.cat([edits[[5, 3]], near(edits[[7]], 4), unit_vectors(1, 5)])
    routing = router.route(queries, ["a", "b", "c", "d"])
    similarities = queries @ EditVectors.pack(edits).unpack().T
    assert routing.nearest.tolist() == [5, 3, 7, int(similarities[3].argmax())]
    torch.testing.assert_close(routing.similarity[:2], torch.ones(2), rtol=0, atol=5e-3)  # in 8 bits
    torch.testing.assert_close(routing.similarity, similarities.amax(1))
    torch.testing.assert_close(routing.entropy, network.entropy(queries))
    torch.testing.assert_close(routing.score, -2 * log_entropy(routing.entropy) + 10 * routing.similarity)
    assert routing.threshold.tolist() == [9.5] * 4
    assert torch.equal(routing.familiar, routing.score >= 9.5)
    assert routing.familiar.tolist()[:2] == [True, True] and routing.familiar.dtype == torch.bool
    assert not router.route(queries[:0], []).familiar.numel()


def test_the_subject_counts_where_there_is_one(network: FamiliarityNetwork, edits: Tensor) -> None:
    subjects = ["Ōsaka", None, "Rome", *[None] * (EDITS - 3)]
    router = Router(
        network, EditVectors.pack(edits), [Enrolled(subject) for subject in subjects], some_calibration("subject")
    )
    routing = router.route(edits[[0, 0, 1, 2]], ["Is ŌSAKA large?", "Is Tokyo large?", "Is Rome large?", "Romeo?"])
    assert routing.named.tolist() == [True, False, False, False]
    assert routing.threshold.tolist() == [12.5, 14.5, 9.5, 14.5]  # higher where the subject is not named at all
    plain = -2 * log_entropy(routing.entropy) + 10 * routing.similarity
    torch.testing.assert_close(routing.score - plain, torch.tensor([4.0, 0.0, 0.0, 0.0]))


def test_a_removed_edit_keeps_its_queries(network: FamiliarityNetwork, edits: Tensor) -> None:
    """What is nearest to it is unfamiliar, as near as it may be; all else is as it was."""
    enrolled, queries, texts = [Enrolled()] * EDITS, torch.cat([edits, unit_vectors(20, 5)]), ["?"] * (EDITS + 20)
    calibration, vectors = some_calibration(threshold=-100.0), EditVectors.pack(edits)
    before = Router(network, vectors, enrolled, calibration).route(queries, texts)
    removed = [replace(edit, removed=i == 3) for i, edit in enumerate(enrolled)]
    after = Router(network, vectors, removed, calibration).route(queries, texts)
    assert before.familiar.all() and torch.equal(after.familiar, before.nearest != 3) and not after.familiar[3]
    assert torch.equal(after.score, before.score) and torch.equal(after.nearest, before.nearest)


@pytest.mark.parametrize(
    ("subject", "prompt", "close", "used"),
    [
        (None, "Tell me who is it", True, True),
        ("it", "Tell me who is it", True, True),
        ("IT", "Tell me who is it", True, True),
        ("Rome", "Tell me who is it", True, False),  # another subject
        (None, "Who is it in 2020?", True, False),  # another year
        (None, "Tell me who is it", False, False),  # another question
    ],
)
def test_a_removed_fact_stated_anew(
    network: FamiliarityNetwork, edits: Tensor, subject: str | None, prompt: str, close: bool, used: bool
) -> None:
    """Its old wording asks for the new statement, although the removed edit is nearer and the network knows it."""
    vectors = edits.clone()
    if close:
        vectors[1] = near(edits[:1], 7)[0]
    enrolled = [Enrolled("it", removed=True, prompt="Who is it?"), Enrolled(subject, prompt=prompt)]
    enrolled += [Enrolled()] * (EDITS - 2)
    router = Router(network, EditVectors.pack(vectors), enrolled, some_calibration())
    routing = router.route(edits[[0, 0]], ["Who is it?", "Who is it now?"])
    assert routing.familiar.tolist() == [used] * 2
    assert routing.nearest.tolist() == [int(used)] * 2
    if used:
        assert set(routing.rule) == {"similarity"}
        torch.testing.assert_close(routing.similarity, (edits[:1] @ EditVectors.pack(vectors).unpack()[1]).repeat(2))


def test_the_same_words_stated_anew(network: FamiliarityNetwork, edits: Tensor) -> None:
    """Whichever of the two comes first, the one in force is meant."""
    twins = edits.clone()
    twins[1] = twins[0]
    for gone in (0, 1):
        known = [Enrolled(prompt="Who is it?", removed=i == gone) for i in range(2)] + [Enrolled()] * (EDITS - 2)
        routing = Router(network, EditVectors.pack(twins), known, some_calibration()).route(twins[:1], ["Who is it?"])
        assert routing.nearest.tolist() == [1 - gone] and routing.familiar.all()


def test_spellings_of_one_query(network: FamiliarityNetwork, edits: Tensor) -> None:
    """Capitals only, a list number in front, characters that nobody sees: the same words."""
    known = [Enrolled("Ada Brook", prompt="Where was Ada Brook born?"), *[Enrolled()] * (EDITS - 1)]
    router = Router(network, EditVectors.pack(edits), known, some_calibration("subject"))
    spellings = ["WHERE WAS ADA BROOK BORN?", "3. Where was Ada Brook born?", "Where was Ada\u200b Brook  born"]
    routing = router.route(edits[[5, 5, 5]], spellings)  # vectors of another edit
    assert routing.nearest.tolist() == [0, 0, 0] and routing.named.tolist() == [1.0] * 3


def test_the_very_words_of_an_edit_are_of_that_edit(network: FamiliarityNetwork, edits: Tensor) -> None:
    """Two edits whose vectors cannot be told apart; one of them is removed."""
    twins = edits.clone()
    twins[1] = twins[0]
    for gone in (0, 1):
        known = [Enrolled(prompt=f"Who is {i}?", removed=i == gone) for i in range(EDITS)]
        router = Router(network, EditVectors.pack(twins), known, some_calibration(threshold=-100.0))
        routing = router.route(twins[[0, 0, 0]], ["who is  0?", "Who is 1?", "Who is it?"])
        assert routing.nearest[:2].tolist() == [0, 1]
        assert routing.familiar[:2].tolist() == [gone == 1, gone == 0]
        torch.testing.assert_close(routing.similarity[0], routing.similarity[1])


def test_the_network_does_not_decide_on_what_it_was_not_trained_on() -> None:
    calibration = replace(some_calibration("subject"), rules=dict.fromkeys(RULES, some_calibration().decision))
    known = {learned: Enrolled("Rome", learned) for learned in (True, False)}
    nobody = {learned: Enrolled(None, learned) for learned in (True, False)}
    chosen = {rule: replace(calibration, rule=rule) for rule in RULES}
    assert {rule: made.rule_for(known[True]) for rule, made in chosen.items()} == {rule: rule for rule in RULES}
    for made in chosen.values():
        assert all("entropy" not in RULES[made.rule_for(edit)] for edit in (known[False], nobody[False]))
        assert all("subject" not in RULES[made.rule_for(edit)] for edit in (nobody[True], nobody[False]))
    assert chosen["subject"].rule_for(known[False]) == "named"
    without = replace(calibration, rules={"similarity": calibration.decision, "combined": calibration.decision})
    assert replace(without, rule="combined").rule_for(known[False]) == "similarity"


def test_entropy_has_a_logarithm() -> None:
    assert log_entropy(torch.zeros(1)).isfinite().all()
    torch.testing.assert_close(log_entropy(torch.tensor([math.e])), torch.ones(1))


def test_the_threshold_itself_is_familiar(network: FamiliarityNetwork, edits: Tensor) -> None:
    nobody, vectors = [Enrolled()] * EDITS, EditVectors.pack(edits)
    score = Router(network, vectors, nobody, some_calibration()).route(edits[:1], ["a"]).score.item()
    for threshold, familiar in ((score, True), (score + 1e-3, False)):
        router = Router(network, vectors, nobody, some_calibration(threshold=threshold))
        assert router.route(edits[:1], ["a"]).familiar.tolist() == [familiar]


@pytest.mark.parametrize("wrong", [{"rule": "nearest"}, {"classes": 1}, {"blocks": 0}, {"near_cost": -1.0}])
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FamiliaritySettings(**wrong)
