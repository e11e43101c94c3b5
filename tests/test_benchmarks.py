"""The benchmarks: each is the command that its own text names, and fits the code as it is."""

from __future__ import annotations

import json
import random
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from benchmarks import comparison, make_many
from megedit.edits import Edit

DATA = Path(__file__).parents[1].parent / "shared" / "data"
MODULES = sorted(
    path.stem for path in (Path(__file__).parent.parent / "benchmarks").glob("*.py") if path.stem != "__init__"
)


@pytest.mark.parametrize("name", MODULES)
def test_a_benchmark_is_the_command_that_it_names(name: str) -> None:
    module = import_module(f"benchmarks.{name}")
    named = re.findall(r"python -m benchmarks\.(\w+)", module.__doc__ or "")
    assert set(named) == ({name} if hasattr(module, "main") else set())


def edit(number: int, subject: str, relation: str, prompt: str, rephrase: str, target: str) -> Edit:
    return Edit(f"real-{number}", prompt, target, subject, relation, rephrases=(rephrase,))


def some_edits() -> list[Edit]:
    """40 people, half of them with a birthplace and two thirds with a work; and five rivers."""
    found: list[Edit] = []
    for i in range(40):
        name = f"Ada Brook {i}"
        if i % 2:
            texts = f"In which town was {name} born?", f"Where was {name} born, please?"
            found.append(edit(len(found), name, "born", *texts, f"Town {i % 5}"))
        if i % 3:
            texts = f"Which work does {name} do?", f"What does {name} do as work?"
            found.append(edit(len(found), name, "work", *texts, f"work {i % 3}"))
    for i in range(5):
        texts = f"Into which sea does the Iva {i} flow?", f"The sea of the river Iva {i} is which?"
        found.append(edit(len(found), f"Iva {i}", "sea", *texts, f"sea {i}"))
    return found


def test_made_facts_contradict_nothing() -> None:
    """They are about subjects of their own kind that are not kept out, and their texts are the relation's."""
    real = some_edits()
    relations = make_many.relations_of(real)
    made = list(make_many.made_edits(real, relations, {"Ada Brook 3"}, random.Random(0)))
    assert {e.relation for e in made} == {"born", "work"}
    assert {e.subject for e in made if e.relation == "born"} == {f"Ada Brook {i}" for i in range(0, 40, 2) if i % 3}
    assert {e.subject for e in made if e.relation == "work"} == {f"Ada Brook {i}" for i in range(9, 40, 6)}
    assert len({(e.subject, e.relation) for e in [*real, *made]}) == len(real) + len(made)
    for e in made:
        assert e.target in relations[str(e.relation)].targets
        assert {w.replace(str(e.subject), "{}") for w in (e.prompt, *e.rephrases)} <= set(
            relations[str(e.relation)].wordings
        )


def test_a_wording_of_two_relations_is_none() -> None:
    texts = "In which town was Ada Brook {} born?", "The town of Ada Brook {} is which?"
    real = some_edits()
    for i in range(3):
        real.append(edit(100 + i, f"Ada Brook {i}", "town", texts[0].format(i), texts[1].format(i), "T"))
    relations = make_many.relations_of(real)
    assert set(relations["born"].wordings) == {"Where was {} born, please?"}
    assert set(relations["town"].wordings) == {"The town of {} is which?"}


def test_facts_without_a_relation_get_that_of_their_words() -> None:
    named = [*some_edits(), Edit("x", "Which work does Zed Yon do?", "none", "Zed Yon")]
    assert make_many.with_relations(named)[-1].relation == "work"
    other = Edit("y", "How tall is Zed Yon?", "2 m", "Zed Yon")
    assert make_many.with_relations([*named, other])[-1].relation is None


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the data of the benchmarks is not here")
def test_real_facts_come_first() -> None:
    edits = list(make_many.many(DATA, 200, 0))
    assert len({e.id for e in edits}) == 200 and all(e.id.startswith("counterfact-") for e in edits)
    assert all(e.rephrases and e.subject for e in edits)


def test_the_settings_with_the_highest_score_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def row(method: str, changes: list[str], score: float) -> dict[str, Any]:
        return {"method": method, "changes": changes, "metrics": {"score": {"value": score}}}

    monkeypatch.setattr(comparison, "RESULTS", tmp_path)
    assert comparison.best(["ft"]) == []  # none were tried
    rows = [
        row("ft", [], 20.0),
        row("ft", ["lr=1e-3", "epochs=3"], 30.0),
        {"method": "ft", "changes": ["lr=1"], "error": "diverged"},
        row("grace", [], 50.0),
    ]
    document = {"results": {"rows": rows}}
    (tmp_path / "comparison_settings.json").write_text(json.dumps(document), "utf-8")
    assert comparison.best(["grace", "ft", "lora"]) == ["ft.lr=1e-3", "ft.epochs=3"]
