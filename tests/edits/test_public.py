"""Data sets by path and by public name; the Hub is replaced by rows of the test."""

import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pytest

from megedit.edits import Dropped, Edit, Question, load_edits, query_id
from megedit.edits.public import PUBLIC
from megedit.edits.schemas import SCHEMAS
from megedit.errors import MegError

NAMES = "counterfact, zsre, knowedit, mquake"


class Hub:
    """Stands in for `datasets.load_dataset`: gives the rows it has, and remembers what was asked for."""

    def __init__(self, rows: list[dict[str, Any]] | Exception) -> None:
        self.rows = rows
        self.asked: list[tuple[str, dict[str, object]]] = []

    def __call__(self, repository: str, **options: object) -> list[dict[str, Any]]:
        self.asked.append((repository, options))
        if isinstance(self.rows, Exception):
            raise self.rows
        return self.rows


def use(monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]] | Exception) -> Hub:
    hub = Hub(rows)
    monkeypatch.setattr(datasets, "load_dataset", hub)
    return hub


def counterfact(case_id: int, subject: str, target: str) -> dict[str, Any]:
    rewrite = {"prompt": "{} is in", "subject": subject, "target_new": {"str": target}, "target_true": {"str": "Asia"}}
    return {"case_id": case_id, "requested_rewrite": rewrite, "generation_prompts": [f"{subject} is a"]}


def test_path_is_read_as_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = use(monkeypatch, [])
    file = tmp_path / "counterfact"
    file.write_text('{"prompt": "a", "target": "b"}\n{"prompt": "a", "target": "c"}\n')
    for path in (file, str(file)):
        edits = load_edits(path, on_conflict="first", limit=3)
        assert (edits.edits, edits.source, edits.format) == ((Edit(query_id("a"), "a", "b"),), str(file), "plain jsonl")
    with pytest.raises(MegError, match="line 2: this has the query of line 1"):
        load_edits(file)
    assert hub.asked == []


def test_public_name_is_read_from_the_hub(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    hub = use(monkeypatch, [counterfact(5, "Lima", "Europe"), counterfact(6, "Lima", "Africa")])
    with caplog.at_level(logging.INFO, logger="megedit"):
        edits = load_edits("counterfact", on_conflict="first")
    assert edits.edits == (Edit("5", "Lima is in", "Europe", "Lima", target_true="Asia"),)
    assert edits.questions == (Question("generation", "Lima is a", (), "5"),)
    assert edits.dropped == (Dropped("row 2", "same query as an earlier one, another target", "row 1"),)
    assert (edits.source, edits.format) == ("azhx/counterfact", "counterfact hub")
    revision = "c01c413f856ee38f5c080c9fc5e87aff478e2ff9"
    assert hub.asked == [("azhx/counterfact", {"data_files": None, "split": "train+test", "revision": revision})]
    assert [record.getMessage() for record in caplog.records] == [
        "Downloading split train+test of azhx/counterfact from the Hugging Face Hub, unless it is in the cache "
        "(licence: MIT)"
    ]
    with pytest.raises(MegError, match=r"^azhx/counterfact, row 2: this has the query of row 1 but another target"):
        load_edits("counterfact")
    assert len(load_edits("counterfact", limit=1)) == 1


def test_file_of_a_public_data_set_through_the_real_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library fills in fields that some records lack, and keeps answers of different forms apart."""
    aspects: list[dict[str, object]] = [
        {"portability": {"Reasoning": [{"prompt": "q1", "ground_truth": "a"}]}},
        {"locality": {"Forgetfulness": [{"prompt": "q2", "ground_truth": [["b", "c"]]}]}, "ground_truth": "old"},
    ]
    rows = [{"prompt": f"p{i}", "target_new": f"t{i}", **fields} for i, fields in enumerate(aspects)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    load = datasets.load_dataset
    files, cache = str(tmp_path / "rows.json"), str(tmp_path / "cache")

    def local(repository: str, *, data_files: str, split: str, revision: str | None) -> Any:
        assert (repository, data_files) == ("zjunlp/KnowEdit", "benchmark/wiki_counterfact/test_cf.json")
        return load("json", data_files=files, split=split, revision=revision, cache_dir=cache)

    monkeypatch.setattr(datasets, "load_dataset", local)
    edits = load_edits("knowedit")
    first, second = query_id("p0"), query_id("p1")
    assert edits.edits == (Edit(first, "p0", "t0"), Edit(second, "p1", "t1", neighbours=("q2",), target_true="old"))
    assert edits.questions == (
        Question("portability", "q1", ("a",), first),
        Question("locality", "q2", ("b", "c"), second),
    )


@pytest.mark.parametrize(
    "error",
    [ConnectionError("no way\nto the Hub"), ValueError("no way"), type("HttpError", (Exception,), {})("no way")],
)
def test_failed_download_is_told_in_one_sentence(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, error)
    with pytest.raises(MegError) as caught:
        load_edits("mquake")
    assert str(caught.value) == (
        "mquake: henryzhongsc/MQuAKE-Remastered cannot be read from the Hub (no way); "
        f"give the path of a file, or one of the names {NAMES}"
    )


def test_public_data_sets_need_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megedit.errors.find_spec", lambda package: None)
    with pytest.raises(MegError, match=r"^datasets is needed for .*; run pip install 'megedit\[data\]'\.$"):
        load_edits("counterfact")


@pytest.mark.parametrize("name", ["unknown", "a\0b", "x" * 5000])
def test_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(MegError) as caught:
        load_edits(name)
    assert str(caught.value) == (
        f"{name}: there is no such file and no such public data set; "
        f"give the path of a file, or one of the names {NAMES}"
    )


def test_data_set_without_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, [])
    with pytest.raises(MegError, match=r"^zjunlp/KnowEdit: there is no record; it needs at least one$"):
        load_edits("zsre")


def test_public_data_sets_name_known_schemas() -> None:
    assert ", ".join(PUBLIC) == NAMES
    assert {public.schema for public in PUBLIC.values()} <= SCHEMAS.keys()
