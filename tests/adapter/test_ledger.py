"""The ledger: revisions, each whole or not there, whoever reads, writes or dies meanwhile."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import megedit.adapter.sqlite
from megedit.adapter.change import changing
from megedit.adapter.ledger import EditRecord, NewEdit, reading
from megedit.adapter.sqlite import FILE, create
from megedit.adapter.weights import from_bytes, to_bytes
from megedit.edits import Edit
from megedit.errors import MegError
from megedit.router.index import EditVectors, owners_of

SIZE, LENGTH = 6, 4


def entry(name: str, status: str = "active", neuron: float = 1.0, generated: bool = False) -> NewEdit:
    edit = Edit(name, f"Where is {name}?", f"in {name}", subject=name.title())
    vectors = EditVectors.pack(torch.nn.functional.normalize(torch.rand(1, SIZE), dim=1))
    (vector,) = vectors.to_bytes(owners_of([1]))
    record = EditRecord(edit, status, 2.5, 7, generated)  # type: ignore[arg-type]
    return NewEdit(record, vector, *to_bytes(torch.full((1, LENGTH), neuron)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ledger with the edits a (active), b (active, as a's neuron) and c (failed)."""
    create(tmp_path, LENGTH)
    with changing(tmp_path, "fit", "facts.jsonl") as change:
        change.add([entry("a", generated=True), entry("b", generated=True), entry("c", "failed", neuron=2.0)])
        change.set_model("model-0001.safetensors", "00")
        change.note(active=2, failed=1)
    return tmp_path


def state(folder: Path, revision: int | None = None) -> dict[str, str]:
    with reading(folder) as ledger:
        return {record.edit.id: record.status for record in ledger.records(revision)}


