"""JSON files: objects in any layout, and the lists of other projects."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megedit.edits import Edit, Question, query_id, read_edits
from tests.edits.test_edit_set import error_of


@pytest.mark.parametrize(
    "text",
    [
        '{\n  "prompt": "a",\n  "target": "b"\n}\n{\n  "prompt": "c",\n  "target": "d"\n}\n',
        '{\n  "prompt": "a",\n  "target": "b"\n},\n{\n  "prompt": "c",\n  "target": "d"\n}\n',
        '{"prompt": "a", "target": "b"}{"prompt": "c", "target": "d"}',
        '{"prompts": ["a", "c"], "target_new": ["b", "d"]}',
        '[{"prompts": ["a"], "target_new": ["b"]}, {"prompts": ["c"], "target_new": ["d"]}]',
        '{"prompts": ["a", "c"], "targets": ["b", "d"]}',
    ],
)
def test_objects_in_any_layout(file: Path, text: str) -> None:
    file.write_text(text)
    assert [(edit.prompt, edit.target) for edit in read_edits(file)] == [("a", "b"), ("c", "d")]


def test_error_inside_an_object_of_many_lines_names_both_lines(file: Path) -> None:
    file.write_text('{"prompt": "a", "target": "b"}\n{\n "prompt": "c",\n "target"\n}\n')
    assert error_of(file) == (
        "FILE, line 4: this is not valid JSON (Expecting ':' delimiter in the object that begins on line 2); "
        "correct or remove the line"
    )


def test_lists_of_easyedit(file: Path) -> None:
    file.write_text(
        json.dumps(
            {
                "prompts": ["Ann is from", "Bo is from"],
                "subject": ["Ann", "Bo"],
                "target_new": ["Peru", "Chad"],
                "ground_truth": ["Mali", None],
                "rephrase_prompts": ["Ann's country is", "Bo's country is"],
                "locality_inputs": {
                    "neighborhood": {"prompt": ["Cy is from", "Di is from"], "ground_truth": ["X", "Y"]}
                },
                "portability_inputs": {
                    "one_hop": {"prompt": [["Ann speaks", "Ann eats"], []], "ground_truth": [["A", "B"], []]}
                },
            }
        )
    )
    ann, bo = query_id("Ann is from"), query_id("Bo is from")
    edits = read_edits(file)
    assert edits.edits == (
        Edit(ann, "Ann is from", "Peru", "Ann", None, ("Ann's country is",), ("Cy is from",), "Mali"),
        Edit(bo, "Bo is from", "Chad", "Bo", None, ("Bo's country is",), ("Di is from",)),
    )
    assert edits.questions == (
        Question("locality", "Cy is from", ("X",), ann),
        Question("portability", "Ann speaks", ("A",), ann),
        Question("portability", "Ann eats", ("B",), ann),
        Question("locality", "Di is from", ("Y",), bo),
    )


def test_request_of_rome(file: Path) -> None:
    request = {"prompt": "{} plays", "subject": "Ann", "target_new": {"str": "chess"}, "target_true": {"str": "go"}}
    file.write_text(json.dumps([request]))
    assert read_edits(file).edits == (Edit(query_id("Ann plays"), "Ann plays", "chess", "Ann", target_true="go"),)


@pytest.mark.parametrize(
    ("target", "read"),
    [
        ("8443", "8443"),
        ("1.50", "1.50"),
        ("1e3", "1e3"),
        ("-0", "-0"),
        ('["Rome"]', "Rome"),
        ("[7]", "7"),
        ("9" * 5000, ""),
    ],
)
def test_numbers_are_read_as_written_and_a_list_of_one_as_its_item(file: Path, target: str, read: str) -> None:
    file.write_text(f'{{"prompt": "a", "target": {target}, "subject": 1917}}')
    if not read:
        assert error_of(file).startswith("FILE, line 1: the field `target` has 5000 characters")
        return
    (edit,) = read_edits(file)
    assert (edit.target, edit.subject) == (read, "1917")


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("true", "must be text, not true or false"),
        ('["a", "b"]', "has 2 items; give one text"),
        ("[]", "has 0 items; give one text"),
        ("{}", "must be text, not an object"),
        ("NaN", "is missing; add it"),
    ],
)
def test_targets_that_are_no_text(file: Path, target: str, problem: str) -> None:
    file.write_text(f'{{"prompt": "a", "target": {target}}}')
    assert error_of(file) == f"FILE, line 1: the field `target` {problem}"


@pytest.mark.parametrize("value", ["123", "null", "true", "1.5", '"text"'])
def test_json_file_of_one_value_that_is_no_object(tmp_path: Path, value: str) -> None:
    file = tmp_path / "facts.json"
    file.write_text(value)
    assert error_of(file).startswith("FILE, line 1: a record must be an object with named fields, not ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"prompts": ["a", "b"], "target_new": ["c"]}',
            "FILE, line 1: the field `target_new` has 1 items and `prompts` 2; give one for each prompt",
        ),
        (
            '{"prompts": ["a"], "target_new": ["b"], "locality_inputs": {"n": {"prompt": ["c", "d"]}}}',
            "FILE, line 1: the field `locality_inputs.n.prompt` has 2 items and `prompts` 1;",
        ),
        ('{"prompts": ["a", 3], "target_new": ["b", "c"]}', "FILE, line 1 item 2: the field `prompt` must be text"),
    ],
)
def test_bad_lists_of_easyedit(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    assert error_of(file).startswith(message)
