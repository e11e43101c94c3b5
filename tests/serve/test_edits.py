"""The edits as a resource: what is added answers at once, in this process and in others."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from megedit.adapter.ledger import reading
from megedit.edits import Edit, EditSet
from megedit.operations import add, remove
from tests.serve.conftest import Live, Serve

Base = tuple[PreTrainedModel, PreTrainedTokenizerBase]
NEW = {"prompt": "Which instrument does Iva Jones play?", "target": "Lu", "subject": "Iva Jones"}


def added(live: Live, *edits: dict[str, Any], **options: Any) -> dict[str, Any]:
    answer = live.post("/v1/edits", {"edits": list(edits), **options})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def finished(live: Live, job: dict[str, Any]) -> dict[str, Any]:
    """A job once it has ended."""
    while job["status"] == "running":
        time.sleep(0.05)
        job = live.http.get(f"/v1/jobs/{job['id']}").json()
    return job


def test_an_edit_is_added_changed_removed_and_brought_back(live: Live) -> None:
    before = live.said(NEW["prompt"])
    outcome = added(live, NEW)
    name = outcome["changes"][0]["edit"]["id"]
    answer = live.ask(NEW["prompt"])
    assert answer["megedit"] | {"score": 0, "threshold": 0} == {
        "edit": name, "by": "words", "neuron": "collected", "revision": 2, "prompt": NEW["prompt"], "target": "Lu",
        "score": 0, "threshold": 0,
    }  # fmt: skip
    assert answer["choices"][0]["message"]["content"].startswith("Lu")
    assert live.http.patch(f"/v1/edits/{name}", json={"target": "Sp"}).json()["revision"] == 3
    assert live.said(NEW["prompt"]).startswith("Sp")
    assert live.http.delete(f"/v1/edits/{name}").status_code == 200
    assert live.said(NEW["prompt"]) == before
    assert live.http.get(f"/v1/edits/{name}").json()["status"] == "removed"
    live.post("/v1/edits/undo")
    assert live.said(NEW["prompt"]).startswith("Sp")
    assert live.post("/v1/edits/rollback", {"revision": 1}).status_code == 200
    assert live.said(NEW["prompt"]) == before
    kinds = [operation["kind"] for operation in live.http.get("/v1/edits/log").json()["data"]]
    assert kinds == ["rollback", "undo", "remove", "update", "add", "fit"]
    assert live.http.get("/v1/edits/log/2").json()["data"][0]["after"] == "active"


def test_edits_are_listed_by_page_status_and_text(live: Live) -> None:
    names, after = [], 0
    while True:
        page = live.http.get("/v1/edits", params={"limit": 3, "after": after}).json()
        names += [edit["id"] for edit in page["data"]]
        if not page["has_more"]:
            break
        after = page["next"]
    assert names == [edit.id for edit in live.model.edits]
    found = live.http.get("/v1/edits", params={"search": "ada BROOK"}).json()["data"]
    assert [edit["id"] for edit in found] == ["edit-0"]
    assert live.http.get("/v1/edits", params={"status": "removed"}).json()["data"] == []
    assert live.http.get("/v1/edits", params={"status": "gone"}).status_code == 400
    assert live.http.get("/v1/edits/edit-0").json()["target"] == live.model.edits[0].target


def test_a_contradiction_shows_both_sides_until_it_is_decided(live: Live) -> None:
    known = live.model.edits[0]
    new = {"prompt": known.prompt, "target": "Ro", "id": "other"}
    answer = live.post("/v1/edits", {"edits": [new]})
    assert answer.status_code == 409
    conflict = answer.json()["error"]["conflicts"][0]
    assert conflict["kind"] == "query"
    assert conflict["new"] == {"id": "other", "prompt": known.prompt, "target": "Ro"}
    assert conflict["old"] == {"id": known.id, "prompt": known.prompt, "target": known.target}
    assert live.post("/v1/edits", {"edits": [new], "on_conflict": "keep"}).status_code == 409
    assert added(live, new, on_conflict="skip")["changes"] == []
    assert live.said(known.prompt).startswith(known.target)
    assert added(live, new, on_conflict="replace")["revision"] == 2
    assert live.said(known.prompt).startswith("Ro")


@pytest.mark.parametrize(
    ("body", "status", "part"),
    [
        ({"edits": []}, 400, "edits"),
        ({"edits": [{"prompt": "p"}]}, 400, "target"),
        ({"edits": [{"prompt": " ", "target": "t"}]}, 400, "prompt"),
        ({"edits": [{"prompt": "p", "target": "t", "tagret": "x"}]}, 400, "tagret"),
        ({"edits": [{"prompt": "p", "target": "t"}, {"prompt": "p", "target": "u"}]}, 400, "remove one of the two."),
        ({"edits": [{"prompt": "a\x00b", "target": "t"}]}, 400, "prompt"),
        ({"edits": [{"prompt": "p", "target": "t"}] * 4}, 413, "3"),
        ({"edits": [{"prompt": "p", "target": "x" * 9000}]}, 400, "target"),
        ({"edits": [NEW], "on_conflict": "both"}, 400, "on_conflict"),
    ],
)
def test_what_is_wrong_with_an_edit_is_said(serve: Serve, body: Any, status: int, part: str) -> None:
    live = serve(max_edits=3)
    answer = live.post("/v1/edits", body)
    assert answer.status_code == status
    assert part in answer.json()["error"]["message"]
    assert live.http.get("/v1/status").json()["revision"] == 1


def test_what_is_not_there_is_said(live: Live) -> None:
    assert live.http.get("/v1/edits/nobody").status_code == 404
    assert live.http.delete("/v1/edits/nobody").status_code == 404
    assert live.http.patch("/v1/edits/nobody", json={"target": "x"}).status_code == 404
    assert live.http.get("/v1/jobs/nobody").status_code == 404
    assert live.http.get("/v1/edits/log/9").status_code == 404
    assert live.post("/v1/edits/rollback", {"revision": 9}).status_code == 400
    assert live.post("/v1/edits/undo").status_code == 400


def test_a_job_tells_how_far_it_is(live: Live) -> None:
    answer = live.post("/v1/edits", {"edits": [NEW], "background": True})
    assert answer.status_code == 202
    job = finished(live, answer.json())
    assert (job["status"], job["stage"], job["done"], job["total"]) == ("done", "Collecting neurons", 1, 1)
    assert job["result"]["revision"] == 2
    failed = finished(live, live.post("/v1/edits", {"edits": [NEW | {"target": "Ma"}], "background": True}).json())
    assert failed["error"]["conflicts"][0]["new"]["target"] == "Ma"


def test_consolidating_is_a_job_beside_answering(live: Live) -> None:
    added(live, NEW)
    job = live.post("/v1/edits/consolidate").json()
    while job["status"] == "running":
        assert live.said(NEW["prompt"]).startswith("Lu")
        job = live.http.get(f"/v1/jobs/{job['id']}").json()
    assert job["error"] is None
    assert live.http.get("/v1/status").json()["revision"] == 3
    assert live.said(NEW["prompt"]).startswith("Lu")


@pytest.mark.parametrize("name", ["facts.csv", "../../facts.csv", "facts", "x.json"])
def test_a_file_is_read_and_previewed(live: Live, name: str) -> None:
    known = live.model.edits[0]
    rows = [
        "prompt,target",
        "Who leads Atlas?,Priya",
        f"{known.prompt},{known.target}",
        f"{live.model.edits[1].prompt},Xx",
    ]
    data = "\n".join(rows).encode()
    if name.endswith(".json"):
        data = b'[{"prompt": "Who leads Atlas?", "target": "Priya"}]'
    found = live.http.post("/v1/edits/preview", params={"filename": name}, content=data)
    assert found.status_code == 200, found.text
    assert found.json()["edits"][0]["target"] == "Priya"
    if not name.endswith(".json"):
        assert len(found.json()["known"]) == 1
        assert found.json()["conflicts"][0]["old"]["id"] == "edit-1"
    assert live.http.get("/v1/status").json()["revision"] == 1


@pytest.mark.parametrize("data", [b"", b"prompt,place\na,b\n", b"\x00\x01\x02", b"PK\x03\x04broken", b'{"prompt": 1'])
def test_a_broken_file_is_told_by_its_name(live: Live, data: bytes) -> None:
    answer = live.http.post("/v1/edits/preview", params={"filename": "facts.csv"}, content=data)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("facts.csv")
    assert "/tmp" not in answer.text


def test_an_explanation_has_candidates_and_both_answers(live: Live) -> None:
    edit = live.model.edits[0]
    found = live.post("/v1/explain", {"question": edit.prompt}).json()
    assert found["nearest"][0]["edit"]["id"] == edit.id
    assert found["why"].startswith("an edit is used")
    assert len(found["edited"]["tokens"]) == len(found["edited"]["probabilities"])
    chat = live.post("/v1/explain", {"messages": [{"role": "user", "content": edit.prompt}]}).json()
    assert chat["route"] == found["route"]
    assert live.post("/v1/explain", {}).status_code == 400


def test_other_processes_changes_hold_for_the_next_request(live: Live, base: Base, fitted: Any) -> None:
    edit = live.model.edits[0]
    before = live.said(edit.prompt)
    remove(live.folder, [edit.id])  # as `meg remove` does beside the server
    assert live.said(edit.prompt) != before
    add(
        live.folder,
        EditSet.from_edits([Edit.from_json({"id": "n", **NEW})]),
        base=str(fitted.base),
        dtype=torch.float32,
    )
    assert live.said(NEW["prompt"]).startswith("Lu")


def test_two_servers_of_one_folder_see_each_others_changes(serve: Serve) -> None:
    first, second = serve(), serve()
    added(first, NEW)
    assert second.said(NEW["prompt"]).startswith("Lu")
    name = second.http.get("/v1/edits", params={"search": "Iva"}).json()["data"][0]["id"]
    second.http.delete(f"/v1/edits/{name}")
    assert not first.said(NEW["prompt"]).startswith("Lu")


def test_clients_that_change_and_ask_at_once(live: Live) -> None:
    """Every acknowledged change is there, and each holds for the requests that come after it."""
    people = [f"Person {letter}" for letter in "ABCDEF"]

    def life(person: str) -> str:
        prompt = f"Where was {person} born?"
        edit = {"prompt": prompt, "target": "Par", "subject": person, "id": person}
        answer = live.post("/v1/edits", {"edits": [edit], "on_conflict": "replace"})
        while answer.status_code == 503:
            answer = live.post("/v1/edits", {"edits": [edit], "on_conflict": "replace"})
        assert answer.status_code == 200, answer.text
        assert live.ask(prompt)["megedit"]["edit"] == person
        return person

    stop = threading.Event()

    def ask() -> int:
        count = 0
        while not stop.is_set():
            edit = live.model.edits[count % 8]
            assert live.said(edit.prompt).startswith(edit.target)
            count += 1
        return count

    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        assert list(pool.map(life, people)) == people
        stop.set()
        assert all(future.result() > 0 for future in asking)
    with reading(live.folder) as ledger:
        assert {record.edit.id for record in ledger.records(status="active")} >= set(people)


def test_a_folder_that_has_become_unreadable_is_a_503(live: Live) -> None:
    path: Path = live.folder / "ledger.db"
    path.rename(path.with_suffix(".away"))
    assert live.http.get("/ready").status_code == 503
    answer = live.post("/v1/chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]})
    assert answer.status_code == 503
    path.with_suffix(".away").rename(path)
    assert live.http.get("/ready").status_code == 200
    live.said("Hi")


def put_in_its_place(live: Live, change: Callable[[Path], None]) -> None:
    """Put another adapter, at the same revision, in the place of the one that is served, as a new fit does."""
    other, away = live.folder.with_name("other"), live.folder.with_name("away")
    shutil.copytree(live.folder, other)
    change(other)
    live.folder.rename(away)
    other.rename(live.folder)


def test_another_fit_into_the_folder_is_noticed(live: Live) -> None:
    edit = live.model.edits[0]
    assert live.ask(edit.prompt)["megedit"]["edit"] == edit.id

    def without_it(folder: Path) -> None:
        with closing(sqlite3.connect(folder / "ledger.db")) as connection, connection:
            connection.execute("UPDATE spans SET status = 'failed' WHERE edit = 1")
        config = json.loads((folder / "meg_config.json").read_text())
        config["provenance"]["made"] = "anew"
        (folder / "meg_config.json").write_text(json.dumps(config))

    put_in_its_place(live, without_it)
    found = live.ask(edit.prompt)["megedit"]
    assert found["edit"] is None and found["revision"] == 1


def test_a_fit_for_another_layer_is_refused(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    """The model that is served is made ready for one layer: in place of wrong answers there are none."""

    def at_another_layer(folder: Path) -> None:
        config = json.loads((folder / "meg_config.json").read_text())
        (folder / "meg_config.json").write_text(json.dumps({**config, "layer": config["layer"] + 1}))

    put_in_its_place(live, at_another_layer)
    body = {"model": "tiny", "messages": [{"role": "user", "content": live.model.edits[0].prompt}]}
    answer = live.post("/v1/chat/completions", body)
    assert answer.status_code == 503 and "fitted anew" in caplog.text
    added_to = live.post("/v1/edits", {"edits": [NEW]})
    assert added_to.status_code == 400 and "fitted anew" in added_to.json()["error"]["message"]
