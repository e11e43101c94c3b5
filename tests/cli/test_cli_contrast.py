"""`meg eval --protocol contrast`: its table, its files and its errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megedit.evaluate.report import load_result, render_report
from tests.cli.test_cli import output, problem
from tests.conftest import Fitted


@pytest.fixture
def data(fitted: Fitted, tmp_path: Path) -> Path:
    """The adapter's facts with their rephrases and neighbours; the last fact has a text that nothing recognises."""
    records: list[dict[str, Any]] = [
        {
            "prompt": edit.prompt,
            "target": edit.target,
            "fire": {"paraphrase": list(edit.rephrases)},
            "not": {"other_entity": list(edit.neighbours)},
        }
        for edit in fitted.edits
    ]
    records[0]["not"]["sibling"] = ["What is Bo Chen's birthplace?"]  # a text of the next fact: left out
    records[-1]["not"]["own"] = [f"{fitted.edits[-1].rephrases[0]} [x]"]
    records[-1]["fire"]["odd"] = ["<b>Colourless</b> green ideas sleep [furiously]"]
    path = tmp_path / "contrast.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def test_table_result_and_report(fitted: Fitted, data: Path, tmp_path: Path) -> None:
    file, folder = tmp_path / "result.json", tmp_path / "report"
    text = output(
        *("eval", fitted.adapter, "--protocol", "contrast", "--data", data, "--dtype", "float32"),
        *("--out", file, "--report", folder),
    )
    assert "8 facts, protocol contrast 1" in text
    for row in ("recognised", "false", "recognised, paraphrase", "recognised, odd", "false, other_entity"):
        assert f"│ {row}" in text
    assert "Set to let 5.0 % of near misses fire, reached" in text
    assert "Left out: 1 (asks for another fact)." in text
    assert "Failures" in text and "missed, odd" in text and "[furiously]" in text
    values = load_result(file)
    assert values["system"] == {"name": str(fitted.adapter), "judged_by": "route", "false_fires": pytest.approx(5)}
    assert values["data"]["source"] == str(data) and values["data"]["facts"] == 8
    assert [each["count"] for each in (values["recognised"], values["false"])] == [17, 9]
    assert set(values["data"]["edits"]) == {v["edit"] for v in values["verdicts"]} - {None}
    assert load_result(folder / "result.json") == values
    assert (folder / "index.html").read_text("utf-8") == render_report([values])
    again = output("report", file, folder / "result.json", "--out", tmp_path / "both")
    assert f"The report is {tmp_path / 'both' / 'index.html'}." in again


def test_some_facts_and_no_failures_shown(fitted: Fitted, data: Path) -> None:
    text = output(
        *("eval", fitted.adapter, "--protocol", "contrast", "--data", data, "--limit", 2, "--examples", 0),
    )
    assert "2 facts" in text and "odd" not in text and "Failures" not in text
    assert "Left out: 1 (asks for another fact)." in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "name their file with --data (docs/contrast.md)"),
        (("--data", "no.jsonl"), "no.jsonl: there is no such file"),
        (
            ("--data", "DATA", "--rephrases", 1, "--template", "raw"),
            "asks the texts of its file as they are; leave out --rephrases, --template",
        ),
    ],
)
def test_what_is_refused(fitted: Fitted, data: Path, options: tuple[object, ...], message: str) -> None:
    given = [data if option == "DATA" else option for option in options]
    assert message in problem("eval", fitted.adapter, "--protocol", "contrast", *given)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "Who?"', "line 9: this is not valid JSON"),
        ('{"prompt": "Who?", "fire": {"a": ["Who is it?"]}}', "line 9: the field `target` is missing; add it"),
        (
            '{"prompt": "Who?", "target": "Me", "fire": {"a": ["Who is it?", 7]}}',
            "line 9: the field `fire.a[1]` must be text, not a number",
        ),
        (
            '{"prompt": "Who?", "target": "Me", "fire": {"a": ["Who is it?"]}}',
            "1 of the 9 facts of {data} are not in this adapter (first: 'Who?'); add them (meg add)",
        ),
    ],
)
def test_files_that_cannot_be_used(fitted: Fitted, data: Path, line: str, message: str) -> None:
    with data.open("a", encoding="utf-8") as file:
        file.write(line)
    told = problem("eval", fitted.adapter, "--protocol", "contrast", "--data", data)
    assert message.format(data=data) in told and str(data) in told
