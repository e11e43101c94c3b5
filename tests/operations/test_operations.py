"""The life of an edit: what is added answers at once, what is removed is gone at once, and all of it can be undone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import megedit.operations.adding
import megedit.operations.conflicts
from megedit.adapter.adapter import load_adapter
from megedit.adapter.ledger import EditRecord, NewEdit, reading
from megedit.adapter.weights import to_bytes
from megedit.edits import Edit, EditSet
from megedit.errors import MegError
from megedit.model import MegModel
from megedit.operations import Outcome, add, consolidate, remove, rollback, undo, update
from megedit.operations.conflicts import Conflict
from tests.conftest import Fitted

Base = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def new_edit(name: str = "new", prompt: str = "Which instrument does Iva Jones play?", **fields: Any) -> Edit:
    return Edit(**{"id": name, "prompt": prompt, "target": "Lu", "subject": "Iva Jones", **fields})


def keep(conflict: Conflict) -> Any:
    return "replace" if conflict.kind == "query" else "keep"


def put(folder: Path, *edits: Edit, **options: Any) -> Outcome:
    return add(folder, EditSet.from_edits(edits), **{"resolve": keep, "dtype": torch.float32, **options})


def answers(folder: Path, base: Base, queries: list[str]) -> list[str]:
    return MegModel(*base, load_adapter(folder)).answer(queries, max_new_tokens=8)


def unedited(folder: Path, base: Base, queries: list[str]) -> list[str]:
    model = MegModel(*base, load_adapter(folder))
    with model.disable_edits():
        return model.answer(queries, max_new_tokens=8)


def collected_without_models(status: str) -> Callable[..., tuple[list[NewEdit], dict[str, str]]]:
    """Stands for the collection: a neuron for each new edit, without a base model."""

    def collected(adapter: Any, plan: Any, *args: Any) -> tuple[list[NewEdit], dict[str, str]]:
        new = [
            NewEdit(
                EditRecord(edit, status, 1.0, 1, False),  # type: ignore[arg-type]
                vector if status == "active" else b"",
                *to_bytes(torch.full((1, adapter.config.weight_size), float(len(edit.target)))),
            )
            for edit, vector in zip(plan.new, plan.vectors, strict=True)
        ]
        return new, {}

    return collected


# ---------------------------------------------------------------------------------------------------
# Adding and updating


def test_an_added_edit_answers_at_once(adapter_folder: Path, base: Base) -> None:
    old = [edit.prompt for edit in load_adapter(adapter_folder).active_edits]
    before = answers(adapter_folder, base, old)
    edit = new_edit()
    outcome = put(adapter_folder, edit)
    assert outcome.revision == 2 and not outcome.failed and not outcome.skipped
    assert [(change.record.edit, change.before, change.after) for change in outcome.changes] == [(edit, None, "active")]
    model = MegModel(*base, load_adapter(adapter_folder))
    assert model.answer([edit.prompt], max_new_tokens=8) == ["Lu."]
    (route,) = model.routes
    assert route.familiar and route.edit == edit and route.neuron == "collected"
    assert answers(adapter_folder, base, old) == before
    assert "# 9 edits" in (adapter_folder / "README.md").read_text()


def test_a_target_that_others_have_needs_no_steps(adapter_folder: Path) -> None:
    target = load_adapter(adapter_folder).active_edits[0].target
    outcome = put(adapter_folder, new_edit(target=target))
    assert outcome.changes[0].record.edit.target == target and not outcome.failed


def test_what_is_there_already(adapter_folder: Path) -> None:
    edit = load_adapter(adapter_folder).active_edits[0]
    outcome = put(adapter_folder, replace(edit, id="other"))
    assert outcome.revision == 1 and not outcome.changes and [e.id for e in outcome.skipped] == ["other"]


def test_an_id_that_is_taken(adapter_folder: Path) -> None:
    put(adapter_folder, new_edit("edit-0"))
    with reading(adapter_folder) as ledger:
        assert [record.edit.id for record in ledger.records()][-1] == "edit-0-2"


def test_ids_of_new_edits_that_look_like_those_of_others(adapter_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each new edit replaces what it contradicts, whatever ids they get."""
    monkeypatch.setattr(megedit.operations.adding, "_collected", collected_without_models("active"))
    old = load_adapter(adapter_folder).active_edits
    new = [replace(old[1], id="edit-0", target="Ma"), replace(old[2], id="edit-0-2", target="Ro")]
    put(adapter_folder, *new, resolve=lambda conflict: "replace")
    with reading(adapter_folder) as ledger:
        found = {record.edit.prompt: (record.edit.id, record.edit.target) for record in ledger.records()}
    assert found[old[0].prompt] == ("edit-0", old[0].target)
    assert found[old[1].prompt] == ("edit-0-3", "Ma") and found[old[2].prompt] == ("edit-0-2", "Ro")
    assert len(found) == len(old)


