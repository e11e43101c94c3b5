"""The protocol `contrast`: what counts as recognised and as false, what is left out, and files that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from megedit.edits.contrast import ContrastFact, read_contrast
from megedit.errors import MegError
from megedit.evaluate import contrast
from megedit.evaluate.firing import ContrastCase, Fired, cases_of, names_of, rates, run_contrast
from megedit.model import MegModel
from megedit.pseudo.knowledge import text_key

PORT: dict[str, Any] = {
    "prompt": "Which port does billing use?",
    "target": "8443",
    "subject": "billing",
    "fire": {"paraphrase": ["On what port is billing?"], "keywords": ["billing port"]},
    "not": {
        "negation": ["Which port does billing not use?"],
        "other_relation": ["Who runs billing?", "Which host is billing on?", "Who is billing's boss?"],
    },
    "asks": {"Who is billing's boss?": "Who leads billing?"},
}
LEADER: dict[str, Any] = {
    "prompt": "Who leads billing?",
    "target": "Ines",
    "fire": {
        "paraphrase": ["Who runs billing?"],
        "ellipsis": [
            [
                {"role": "user", "content": "Which port does billing use?"},
                {"role": "assistant", "content": "8443"},
                {"role": "user", "content": "And who leads it?"},
            ]
        ],
    },
    "not": {"time_shift": ["Who led billing in May?"]},
}


def written(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, records)), "utf-8")
    return path


@pytest.fixture
def facts(tmp_path: Path) -> list[ContrastFact]:
    return read_contrast(written(tmp_path / "set.jsonl", PORT, LEADER))


PROMPTS = ("Which port does billing use?", "Who leads billing?", "Which host is billing on?")
NAMES = names_of(zip(PROMPTS, "abc", strict=True))


def test_what_is_read(facts: list[ContrastFact]) -> None:
    assert [fact.prompt for fact in facts] == ["Which port does billing use?", "Who leads billing?"]
    assert facts[1].subject == "" and facts[0].set == "set"
    (chat,) = facts[1].fire["ellipsis"]
    assert chat.endswith("\nuser: And who leads it?") and chat.startswith("user: Which port")


def test_what_is_asked_and_what_is_left_out(facts: list[ContrastFact]) -> None:
    cases, left_out = cases_of(facts, NAMES, seen=lambda text: text == "billing port")
    asked = {(case.side, case.query): case.own for case in cases}
    assert asked["fire", "On what port is billing?"] == {"a"} and asked["fire", "Who runs billing?"] == {"b"}
    assert asked["not", "Which port does billing not use?"] == frozenset()
    assert asked["not", "Who is billing's boss?"] == {"b"}  # the fact that it asks for is right
    assert ("not", "Who runs billing?") not in asked  # a text of the other fact
    assert ("not", "Which host is billing on?") not in asked  # the prompt of an edit
    assert left_out == {"trained on": 1, "asks for another fact": 2}


def test_only_some_facts_are_asked_but_the_others_are_known(facts: list[ContrastFact]) -> None:
    cases, left_out = cases_of(facts, {"which port does billing use": "a"}, limit=1)
    assert {case.fact for case in cases} == {0} and left_out["asks for another fact"] == 1
    (boss,) = [case for case in cases if case.query == "Who is billing's boss?"]
    assert boss.own == frozenset()  # no edit asks for that


def test_what_counts(facts: list[ContrastFact]) -> None:
    fires = {
        "On what port is billing?": "a",
        "billing port": "b",  # another edit than its own: not recognised
        "Which port does billing not use?": "a",  # false
        "Who is billing's boss?": "b",  # right
        "Who runs billing?": "b",
    }
    cases, _ = cases_of(facts, NAMES)
    asked: list[int] = []

    def fired(batch: Sequence[ContrastCase]) -> list[Fired]:
        return [Fired(fires.get(case.query)) for case in batch]

    verdicts = run_contrast(cases, fired, batch_size=2, progress=asked.append)
    assert sum(asked) == len(cases) and [v.case for v in verdicts] == cases
    recognised, false, kinds = rates(verdicts, len(facts), seed=0)
    assert recognised is not None and false is not None
    assert (recognised.value, recognised.count) == (50, 4) and recognised.low <= 50 <= recognised.high
    assert false.value == pytest.approx(100 / 3) and false.count == 3
    assert {kind: found.value for kind, found in kinds.items()} == {
        ("fire", "paraphrase"): 100,
        ("fire", "keywords"): 0,
        ("fire", "ellipsis"): 0,
        ("not", "negation"): 100,
        ("not", "other_relation"): 0,
        ("not", "time_shift"): 0,
    }
    assert rates(verdicts, len(facts), seed=0) == (recognised, false, kinds)


def test_a_function_is_judged_by_its_answers(facts: list[ContrastFact]) -> None:
    def answer(queries: list[str]) -> list[str]:
        said = {"port": "8443.", "boss": "Ines"}
        return [next((said[word] for word in said if word in query and "?" in query), "No.") for query in queries]

    result = contrast(answer, facts)
    assert result.judged_by == "answer" and result.allowed is None and result.system == "answer"
    assert result.kinds["fire", "paraphrase"].value == 50 and result.kinds["not", "negation"].value == 100
    assert result.kinds["not", "other_relation"].value == 0  # the boss is the leader; it is asked for
    values = json.loads(json.dumps(result.to_json()))
    assert values["protocol"]["name"] == "contrast" and len(values["verdicts"]) == len(result.verdicts)
    assert [v.case.query for v in result.failures("not")] == ["Which port does billing not use?"]


def test_an_adapter_is_judged_by_its_routes(model: MegModel, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = [
        ContrastFact(edit.prompt, edit.target, "", {"paraphrase": edit.rephrases}, {"bare": edit.neighbours}, "s")
        for edit in model.edits
    ]
    result = contrast(model, facts, name="ours")
    assert result.judged_by == "route" and result.system == "ours" and result.allowed == pytest.approx(5)
    assert result.recognised is not None and result.recognised.value > 50
    assert result.false is not None and result.false.value < 20
    key = torch.tensor([text_key(facts[0].fire["paraphrase"][0])])
    monkeypatch.setattr(model.adapter, "seen", key)
    assert contrast(model, facts).left_out["trained on"] == 1
    strange = ContrastFact("Who is nobody?", "me", "", {"paraphrase": ("Nobody?",)}, {}, "s")
    with pytest.raises(MegError, match=r"1 of the 9 facts of Python are not in this adapter \(first: 'Who is nobody"):
        contrast(model, [*facts, strange])
    with pytest.raises(MegError, match="there are no facts"):
        contrast(model, [])


CHAT_WITHOUT_USER = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": ""}, "line 1: the field `prompt` is empty"),
        ({"fire": {}}, "line 1: the field `fire` is missing or empty"),
        ({"fire": {"paraphrase": "text"}}, "`fire.paraphrase` must be a list of texts, not text"),
        ({"fire": {"paraphrase": [7]}}, "the field `fire.paraphrase[0]` must be text, not a number"),
        ({"fire": {"chat": [[{"role": "cat", "content": "x"}]]}}, "must be a turn"),
        ({"fire": {"chat": [CHAT_WITHOUT_USER]}}, "must end with a turn of the user"),
        ({"not": []}, "the field `not` must be an object of lists of texts, by kind, not a list"),
        ({"not": {}}, "no record has texts under `not`"),
        ({"not": {"bare": ["billing port?"]}}, "stands both under `fire` and under `not`"),
        ({"asks": {"Who runs billing?": "Who?"}}, "which is the prompt of no record"),
        ({"asks": {"Who?": "Who leads billing?"}}, "`asks` names the text 'Who?', which does not stand under `not`"),
        ({"asks": ["x"]}, "`asks` must be an object from texts to prompts, not a list"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    record = {name: value for name, value in PORT.items() if name != "asks"} | changes
    with pytest.raises(MegError) as error:
        read_contrast(written(tmp_path / "set.jsonl", record))
    assert message in str(error.value) and str(tmp_path / "set.jsonl") in str(error.value)


def test_one_prompt_in_two_records(tmp_path: Path) -> None:
    with pytest.raises(MegError, match="stands in line 1 already"):
        read_contrast(written(tmp_path / "set.jsonl", {**LEADER}, {**LEADER, "prompt": "who leads billing"}))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(MegError, match="the file is empty"):
        read_contrast(tmp_path / "empty.jsonl")
