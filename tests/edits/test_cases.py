"""Cases of MQuAKE: several edits that belong together."""

from pathlib import Path

from megedit.edits import Dropped, read_edits
from tests.edits.test_edit_set import error_of, jsonl


def rewrite(subject: str, target: str, **fields: object) -> dict[str, object]:
    return {
        "prompt": "{} is a citizen of",
        "relation_id": "P27",
        "subject": subject,
        "question": f"Which country is {subject} a citizen of?",
        "target_new": {"str": target},
        **fields,
    }


def case(case_id: int, *rewrites: object) -> dict[str, object]:
    return {"case_id": case_id, "requested_rewrite": rewrites, "questions": [f"Q{case_id}?"], "new_answer": "A"}


def test_edit_that_cases_share_is_one_edit_of_each(file: Path) -> None:
    file.write_text(jsonl(case(1, rewrite("Ann", "Peru"), rewrite("Bob", "Chad")), case(2, rewrite("Bob", "Chad"))))
    edits = read_edits(file)
    assert [(edit.id, edit.target) for edit in edits] == [("1-1", "Peru"), ("1-2", "Chad")]
    assert edits.instances == {"1": ("1-1", "1-2"), "2": ("1-2",)}
    assert [question.group for question in edits.questions] == ["1", "2"]
    assert edits.dropped == ()


def test_case_that_contradicts_an_earlier_one_is_left_out_whole(file: Path) -> None:
    file.write_text(
        jsonl(
            case(1, rewrite("Ann", "Peru")),
            case(2, rewrite("Bob", "Chad"), rewrite("Bob", "Chad", question="Bob's country?"), rewrite("Ann", "Mali")),
            case(3, rewrite("Bob", "Togo"), rewrite("Cid", "Togo", question="Cid is from?")),
            case(4, rewrite("Cid", "Chad")),
            case(5, rewrite("Dee", "Chad"), rewrite("Eve", "Chad", target_true={"str": "chad"})),
        )
    )
    assert error_of(file).startswith(
        "FILE, line 2: this has the query of line 1 but another target ('Mali', there 'Peru')"
    )
    edits = read_edits(file, on_conflict="first")
    assert [edit.id for edit in edits] == ["1-1", "3-1", "3-2"]
    assert edits.instances == {"1": ("1-1",), "3": ("3-1", "3-2")}
    assert [question.group for question in edits.questions] == ["1", "3"]
    assert edits.dropped == (
        Dropped("line 2", "same query as an earlier one, another target", "line 1"),
        Dropped("line 4", "same subject and relation as an earlier one, another target", "line 3"),
        Dropped("line 5", "the target is the old answer", "'Chad'"),
    )


def test_limit_counts_cases(file: Path) -> None:
    shared = rewrite("Ann", "Peru")
    file.write_text(jsonl(case(1, shared, rewrite("Bob", "Chad")), case(2, shared), case(3, rewrite("Cid", "Mali"))))
    edits = read_edits(file, limit=2)
    assert (len(edits), list(edits.instances)) == (2, ["1", "2"])


def test_case_id_given_twice_is_an_error(file: Path) -> None:
    file.write_text(jsonl(case(1, rewrite("Ann", "Peru")), case(1, rewrite("Ann", "Peru"))))
    assert error_of(file) == "FILE, line 2: the case 1 is already there; give each case an id of its own"


def test_ids_of_cases_without_one(file: Path) -> None:
    cases = [case(1, rewrite("Ann", "Peru"), rewrite("Bob", "Chad")), case(2, rewrite("Bob", "Mali", prompt="{}, of"))]
    for fields in cases:
        del fields["case_id"]
    file.write_text(jsonl(*cases, case(3, rewrite("Cid", "Mali"))))
    edits = read_edits(file, on_conflict="first")
    first, third = edits.instances
    assert (edits.instances[first], third) == ((f"{first}-1", f"{first}-2"), "3")
    file.write_text(jsonl(cases[0]))
    assert list(read_edits(file).instances) == [first]