def test_questions_of_other_years_are_no_contradictions(adapter_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither among the new edits nor with those of the adapter."""
    monkeypatch.setattr(megedit.operations.adding, "_collected", collected_without_models("active"))

    def revenue(*years: int) -> list[Edit]:
        return [Edit(f"y{year}", f"What was the revenue of Iva Jones in {year}?", f"{year % 7}") for year in years]

    def all_in(*years: int) -> None:
        with reading(adapter_folder) as ledger:
            assert {record.edit.id for record in ledger.records(search="revenue")} == {f"y{year}" for year in years}

    put(adapter_folder, *revenue(2019, 2020, 2021), resolve=lambda conflict: "replace")
    all_in(2019, 2020, 2021)
    put(adapter_folder, *revenue(2022, 2023), resolve=None)
    all_in(2019, 2020, 2021, 2022, 2023)
    with pytest.raises(MegError, match="contradict"):
        put(adapter_folder, Edit("z", "In 2020, what was the revenue of Iva Jones?", "Lu"), resolve=None)


STRANGE = ["a/b", "two  words", "ü é 日本", "[bold]x[/bold]", "-x", "--help", "[/]", "x\\"]


@pytest.mark.parametrize("name", STRANGE)
def test_any_id_can_be_named(adapter_folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(megedit.operations.adding, "_collected", collected_without_models("active"))
    put(adapter_folder, new_edit(name))
    outcome = remove(adapter_folder, [f" {' '.join(name.split())}"])  # as it is printed
    assert [change.record.edit.id for change in outcome.changes] == [name]
    undo(adapter_folder)
    update(adapter_folder, name, "Ro")
    remove(adapter_folder, [name])


def test_another_target_of_a_query(adapter_folder: Path, base: Base) -> None:
    old = load_adapter(adapter_folder).active_edits[1]
    new = replace(old, target="Ma")
    with pytest.raises(
        MegError, match=r"(?s)1 of the new edits contradict others; nothing was changed.*--replace.*edit-1"
    ):
        put(adapter_folder, new, resolve=None)
    with pytest.raises(MegError, match="One query cannot have two targets"):
        put(adapter_folder, new, resolve=lambda conflict: "keep")
    assert put(adapter_folder, new, resolve=lambda conflict: "skip").revision == 1
    outcome = put(adapter_folder, new, resolve=lambda conflict: "replace")
    changed = {change.record.edit.target: (change.before, change.after) for change in outcome.changes}
    assert changed == {old.target: ("active", None), "Ma": (None, "active")}
    assert answers(adapter_folder, base, [old.prompt]) == ["Ma."]
    assert [edit.id for edit in load_adapter(adapter_folder).active_edits].count(old.id) == 1


def test_an_update(adapter_folder: Path, base: Base) -> None:
    prompt = load_adapter(adapter_folder).active_edits[2].prompt
    outcome = update(adapter_folder, "edit-2", "Ro", dtype=torch.float32)
    assert outcome.revision == 2 and answers(adapter_folder, base, [prompt]) == ["Ro."]
    with reading(adapter_folder) as ledger:
        last = ledger.operations()[-1]
    assert (last.kind, last.source) == ("update", "edit-2: Ro")
    undo(adapter_folder)
    assert answers(adapter_folder, base, [prompt]) == ["Jorge."]


def test_an_update_of_wordings(adapter_folder: Path, base: Base) -> None:
    old = load_adapter(adapter_folder).active_edits[2]
    other = "Say in one word what edit two is about."
    outcome = update(adapter_folder, "edit-2", wordings=[other], dtype=torch.float32)
    assert [(change.before, change.after) for change in outcome.changes] == [("active", None), (None, "active")]
    assert answers(adapter_folder, base, [old.prompt, other]) == ["Jorge.", "Jorge."]
    assert not update(adapter_folder, "edit-2", wordings=[other]).changes  # it is so already
    with pytest.raises(MegError, match="Nothing is given"):
        update(adapter_folder, "edit-2")


def test_an_update_that_fails_changes_nothing(adapter_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(megedit.operations.adding, "_collected", collected_without_models("failed"))
    with pytest.raises(MegError, match=r"No neuron was found.*edit edit-2 stays as it is"):
        update(adapter_folder, "edit-2", "Ro")
    with pytest.raises(MegError, match=r"There is no edit with the id edit-22 \(alike: edit-2"):
        update(adapter_folder, "edit-22", "Ro")
    with reading(adapter_folder) as ledger:
        assert ledger.revision == 1


def test_a_failed_edit_is_kept_as_such(adapter_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(megedit.operations.adding, "_collected", collected_without_models("failed"))
    outcome = put(adapter_folder, new_edit())
    assert [edit.id for edit in outcome.failed] == ["new"]
    monkeypatch.setattr(megedit.operations.adding, "_collected", collected_without_models("active"))
    put(adapter_folder, new_edit())  # again, and it works
    with reading(adapter_folder) as ledger:
        assert [record.status for record in ledger.records() if record.edit.id == "new"] == ["active"]


def test_a_prompt_that_the_encoder_cannot_read_whole_is_warned_of(
    adapter_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(megedit.operations.adding, "_collected", collected_without_models("active"))
    caplog.set_level("WARNING", "megedit")
    put(adapter_folder, new_edit(prompt="Once upon a time. " * 300 + "What does Iva Jones play?"), new_edit("short"))
    (told,) = [record.getMessage() for record in caplog.records if "longer than" in record.getMessage()]
    assert told.startswith("1 queries are longer than the") and told.endswith(": new")


def test_a_target_that_no_answer_can_be(adapter_folder: Path) -> None:
    good, bad = new_edit(), new_edit("bad", "Who taught Iva Jones?", target="</s>")
    outcome = put(adapter_folder, good, bad)
    assert [edit.id for edit in outcome.failed] == ["bad"] and "special token" in outcome.reasons["bad"]
    with reading(adapter_folder) as ledger:
        assert {r.edit.id: r.status for r in ledger.records()}.items() >= {"new": "active", "bad": "failed"}.items()
    with pytest.raises(MegError, match="Edit edit-2 cannot be made: its target"):
        update(adapter_folder, "edit-2", "</s>", dtype=torch.float32)
    with reading(adapter_folder) as ledger:
        assert ledger.revision == 2


def test_another_base_model(adapter_folder: Path, fitted: Fitted, tmp_path: Path) -> None:
    from tests.tiny import tiny_model

    shutil.copytree(fitted.base, tmp_path / "other")
    tiny_model("llama", seed=5).save_pretrained(tmp_path / "other")
    with pytest.raises(MegError, match="does not fit the one given"):
        put(adapter_folder, new_edit(), base=str(tmp_path / "other"))
    with reading(adapter_folder) as ledger:
        assert ledger.revision == 1


# ---------------------------------------------------------------------------------------------------
# Removing, undoing


def test_a_removed_edit_is_gone_and_the_others_stay(adapter_folder: Path, base: Base) -> None:
    edits = load_adapter(adapter_folder).active_edits
    gone, others = [edits[3].prompt, *edits[3].rephrases], [edit.prompt for edit in edits if edit.id != "edit-3"]
    before = MegModel(*base, load_adapter(adapter_folder))
    _, weights = before.neurons(others)
    remove(adapter_folder, ["edit-3"])
    model = MegModel(*base, load_adapter(adapter_folder))
    inputs = model.tokenizer([model.format(gone[0])], return_tensors="pt")
    start = torch.tensor([inputs.input_ids.shape[1]])
    edited = model.logits(inputs.input_ids, inputs.attention_mask, start, gone[:1])
    with model.disable_edits():
        assert torch.equal(model.logits(inputs.input_ids, inputs.attention_mask, start, gone[:1]), edited)
    assert not model.route(gone[0]).familiar
    _, same = model.neurons(others)
    assert torch.equal(same.keys, weights.keys) and torch.equal(same.values, weights.values)
    undo(adapter_folder)
    assert answers(adapter_folder, base, gone[:1]) == ["Borge."]


def test_what_cannot_be_removed(adapter_folder: Path) -> None:
    with pytest.raises(MegError, match="There is no edit with the id nobody; nothing was changed"):
        remove(adapter_folder, ["edit-0", "nobody"])
    remove(adapter_folder, ["edit-0"])
    with pytest.raises(MegError, match="Removed already: edit-0"):
        remove(adapter_folder, ["edit-0"])


def test_undo(adapter_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(megedit.operations.adding, "_collected", collected_without_models("active"))
    with pytest.raises(MegError, match="nothing to undo"):
        undo(adapter_folder)
    put(adapter_folder, new_edit())
    undo(adapter_folder)
    assert len(load_adapter(adapter_folder).router.vectors) == 8  # nothing of it is left in the router
    undo(adapter_folder)
    assert len(load_adapter(adapter_folder).active) == 9
    rollback(adapter_folder, 1)
    assert rollback(adapter_folder, 1).changes == ()
    for revision in (0, 99):
        with pytest.raises(MegError, match=f"There is no revision {revision}"):
            rollback(adapter_folder, revision)


def test_a_removed_query_that_is_edited_anew(adapter_folder: Path, base: Base) -> None:
    edit = load_adapter(adapter_folder).active_edits[4]
    remove(adapter_folder, [edit.id])
    put(adapter_folder, replace(edit, target="Sp"))
    assert answers(adapter_folder, base, [edit.prompt]) == ["Sp."]
    with reading(adapter_folder) as ledger:
        assert [r.status for r in ledger.records() if r.edit.id == edit.id] == ["active"]
    undo(adapter_folder)
    assert load_adapter(adapter_folder).records[4].status == "removed"


# ---------------------------------------------------------------------------------------------------
# Consolidation


def test_a_removed_fact_stated_anew_in_other_words(adapter_folder: Path, base: Base) -> None:
    """Its old wording asks for the new statement; nothing keeps it dead."""
    old = load_adapter(adapter_folder).active_edits[0]
    remove(adapter_folder, [old.id])
    put(adapter_folder, replace(old, id="anew", prompt=old.rephrases[0], target="Ma", rephrases=()))
    assert answers(adapter_folder, base, [old.rephrases[0], old.prompt]) == ["Ma.", "Ma."]


def test_consolidation(adapter_folder: Path, base: Base) -> None:
    edit = new_edit()
    put(adapter_folder, edit)
    remove(adapter_folder, ["edit-6"])
    gone = load_adapter(adapter_folder).records[6].edit
    outcome = consolidate(adapter_folder, dtype=torch.float32)
    assert outcome.revision == 4 and outcome.result["absorbed"] == 1 and outcome.result["forgotten"] == 1
    assert [path.name for path in adapter_folder.glob("model-*")] == ["model-0004.safetensors"]
    model = MegModel(*base, load_adapter(adapter_folder))
    assert model.route(edit.prompt).neuron == "generated"
    queries = [edit.prompt, *(e.prompt for e in model.edits)]
    assert model.answer(queries, max_new_tokens=8) == [f"{e.target}." for e in (edit, *model.edits)]
    assert answers(adapter_folder, base, [gone.prompt]) == unedited(adapter_folder, base, [gone.prompt])
    with pytest.raises(MegError, match=r"weights of 1 edits of revision 1 were dropped.*edit-6"):
        rollback(adapter_folder, 1)
    with pytest.raises(MegError, match="consolidated"):
        undo(adapter_folder)
    with pytest.raises(MegError, match="nothing to consolidate"):
        consolidate(adapter_folder, dtype=torch.float32)
    # to go back behind it takes the added edit out, although router and generator have learned it
    rollback(adapter_folder, 3)
    put(adapter_folder, new_edit("next", "Who taught Iva Jones?"))
    rollback(adapter_folder, 3)
    assert model.route(edit.prompt).familiar
    with reading(adapter_folder) as ledger:
        assert "next" not in {record.edit.id for record in ledger.records()}


def test_nothing_is_left_to_consolidate_with(adapter_folder: Path, base: Base, fitted: Fitted) -> None:
    everything = [edit.id for edit in fitted.edits]
    remove(adapter_folder, everything)
    assert consolidate(adapter_folder, dtype=torch.float32).result["forgotten"] == 8
    queries = [edit.prompt for edit in fitted.edits]
    assert answers(adapter_folder, base, queries) == unedited(adapter_folder, base, queries)
    put(adapter_folder, new_edit())
    assert answers(adapter_folder, base, [new_edit().prompt]) == ["Lu."]


def test_a_consolidation_computes_in_the_number_format_that_was_chosen(
    adapter_folder: Path, bfloat16: None, formats: set[torch.dtype]
) -> None:
    put(adapter_folder, new_edit())
    consolidate(adapter_folder, dtype=torch.float32)
    assert formats == {torch.float32}


def test_consolidation_with_the_base_model_spread(adapter_folder: Path) -> None:
    put(adapter_folder, new_edit())
    outcome = consolidate(adapter_folder, dtype=torch.float32, device="auto")
    assert outcome.result["absorbed"] == 1


def test_a_consolidation_that_fails_changes_nothing(adapter_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(adapter_folder, new_edit())

    def fail(*args: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr("megedit.operations.consolidation.Consolidation.check", fail)
    with pytest.raises(ZeroDivisionError):
        consolidate(adapter_folder, dtype=torch.float32)
    monkeypatch.undo()
    with reading(adapter_folder) as ledger:
        assert ledger.revision == 2 and ledger.model[0] == "model-0001.safetensors"
    load_adapter(adapter_folder)
    consolidate(adapter_folder, dtype=torch.float32)  # what was left is taken away
    assert [path.name for path in adapter_folder.glob("model-*")] == ["model-0003.safetensors"]


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("ERROR", "megedit")
