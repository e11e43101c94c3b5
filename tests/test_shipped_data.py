"""The data inside the package: sizes, and that edits and pseudo-knowledge stay apart."""

import gzip
from collections import Counter
from importlib.resources import files

import pytest

from megedit.edits import EditSet, normalise_query, read_edits
from megedit.edits.subjects import SubjectIndex
from megedit.pseudo.knowledge import PseudoKnowledge, load_pseudo_knowledge

DATA = files("megedit") / "data"


@pytest.fixture(scope="module")
def facts() -> EditSet:
    return read_edits(str(DATA / "facts.jsonl"))


@pytest.fixture(scope="module")
def pseudo() -> PseudoKnowledge:
    return load_pseudo_knowledge()


def test_facts_are_whole_and_free_of_contradictions(facts: EditSet) -> None:
    assert (len(facts), facts.format, facts.dropped) == (320, "plain jsonl", ())
    assert all(edit.subject and edit.relation for edit in facts)
    assert all(len({normalise_query(text) for text in (edit.prompt, *edit.rephrases)}) == 3 for edit in facts)
    assert len({(edit.subject, edit.relation) for edit in facts}) == 320
    assert (facts[0].prompt, facts[0].target) == ("The mother tongue of Danielle Darrieux is", "English")


def test_neighbours_of_facts_are_queries_of_no_fact(facts: EditSet) -> None:
    queries = {normalise_query(text) for edit in facts for text in (edit.prompt, *edit.rephrases)}
    neighbours = [text for edit in facts for text in edit.neighbours]
    assert not queries & set(map(normalise_query, neighbours))
    assert Counter(len(edit.neighbours) for edit in facts).keys() <= {1, 2, 3}


def test_pseudo_knowledge_sizes(pseudo: PseudoKnowledge) -> None:
    assert (len(pseudo.facts), len(pseudo.noise), len(pseudo.unrelated)) == (6210, 400, 1425)
    relations = Counter(fact.relation for fact in pseudo.facts)
    assert len(relations) == 64
    assert max(relations.values()) <= 125 + 70
    assert all(fact.rephrases and fact.subject and fact.relation for fact in pseudo.facts)


def test_no_wording_belongs_to_two_pseudo_facts(pseudo: PseudoKnowledge) -> None:
    wordings = [normalise_query(text) for fact in pseudo.facts for text in (fact.prompt, *fact.rephrases)]
    assert len(wordings) == len(set(wordings))
    assert not set(wordings) & {normalise_query(text) for fact in pseudo.facts for text in fact.neighbours}
    assert not set(wordings) & set(map(normalise_query, pseudo.unrelated))


def test_shipped_facts_and_pseudo_knowledge_are_apart(facts: EditSet, pseudo: PseudoKnowledge) -> None:
    edited = SubjectIndex(edit.subject for edit in facts if edit.subject)
    queries = {normalise_query(text) for edit in facts for text in (edit.prompt, *edit.rephrases)}
    for fact in pseudo.facts:
        texts = (fact.prompt, *fact.rephrases, *fact.neighbours)
        assert not any(edited.named_in(text) or normalise_query(text) in queries for text in texts)
    apart = pseudo.without(facts)
    # twelve pseudo-facts ask what neighbourhood prompts of the facts ask; a fit leaves them out
    assert (len(apart.facts), apart.noise, apart.unrelated) == (6210 - 12, pseudo.noise, pseudo.unrelated)


def test_lines_are_plain_sentences(pseudo: PseudoKnowledge) -> None:
    for texts in (pseudo.noise, pseudo.unrelated):
        assert len(set(texts)) == len(texts)
        assert all(text == text.strip() and 5 < len(text) < 200 for text in texts)
    assert all(text[0].isupper() and text.endswith(".") for text in pseudo.noise)


def test_shipped_data_is_small_and_has_no_time_stamp() -> None:
    contents = {item.name: item.read_bytes() for item in DATA.iterdir()}
    assert contents.keys() >= {"SOURCES.md", "facts.jsonl", "noise.txt", "pseudo.jsonl.gz", "unrelated.txt"}
    packed = {name: data if data[:2] == b"\x1f\x8b" else gzip.compress(data) for name, data in contents.items()}
    networks = sum(len(data) for name, data in packed.items() if name.endswith(".safetensors"))
    assert networks < 8_000_000 and sum(map(len, packed.values())) - networks < 2_500_000
    assert contents["pseudo.jsonl.gz"][4:8] == bytes(4)
