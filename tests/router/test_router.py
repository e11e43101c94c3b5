"""The router: candidates, a gate, and a verifier that reads; and the network whose entropy tells."""

import math
from collections.abc import Sequence
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from megedit.encoder import TextEncoder
from megedit.router.decision import Calibration, Decision, Features
from megedit.router.familiarity import FamiliarityNetwork, FamiliaritySettings, train_familiarity, training_steps
from megedit.router.index import EditVectors, owners_of
from megedit.router.router import CANDIDATES, Enrolled, Router, log_entropy
from megedit.router.verifier import Verifier, edit_text
from megedit.settings import RouterSettings, Rule

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


class Encoder:
    """Vectors by text, and the texts that were asked for."""

    def __init__(self, vectors: dict[str, Tensor]) -> None:
        self.vectors, self.asked = vectors, list[str]()

    def encode(self, queries: Sequence[str]) -> Tensor:
        self.asked += queries
        return torch.stack([self.vectors[query] for query in queries]) if queries else torch.zeros(0, SIZE)


class Reader:
    """A verifier: logits by query and edit, and the pairs that it was asked."""

    def __init__(self, logits: dict[tuple[str, str], float], otherwise: float = -9.0) -> None:
        self.logits, self.otherwise, self.asked = logits, otherwise, list[tuple[str, str]]()

    def read(self, queries: Sequence[str], edits: Sequence[Sequence[str]]) -> list[list[float]]:
        pairs = [[(query, text) for text in of] for query, of in zip(queries, edits, strict=True)]
        self.asked += [pair for of in pairs for pair in of]
        return [[self.logits.get(pair, self.otherwise) for pair in of] for of in pairs]


def some_calibration(rule: Rule = "verified", gate: float = 0.5, threshold: float = 1.0) -> Calibration:
    """The gate looks at the similarity alone."""
    similarity = Decision(Features(0.0, 1.0), gate, 0.98, 0.9, 0.01)
    entropy = Decision(Features(-1.0, 0.0), 4.0, 0.97, 0.9, 0.01)
    decisions = {"similarity": similarity, "combined": similarity, "entropy": entropy}
    return Calibration(rule, cast(Any, decisions), threshold, [])


def prompt(i: int) -> str:
    return f"Who is {i}?"


def read(query: str, i: int) -> tuple[str, str]:
    """What the verifier is asked about a query and edit i."""
    return query, edit_text(prompt(i), f"target {i}")


class World:
    """EDITS edits, `Who is i?`, and a router of a verifier that gives these logits."""

    def __init__(
        self,
        edits: Tensor,
        network: FamiliarityNetwork,
        queries: dict[str, Tensor],
        logits: dict[tuple[str, str], float] | None = None,
        calibration: Calibration | None = None,
        texts: dict[int, tuple[str, ...]] | None = None,
        learned: bool = True,
    ) -> None:
        """queries: their vectors. texts: further ones of edits, with the vectors of `queries`."""
        more = texts or {}
        self.enrolled = [Enrolled((prompt(i), *more.get(i, ())), f"target {i}", learned) for i in range(len(edits))]
        rows = [queries.get(text, edits[i]) for i, edit in enumerate(self.enrolled) for text in edit.texts]
        self.owners = owners_of([len(edit.texts) for edit in self.enrolled])
        self.encoder, self.reader = Encoder(queries), Reader(logits or {})
        made = calibration or some_calibration()
        self.router = Router(
            cast(TextEncoder, self.encoder),
            network,
            EditVectors.pack(torch.stack(rows) if rows else torch.zeros(0, SIZE)),
            self.owners,
            self.enrolled,
            made,
            cast(Verifier, self.reader) if made.rule == "verified" else None,
        )


def test_the_candidate_that_the_verifier_is_surest_of_fires(network: FamiliarityNetwork, edits: Tensor) -> None:
    between = normalize(edits[3] + 0.9 * edits[8], dim=0)
    world = World(edits, network, {"q": between}, {read("q", 3): 2.0, read("q", 8): 3.0})
    (found,) = world.router.route(["q"])
    assert found.fires is not None and found.fires.edit == 8 and found.by == "verifier"
    assert (found.score, found.threshold) == (3.0, 1.0)
    assert [candidate.logit for candidate in found.candidates][:2] == [3.0, 2.0]
    assert len(found.candidates) <= CANDIDATES and len(world.reader.asked) == len(found.candidates)
    torch.testing.assert_close(found.vector, between)
    torch.testing.assert_close(torch.tensor(found.entropy), network.entropy(between[None])[0])


def test_a_query_that_no_candidate_is_read_in_fires_nothing(network: FamiliarityNetwork, edits: Tensor) -> None:
    for logit, fires in ((1.0, True), (0.99, False)):
        (found,) = World(edits, network, {"q": edits[3]}, {read("q", 3): logit}).router.route(["q"])
        assert (found.fires is not None) == fires and found.candidates[0].edit == 3


