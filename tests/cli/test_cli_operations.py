"""The commands for the life of an edit, as a user gives them."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import megedit.cli.operations
from megedit.adapter.ledger import digest_of
from tests.cli.test_cli import output, problem, process
from tests.conftest import Fitted

NEW = {"id": "new", "prompt": "Which instrument does Iva Jones play?", "target": "Lu", "subject": "Iva Jones"}


def facts(folder: Path, *records: dict[str, str]) -> Path:
    path = folder / "news.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def listed(adapter: Path, *options: str) -> list[str]:
    return [json.loads(line)["id"] for line in output("list", adapter, "--json", *options).splitlines()]


def test_the_life_of_an_edit(adapter_folder: Path, tmp_path: Path) -> None:
    text = output("add", adapter_folder, facts(tmp_path, NEW), "--dtype", "float32", "--keep")
    assert "+ new: Which instrument does Iva Jones play? -> Lu (active)" in text
    assert "Revision 2; meg undo takes it back." in text
    assert listed(adapter_folder, "--search", "IVA") == ["new"]
    assert '"edited": "Lu."' in output("ask", adapter_folder, NEW["prompt"], "--json", "--dtype", "float32")
    assert "(gone)" in output("update", adapter_folder, "new", "--target", "Ma", "--dtype", "float32")
    assert "- new: Which instrument does Iva Jones play? -> Ma (removed)" in output("remove", adapter_folder, "new")
    assert listed(adapter_folder, "--status", "removed") == ["new"] and len(listed(adapter_folder)) == 9
    assert "(active)" in output("undo", adapter_folder)
    output("rollback", adapter_folder, "1")
    assert len(listed(adapter_folder)) == 8 and listed(adapter_folder, "--limit", "2") == ["edit-0", "edit-1"]
    assert "Nothing was changed; the adapter is at revision 6." in output("rollback", adapter_folder, "1")
    log = [json.loads(line) for line in output("log", adapter_folder, "--json").splitlines()]
    assert [line["kind"] for line in log] == ["rollback", "undo", "remove", "update", "add", "fit"]
    assert log[4]["source"].endswith("news.jsonl") and log[4]["result"] == {"added": 1, "failed": 0}
    assert "consolid" not in output("log", adapter_folder) and "rollback" in output("log", adapter_folder)
    assert "edit-3" in output("list", adapter_folder)


def test_wordings_and_aliases(adapter_folder: Path) -> None:
    assert "give --target, --wording or --alias" in problem("update", adapter_folder, "edit-1")
    output("update", adapter_folder, "edit-1", "--wording", "One.", "--wording", "Two.", "--dtype", "float32")
    (line,) = output("list", adapter_folder, "--json", "--search", "edit-1").splitlines()
    assert json.loads(line)["wordings"] == ["One.", "Two."]
    assert "- Two." in output("list", adapter_folder, "--search", "edit-1")


def test_a_difference(adapter_folder: Path, fitted: Fitted, tmp_path: Path) -> None:
    output("update", adapter_folder, "edit-1", "--target", "Ma", "--dtype", "float32")
    output("remove", adapter_folder, "edit-2")
    lines = [json.loads(line) for line in output("diff", fitted.adapter, adapter_folder, "--json").splitlines()]
    assert [(line["first"], line["second"]) for line in lines] == [("Ital", "Ma"), ("Jorge", None)]
    assert output("diff", adapter_folder, adapter_folder) == ""
    assert "Jorge" in output("diff", adapter_folder, fitted.adapter)


def test_contradictions_need_a_choice(adapter_folder: Path, tmp_path: Path) -> None:
    path = facts(tmp_path, {"prompt": "Where was Ada Brook born?", "target": "Ma"})
    assert "contradict" in problem("add", adapter_folder, path)
    assert "Give one of" in problem("add", adapter_folder, path, "--replace", "--skip")
    assert "Nothing was changed" in output("add", adapter_folder, path, "--skip")
    assert "-> Ma (active)" in output("add", adapter_folder, path, "--replace", "--dtype", "float32")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("remove", "nobody"), "There is no edit with the id nobody"),
        (("undo",), "nothing to undo"),
        (("rollback", "7"), "There is no revision 7"),
        (("consolidate",), "nothing to consolidate"),
        (("explain", " "), "empty"),
    ],
)
def test_what_is_wrong(adapter_folder: Path, arguments: tuple[str, ...], message: str) -> None:
    assert message in problem(arguments[0], adapter_folder, *arguments[1:])


def test_an_explanation(adapter_folder: Path) -> None:
    text = output("explain", adapter_folder, "Where was Ada Brook born?", "--dtype", "float32")
    for part in ("edited answer", "Par.", "an edit is used", "nats", "generated", "Nearest edits", "edit-0"):
        assert part in text
    fields = json.loads(output("explain", adapter_folder, "Where was Ada Brook born?", "--json", "--dtype", "float32"))
    assert fields["edited"]["text"] == "Par." and fields["route"]["nearest"][0]["edit"]["id"] == "edit-0"


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    for command in (("list",), ("log",), ("undo",), ("remove", "1")):
        result = process(command[0], tmp_path, *command[1:])
        assert result.returncode == 1 and "Traceback" not in result.stderr and "Error:" in result.stderr


def test_an_addition_that_is_killed_has_done_nothing(adapter_folder: Path, tmp_path: Path) -> None:
    """Killed as soon as it holds the lock, while it works."""
    path = facts(tmp_path, NEW)
    before = listed(adapter_folder)
    with closing(sqlite3.connect(adapter_folder / "ledger.db", timeout=0, isolation_level=None)) as other:

        def locked() -> bool:
            try:
                other.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
            other.execute("ROLLBACK")
            return False

        kill_when(locked, "add", adapter_folder, path, "--dtype", "float32", "--keep")
    assert listed(adapter_folder) == before
    output("add", adapter_folder, path, "--dtype", "float32", "--keep")
    assert listed(adapter_folder) == [*before, "new"] and not list(adapter_folder.glob("*-journal"))


def test_a_consolidation_that_is_killed_has_done_nothing(adapter_folder: Path) -> None:
    """Killed when it has written the new model, before the ledger names it."""
    output("remove", adapter_folder, "edit-6")
    command = ("consolidate", adapter_folder, "--dtype", "float32")
    kill_when(lambda: any(adapter_folder.glob("model-0003*")), *command)
    assert json.loads(output("log", adapter_folder, "--json").splitlines()[0])["kind"] == "remove"
    assert listed(adapter_folder, "--status", "removed") == ["edit-6"]
    assert "forgotten 1" in output(*command)
    assert [path.name for path in adapter_folder.glob("model-*")] == ["model-0003.safetensors"]


def kill_when(moment: Callable[[], bool], *arguments: str | Path) -> None:
    command = [sys.executable, "-m", "megedit", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        while running.poll() is None and not moment():
            time.sleep(0.001)
        running.kill()
    assert running.returncode == -signal.SIGKILL


def test_two_processes_write_at_once(adapter_folder: Path) -> None:
    """One waits for the other: both removals are made, one after the other."""
    commands = [[sys.executable, "-m", "megedit", "remove", str(adapter_folder), f"edit-{i}"] for i in range(2)]
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
    assert [process.wait() for process in running] == [0, 0]
    assert listed(adapter_folder, "--status", "removed") == ["edit-0", "edit-1"]
    log = [json.loads(line) for line in output("log", adapter_folder, "--json").splitlines()]
    assert [line["revision"] for line in log] == [3, 2, 1] and {line["source"] for line in log[:2]} == {
        "edit-0",
        "edit-1",
    }


def test_any_id_works_in_every_command(adapter_folder: Path, tmp_path: Path) -> None:
    ids = ["a/b c", "[bold]x[/]", "-ü 日本"]
    output("add", adapter_folder, facts(tmp_path, {**NEW, "id": ids[0]}), "--dtype", "float32", "--keep")
    with closing(sqlite3.connect(adapter_folder / "ledger.db")) as connection, connection:
        for number, name in zip((1, 2), ids[1:], strict=True):
            (content,) = connection.execute("SELECT content FROM edits WHERE number = ?", (number,)).fetchone()
            content = json.dumps({**json.loads(content), "id": name}, ensure_ascii=False)
            (vector,) = connection.execute("SELECT vector FROM vectors WHERE edit = ?", (number,)).fetchone()
            connection.execute("UPDATE edits SET id = ?, content = ? WHERE number = ?", (name, content, number))
            digest = digest_of(content.encode() + vector)
            connection.execute("UPDATE vectors SET digest = ? WHERE edit = ?", (digest, number))
    table = output("list", adapter_folder)
    for name in ids:
        assert name in listed(adapter_folder) and all(part in table for part in name.split())
        assert f"- {name}: " in output("remove", adapter_folder, "--", name)
        assert f"+ {name}: " in output("undo", adapter_folder)
    assert ids[2] in output("log", adapter_folder, "--json")
    assert f"+ {ids[2]}: " in output("update", adapter_folder, "--target", "Ma", "--dtype", "float32", "--", ids[2])


@pytest.mark.parametrize(
    "arguments", [("add", "{}", "news.jsonl"), ("undo", "{}"), ("remove", "{}", "1"), ("list", "{}")]
)
def test_a_folder_that_does_not_exist(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    facts(tmp_path, NEW)
    folder = tmp_path / "nowhere"
    message = problem(*(part.format(folder).replace("news", str(tmp_path / "news")) for part in arguments))
    assert "does not exist" in message and "damaged" not in message


def test_two_targets_in_a_file(adapter_folder: Path, tmp_path: Path) -> None:
    path = facts(tmp_path, NEW, {**NEW, "id": "other", "target": "Ma"})
    assert "keep the first of each" in problem("add", adapter_folder, path)
    text = output("add", adapter_folder, path, "--on-conflict", "first", "--keep", "--dtype", "float32")
    assert "+ new: Which instrument does Iva Jones play? -> Lu (active)" in text and "other" not in text


def test_a_list_longer_than_a_page(adapter_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(megedit.cli.operations, "PAGE", 3)
    pages = megedit.cli.operations._pages(adapter_folder, 1, None, None, None)
    assert [[record.number for record in page] for page in pages] == [[1, 2, 3], [4, 5, 6], [7, 8]]
    pages = megedit.cli.operations._pages(adapter_folder, 1, "active", "edit", 5)
    assert [[record.number for record in page] for page in pages] == [[1, 2, 3], [4, 5]]