def run(folder: Path, statements: Iterable[str]) -> None:
    with closing(sqlite3.connect(folder / FILE)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def test_what_is_written_is_read(folder: Path) -> None:
    with reading(folder) as ledger:
        assert ledger.revision == 1 and ledger.model == ("model-0001.safetensors", "00")
        records = ledger.records()
        assert [record.number for record in records] == [1, 2, 3]
        assert records[0] == EditRecord(Edit("a", "Where is a?", "in a", subject="A"), "active", 2.5, 7, True, 1)
        assert ledger.counts() == {"active": 2, "failed": 1, "removed": 0}
        assert len(EditVectors.from_bytes(ledger.vectors([1, 2]), SIZE)[0]) == 2
        assert from_bytes(ledger.neurons([2, 3, 2]), LENGTH).tolist() == [[1.0] * 4, [2.0] * 4, [1.0] * 4]
        (operation,) = ledger.operations()
        assert (operation.kind, operation.source) == ("fit", "facts.jsonl")
        assert operation.result == {"active": 2, "failed": 1}
    with closing(sqlite3.connect(folder / FILE)) as connection:
        assert connection.execute("SELECT count(*) FROM neurons").fetchone() == (2,)  # a and b share one


def test_a_search(folder: Path) -> None:
    with changing(folder, "add") as change:
        change.add([entry("Ørsted"), entry("100%")])
    with reading(folder) as ledger:
        assert [record.edit.id for record in ledger.records(search="ØRST")] == ["Ørsted"]
        assert [record.edit.id for record in ledger.records(search="%")] == ["100%"]
        assert [record.edit.id for record in ledger.records(search="where is", limit=2)] == ["a", "b"]
        assert [record.edit.id for record in ledger.records(status="failed", search="c")] == ["c"]
        assert ledger.records(search="prompt") == []


def test_every_revision_can_be_read(folder: Path) -> None:
    with changing(folder, "remove") as change:
        change.end([1], "removed")
    with changing(folder, "add") as change:
        change.end([2])
        change.add([entry("d")])
    with changing(folder, "rollback") as change:
        change.end([1], "active")
        change.begin([2], "active")
    assert state(folder, 1) == {"a": "active", "b": "active", "c": "failed"}
    assert state(folder, 2) == {"a": "removed", "b": "active", "c": "failed"}
    assert state(folder, 3) == {"a": "removed", "c": "failed", "d": "active"}
    assert state(folder, 4) == state(folder) == {"a": "active", "b": "active", "c": "failed", "d": "active"}
    with reading(folder) as ledger:
        changes = {change.record.edit.id: (change.before, change.after) for change in ledger.changes(3)}
        assert changes == {"b": ("active", None), "d": (None, "active")}
        changes = {change.record.edit.id: (change.before, change.after) for change in ledger.changes(2)}
        assert changes == {"a": ("active", "removed")}


def test_dropped_weights(folder: Path) -> None:
    with changing(folder, "remove") as change:
        assert change.droppable()  # those of the failed edit
        change.end([1, 2], "removed")
    with changing(folder, "consolidate") as change:
        change.drop_weights()
        assert not change.droppable()
    with reading(folder) as ledger:
        assert [record.edit.id for record in ledger.dropped(1)] == ["a", "b"] and not ledger.dropped(2)
        assert len(ledger.vectors([2, 1])) == 2 and ledger.vectors([]) == []
        with pytest.raises(KeyError):
            ledger.vectors([1, 9])
        with pytest.raises(KeyError):
            ledger.neurons([1])
    weights = torch.full((LENGTH,), 1.0).half().numpy().tobytes()
    assert weights not in (folder / FILE).read_bytes()


def test_an_error_leaves_nothing(folder: Path) -> None:
    before = state(folder)
    with pytest.raises(ZeroDivisionError), changing(folder, "add") as change:
        change.add([entry("d")])
        raise ZeroDivisionError
    with changing(folder, "add") as change:
        change.add([entry("d")])
        change.cancel()
    assert state(folder) == before
    with reading(folder) as ledger:
        assert ledger.revision == 1


def test_two_writers_and_a_reader(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(megedit.adapter.sqlite, "PATIENCE", 0.05)
    with changing(folder, "add") as change:
        change.add([entry("d")])
        assert "d" not in state(folder)
        with pytest.raises(MegError, match="Another process is changing"), changing(folder, "remove"):
            pass
    assert "d" in state(folder)


def test_a_reader_sees_one_revision(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(megedit.adapter.sqlite, "PATIENCE", 0.01)
    with reading(folder) as ledger:
        with pytest.raises(MegError, match="nothing was changed"), changing(folder, "add") as change:
            change.add([entry("d")])
        assert ledger.revision == 1
    assert "d" not in state(folder)


KILLED = """
import os, sys
from pathlib import Path
from tests.adapter.test_ledger import entry
from megedit.adapter.change import changing
with changing(Path(sys.argv[1]), "add") as change:
    change.add([entry(f"new{i}") for i in range(2000)])
    change.end([1], "removed")
    print("written", flush=True)
    sys.stdin.read()
"""


def test_a_killed_writer_has_done_nothing(folder: Path) -> None:
    before = state(folder)
    command = [sys.executable, "-c", KILLED, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "written\n"
        assert state(folder) == before
        process.kill()
    assert state(folder) == before
    with changing(folder, "remove") as change:  # the lock is gone with the process
        change.end([2], "removed")
    assert state(folder)["b"] == "removed"


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        (["DROP TABLE spans"], "is not a ledger"),
        (["CREATE TRIGGER t AFTER INSERT ON edits BEGIN DELETE FROM edits; END"], "is not a ledger"),
        (["CREATE VIEW v AS SELECT 1"], "is not a ledger"),
        (["PRAGMA user_version = 99"], "newer version"),
        (["UPDATE edits SET content = replace(content, 'in a', 'in z')"], "an edit is not as it was written"),
        (["UPDATE neurons SET weights = zeroblob(8)"], "a neuron is not as it was written"),
    ],
)
def test_a_damaged_ledger(folder: Path, statements: list[str], message: str) -> None:
    run(folder, statements)
    with pytest.raises(MegError, match=message), reading(folder) as ledger:
        ledger.vectors([1])
        ledger.neurons([1])


def test_what_is_no_database(folder: Path) -> None:
    (folder / FILE).write_text("not a database, but long enough to look at" * 100)
    with pytest.raises(MegError, match="is damaged"), reading(folder):
        pass
    (folder / FILE).unlink()
    with pytest.raises(MegError, match=r"ledger\.db is missing"), reading(folder):
        pass


def test_a_folder_that_may_only_be_read(folder: Path) -> None:
    (folder / FILE).chmod(0o444)
    folder.chmod(0o555)
    try:
        assert state(folder) == {"a": "active", "b": "active", "c": "failed"}
    finally:
        folder.chmod(0o755)


@pytest.mark.parametrize("numbers", [1153, 1280, 1537, 2049, 4097, 5121, 8193])
def test_neurons_fill_the_file(tmp_path: Path, numbers: int) -> None:
    count = 300
    create(tmp_path, numbers)
    empty = (tmp_path / FILE).stat().st_size
    neurons = to_bytes(torch.arange(count)[:, None].expand(count, numbers))
    with changing(tmp_path, "fit", "facts.jsonl") as change:
        change.add(replace(entry(str(i)), neuron=neuron) for i, neuron in enumerate(neurons))
    with reading(tmp_path) as ledger:
        (tmp_path / "copy").mkdir()
        ledger.copy(tmp_path / "copy")
    for folder in (tmp_path, tmp_path / "copy"):
        assert (folder / FILE).stat().st_size - empty < 1.3 * count * numbers * 2


def test_a_copy(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    with reading(folder) as ledger:
        ledger.copy(tmp_path / "copy")
    assert state(tmp_path / "copy") == state(folder)


def test_a_link_is_not_changed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / FILE).symlink_to(folder / FILE)
    assert state(tmp_path / "copy") == state(folder)
    with pytest.raises(MegError, match="copy the adapter to a folder of your own"), changing(tmp_path / "copy", "add"):
        pass


def test_edits_by_id_and_by_number(folder: Path) -> None:
    with changing(folder, "update") as change:
        change.end([1], "removed")
        change.add([entry("a"), entry("/ [bold] é")])
    with reading(folder) as ledger:
        assert ledger.ids() == {"b": 2, "c": 3, "a": 4, "/ [bold] é": 5}  # of two with one id, the one in force
        found = ledger.with_id("a")
        assert found is not None and (found.number, found.status) == (4, "active")
        assert ledger.with_id("A") is None
        assert [record.number for record in ledger.numbered([5, 1, 9])] == [5, 1]
        assert ledger.statuses() == {1: "removed", 2: "active", 3: "failed", 4: "active", 5: "active"}
        assert ledger.statuses(1) == {1: "active", 2: "active", 3: "failed"}


def test_the_neuron_that_most_edits_of_a_target_have(folder: Path) -> None:
    def of(target: str, neuron: float, name: str) -> NewEdit:
        new = entry(name, neuron=neuron)
        return replace(new, record=replace(new.record, edit=replace(new.record.edit, target=target)))

    with changing(folder, "add") as change:
        change.add([of("Rome", 3.0, "d"), of("Rome", 4.0, "e"), of("Rome", 4.0, "f"), of("Oslo", 5.0, "g")])
    with reading(folder) as ledger:
        assert ledger.most_used_neurons(["Rome", "Oslo", "Bern"]) == {"Rome": 5, "Oslo": 7}