def test_the_gate_ends_what_is_near_no_edit(network: FamiliarityNetwork, edits: Tensor) -> None:
    far = unit_vectors(1, 5)[0]
    world = World(edits, network, {"q": far}, {read("q", i): 9.0 for i in range(EDITS)}, some_calibration(gate=0.9))
    (found,) = world.router.route(["q"])
    assert found.fires is None and found.by == "gate" and not world.reader.asked
    assert found.score < found.threshold == 0.9
    # asked why, the verifier is heard all the same
    candidates = world.router.nearest("q", 3)
    assert len(candidates) == 3 and all(candidate.logit == 9.0 for candidate in candidates)


def test_the_very_words_of_an_edit_fire_it(network: FamiliarityNetwork, edits: Tensor) -> None:
    """Capitals, a list number in front, characters that nobody sees; the verifier is not asked."""
    spellings = ["WHO IS 5?", "3. Who is 5?", "who is\u200b  5"]
    world = World(edits, network, dict.fromkeys(spellings, edits[7]))
    for found in world.router.route(spellings):
        assert found.fires is not None and found.fires.edit == 5 and found.by == "words"
    assert not world.reader.asked


def test_another_wording_and_an_alias_are_the_edits_own(network: FamiliarityNetwork, edits: Tensor) -> None:
    other = unit_vectors(1, 6)[0]
    queries = {"Which one?": other, "q": near(other[None], 7)[0], "which one": other}
    logits = {("q", edit_text("Which one?", "target 4")): 2.0}
    world = World(edits, network, queries, logits, texts={4: ("Which one?",)})
    by_reading, by_words = world.router.route(["q", "which one"])
    assert by_reading.fires is not None and by_reading.fires.edit == 4
    assert world.owners[by_reading.fires.row] == 4 and by_reading.fires.row == 5  # the row of its second text
    assert by_words.fires is not None and by_words.fires.edit == 4 and by_words.by == "words"


def test_a_query_of_several_sentences_is_read_in_parts(network: FamiliarityNetwork, edits: Tensor) -> None:
    query, alone = "It rained all day. Tell me who that is", "Tell me who that is"
    queries = {query: unit_vectors(1, 3)[0], alone: edits[4]}
    world = World(edits, network, queries, {read(query, 4): 2.0})
    (found,) = world.router.route([query])
    assert found.fires is not None and found.fires.edit == 4
    assert world.reader.asked[0] == read(query, 4)  # the verifier reads it whole
    torch.testing.assert_close(found.vector, edits[4])


@pytest.mark.parametrize("rule", ["entropy", "similarity", "combined"])
def test_the_other_rules_decide_without_a_verifier(network: FamiliarityNetwork, edits: Tensor, rule: Rule) -> None:
    far = unit_vectors(1, 5)[0]
    world = World(edits, network, {"near": edits[2], "far": far}, calibration=some_calibration(rule, gate=0.9))
    close, strange = world.router.route(["near", "far"])
    assert close.fires is not None and close.fires.edit == 2 and strange.fires is None
    assert close.by == strange.by == rule and close.candidates[0].logit is None
    if rule == "entropy":
        assert close.score == pytest.approx(-math.log(close.entropy))


def test_the_network_does_not_decide_on_what_it_has_not_learned(network: FamiliarityNetwork, edits: Tensor) -> None:
    for learned in (True, False):
        world = World(edits, network, {"q": edits[2]}, calibration=some_calibration("entropy"), learned=learned)
        (found,) = world.router.route(["q"])
        score = -math.log(max(found.entropy, 1e-6)) if learned else found.candidates[0].similarity
        assert found.score == pytest.approx(score)


def test_nothing_asked_and_nothing_enrolled(network: FamiliarityNetwork, edits: Tensor) -> None:
    assert World(edits, network, {}).router.route([]) == []
    world = World(edits[:0], network, {"q": edits[0]})
    (found,) = world.router.route(["q"])
    assert found.fires is None and found.candidates == () and found.by == "gate"
    assert world.router.nearest("q", 3) == ()
    one = World(edits[:1], network, {"q": edits[0]}, {read("q", 0): 5.0}).router.route(["q"])
    assert one[0].fires is not None


def test_what_asks_for_an_edit_is_what_would_fire_it(network: FamiliarityNetwork, edits: Tensor) -> None:
    old = ("Who leads it?", "Ines")
    logits = {("Who is its head?", edit_text(*old)): 2.0}
    queries = {"Who is its head?": edits[0], "When?": edits[1], "Who leads it?": edits[0]}
    world = World(edits, network, queries, logits)
    assert world.router.asks(["Who is its head?", "When?"], [old, old]) == [True, False]
    alone = World(edits, network, queries, calibration=some_calibration("similarity"))
    assert alone.router.asks(["Who is its head?", "When?"], [old, old]) == [True, False]


def test_entropy_has_a_logarithm() -> None:
    assert log_entropy(torch.zeros(1)).isfinite().all()
    torch.testing.assert_close(log_entropy(torch.tensor([math.e])), torch.ones(1))


@pytest.mark.parametrize("wrong", [{"classes": 1}, {"blocks": 0}])
def test_settings_of_the_network_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FamiliaritySettings(**wrong)


@pytest.mark.parametrize("wrong", [{"rule": "nearest"}, {"false_fires": 1.0}, {"gate_loss": -0.1}])
def test_settings_of_the_decision_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RouterSettings(**wrong)
