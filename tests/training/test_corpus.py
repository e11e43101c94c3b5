"""The corpus of the reading networks: what is in it, and what must never be."""

import json
from pathlib import Path

import pytest

from megedit.edits.text import normalise_query
from training.corpus import ContrastFact, corpus, fact_of, last_subjects, read_facts, split, texts
from training.measure import PARTS, held_out_sets

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def fact(subject: str, **more: object) -> ContrastFact:
    """A fact with one text of each side."""
    record = {"set": "contrast_x", "prompt": f"Who leads {subject}?", "target": "Ines", "subject": subject}
    return fact_of({**record, "fire": {"wrapped": [f"Hi, who leads {subject}?"]}, "not": {}, **more})


def test_the_last_subjects_of_an_own_set_are_for_choosing_settings() -> None:
    facts = [fact(f"project {i // 2}") for i in range(40)]
    train, settings = split(facts)
    assert {f.subject for f in settings} == {"project 18", "project 19"} == last_subjects(facts, 10)
    assert len(train) + len(settings) == 40


def test_a_chat_is_read_turn_by_turn() -> None:
    turns = [{"role": "user", "content": "What is Atlas?"}, {"role": "user", "content": "Who leads it?"}]
    found = fact("Atlas", fire={"pronoun": [turns]})
    assert list(texts(found.fire)) == [("pronoun", "user: What is Atlas?\nuser: Who leads it?")]


def test_a_line_separator_in_a_text_ends_no_record(tmp_path: Path) -> None:
    record = {"prompt": "A\u2028B", "target": "C", "subject": "A", "fire": {}, "not": {}}
    path = tmp_path / "facts.jsonl"
    path.write_text(f"{json.dumps(record, ensure_ascii=False)}\n" * 2, "utf-8")
    assert [fact.prompt for fact in read_facts(path, "own")] == ["A\u2028B"] * 2


def test_every_fact_of_the_corpus_has_what_training_needs() -> None:
    facts = corpus()
    assert len(facts) > 15_000
    assert all(f.prompt.strip() and f.target.strip() and f.subject.strip() for f in facts)
    assert not any(f.set == "contrast_science" for f in facts)


@pytest.mark.skipif(not DATA.is_dir(), reason="the test sets are not part of the repository")
def test_nothing_that_is_tested_on_is_in_the_corpus() -> None:
    held = held_out_sets(DATA)
    known = {(f.set, f.subject) for f in corpus()}
    assert not {(name, f.subject) for name in PARTS for f in held[name]} & known
    prompts = {normalise_query(f.prompt) for f in corpus()}
    edited = [json.loads(line)["src"] for line in (DATA / "zsre.jsonl").open(encoding="utf-8")]
    assert not {normalise_query(text) for text in edited} & prompts
