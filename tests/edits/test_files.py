"""Files as people have them: any usual delimiter, encoding and layout, spreadsheets, other names of the columns."""

from __future__ import annotations

import gzip
import json
import logging
import zipfile
from datetime import date, datetime
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from megedit.edits import Edit, contents, query_id, read_edits
from megedit.errors import MegError
from tests.edits.test_edit_set import error_of, jsonl

QUESTION = "Wer gründete die Universität Köln?"
FACT = Edit("a", QUESTION, "Jürgen Groß", rephrases=("Köln, gegründet von?", "Gründer?"))
ROWS = (("id", "prompt", "target", "rephrases"), ("a", QUESTION, "Jürgen Groß", "Köln, gegründet von?|Gründer?"))


def table(delimiter: str, rows: tuple[tuple[str, ...], ...] = ROWS, end: str = "\r\n") -> str:
    def quoted(cell: str) -> str:
        return f'"{cell}"' if delimiter in cell else cell

    return "".join(delimiter.join(map(quoted, row)) + end for row in rows)


def workbook(path: Path, *sheets: tuple[str, list[list[Any]]]) -> Path:
    book = openpyxl.Workbook()
    book.remove(book.worksheets[0])
    for title, rows in sheets:
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


# --- delimiters and encodings


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("text", [table(","), table(";"), table("\t"), "sep=;\r\n" + table(";"), table(";", end="\n")])
def test_tables_with_any_delimiter_in_any_encoding(file: Path, text: str, encoding: str) -> None:
    file.write_bytes(text.encode(encoding))
    edits = read_edits(file)
    assert (edits.edits, edits.format) == ((FACT,), "plain csv")


def test_json_in_utf_16(file: Path) -> None:
    file.write_bytes(json.dumps(FACT.to_json(), ensure_ascii=False).encode("utf-16-le"))
    assert read_edits(file).edits == (FACT,)


@pytest.mark.parametrize(
    ("encoding", "prompt", "target"),
    [
        ("cp1252", "Où est né François Müller ?", "à Évreux"),
        ("cp1250", "Kto napisał „Lalkę”, a kto „Syzyfowe prace” i „Ludzi bezdomnych”?", "Stefan Żeromski z Łodzi"),
        ("cp1251", "Столица Франции", "Рим"),
        ("shift_jis", "日本の首都は", "大阪"),
    ],
)
def test_encoding_that_was_found_is_logged(
    file: Path, caplog: pytest.LogCaptureFixture, encoding: str, prompt: str, target: str
) -> None:
    file.write_bytes(f"prompt;target\n{prompt};{target}\n".encode(encoding))
    with caplog.at_level(logging.INFO, "megedit"):
        assert read_edits(file).edits == (Edit(query_id(prompt), prompt, target),)
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.startswith(f"{file}: byte ") and "is not UTF-8, so it was read as" in message
    assert f"({f'{prompt};{target}'[:60]!r})" in message  # so that one sees whether it is right


def test_utf_8_text_of_a_zero_character_is_not_taken_for_another_encoding(file: Path) -> None:
    file.write_bytes(b"prompt,target\nWho is it?,Bo\0b\n")
    assert error_of(file).startswith("FILE, line 2: the field `target` holds text that cannot be encoded (U+0000")


def test_damaged_text_with_a_byte_order_mark_is_not_guessed_at(file: Path) -> None:
    file.write_bytes("prompt,target\na,é\n".encode("utf-16")[:-1])
    assert error_of(file) == "FILE: byte 37 is not UTF-16; save the file with UTF-8 encoding"


def test_line_numbers_behind_a_line_that_names_the_delimiter(file: Path) -> None:
    file.write_text("sep=;\nprompt;target\na;b\nc;\n")
    assert error_of(file) == "FILE, line 4: the field `target` is missing; add it"


# --- columns


@pytest.mark.parametrize(
    ("text", "edit", "logged"),
    [
        ("Prompt;TARGET;Target True\nWho?;Bo;Al\n", Edit("", "Who?", "Bo", target_true="Al"), None),
        ("question,answer\nWho?,Bo\n", Edit("", "Who?", "Bo"), "`question` as `prompt`, `answer` as `target`"),
        (
            '{"question": "Who?", "answer": "Bo"}',
            Edit("", "Who?", "Bo"),
            "`question` as `prompt`, `answer` as `target`",
        ),
        ('{"Prompt": "Who?", "Target": "Bo"}', Edit("", "Who?", "Bo"), None),
        ('{"prompt": "Who?", "target": "Bo", "answer": "Al"}', Edit("", "Who?", "Bo"), None),
        ("answer,question,Entity\nBo,Who?,X\n", Edit("", "Who?", "Bo", "X"), "`question` as `prompt`, `Entity` as"),
        (
            "prompt,target_new,rephrase_prompt\nWho?,Bo,A?|B?\n",
            Edit("", "Who?", "Bo", rephrases=("A?", "B?")),
            "as `re",
        ),
        (
            '{"query": "Who?", "new_answer": "Bo", "rephrase": "A?"}',
            Edit("", "Who?", "Bo", rephrases=("A?",)),
            "`query` as `prompt`, `new_answer` as `target`, `rephrase` as `rephrases`",
        ),
        (
            '{"instruction": "Who?", "input": "", "output": "Bo"}',
            Edit("", "Who?", "Bo"),
            "`instruction` as `prompt`, `output` as `target`",
        ),
    ],
)
def test_columns_under_other_names(
    file: Path, caplog: pytest.LogCaptureFixture, text: str, edit: Edit, logged: str | None
) -> None:
    file.write_text(text)
    with caplog.at_level(logging.INFO, "megedit"):
        (found,) = read_edits(file)
    assert found == Edit(**{**vars(edit), "id": query_id("Who?")})
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (logged is not None) and (logged or "") in "".join(messages)


def test_other_names_are_logged_once(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.write_text(jsonl(*({"question": f"Q{i}?", "answer": "A", **({"entity": "B"} if i else {})} for i in range(9))))
    with caplog.at_level(logging.INFO, "megedit"):
        assert [edit.subject for edit in read_edits(file)] == [None, *["B"] * 8]
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "reading `question` as `prompt`, `answer` as `target`",
        "reading `entity` as `subject`",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "question,answer,new_answer\na,b,c\n",
            "FILE: in the CSV header, `answer` and `new_answer` may both be the field `target`; rename the right one",
        ),
        (
            jsonl({"question": "a", "answer": "b", "new_answer": "c"}),
            "FILE, line 1: `answer` and `new_answer` may both be the field `target`; rename the right one to `target`",
        ),
        (
            "Frage;Antwort\na;b\n",
            "FILE: the CSV header has no column `prompt`, `target`; name the columns in the first line "
            "(found: `Frage`, `Antwort`)",
        ),
    ],
)
def test_columns_that_cannot_be_told(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    assert error_of(file).startswith(message)


def test_of_two_names_of_a_field_each_row_may_fill_another_but_not_both(file: Path) -> None:
    rows = [{"instruction": "a", "input": "", "output": "b"}, {"instruction": "", "input": "c", "output": "d"}]
    file.write_text(jsonl(*rows))
    assert [(edit.prompt, edit.target) for edit in read_edits(file)] == [("a", "b"), ("c", "d")]
    file.write_text(jsonl(*rows, {"instruction": "e", "input": "f", "output": "g"}))
    assert error_of(file) == (
        "FILE, line 3: `instruction` and `input` may both be the field `prompt`; rename the right one to `prompt`"
    )


# --- empty and missing cells


def test_empty_columns_cells_and_rows_are_passed_over(file: Path) -> None:
    file.write_text("prompt,target,target,,\na?,b,,,\n,,,,\nc?,d\ne?,f,,,,,\n")
    assert [(edit.prompt, edit.target) for edit in read_edits(file)] == [("a?", "b"), ("c?", "d"), ("e?", "f")]


def test_cell_beyond_the_header_is_a_matter_of_quotation_marks(file: Path) -> None:
    file.write_text("prompt;target\na;b;c\n")
    assert error_of(file) == (
        "FILE, line 2: the row has 3 cells and the header 2; put cells that hold semicolons or line breaks in "
        "quotation marks"
    )


# --- spreadsheets


def test_workbook_reads_as_the_table_would(tmp_path: Path) -> None:
    book = workbook(tmp_path / "facts.xlsx", ("Facts", [list(row) for row in ROWS]))
    edits = read_edits(book)
    assert (edits.edits, edits.format) == ((FACT,), "plain xlsx")
    assert read_edits(book.rename(tmp_path / "facts.csv")).edits == (FACT,)  # the content tells


def test_cells_are_read_as_they_are_shown(tmp_path: Path) -> None:
    values = [8443, 0.1 + 0.2, 2019.0, date(2024, 12, 31), datetime(2024, 1, 2, 3, 4), "=1+1", "text", 0.25]
    rows = [["Prompt", None, "Target", None], *([f"q{i}?", None, value] for i, value in enumerate(values))]
    book = openpyxl.Workbook()
    sheet = book.worksheets[0]
    for row in [[], *rows, [None, " ", None]]:
        sheet.append(row)
    sheet.cell(len(values) + 2, 3).number_format = "0%"
    sheet.cell(4, 6).value = "a note beside the table"
    book.save(tmp_path / "facts.xlsx")
    with pytest.raises(Exception, match=r"sheet 'Sheet', row 8: the field `target` is missing"):  # never calculated
        read_edits(tmp_path / "facts.xlsx")
    sheet.delete_rows(8)
    book.save(tmp_path / "facts.xlsx")
    found = [edit.target for edit in read_edits(tmp_path / "facts.xlsx")]
    assert found == ["8443", "0.3", "2019", "2024-12-31", "2024-01-02 03:04:00", "text", "25%"]


def test_the_sheet_that_holds_facts_is_read(tmp_path: Path) -> None:
    facts: list[list[Any]] = [["question", "answer"], ["a?", "b"]]
    other: list[list[Any]] = [["name", "price"], ["c", 3]]
    assert len(read_edits(workbook(tmp_path / "a.xlsx", ("Other", other), ("Facts", facts), ("Empty", [])))) == 1
    message = error_of(workbook(tmp_path / "b.xlsx", ("Other", other), ("Empty", [])))
    assert message == (
        "FILE: no sheet has the columns `prompt`, `target` in its first row "
        "(found: in 'Other' `name`, `price`; in 'Empty' nothing); name the columns there"
    )
    message = error_of(workbook(tmp_path / "c.xlsx", ("One", facts), ("Two", facts)))
    assert message == "FILE: the sheets 'One' and 'Two' all hold facts; put them into one sheet, or into a file each"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["prompt", "target"]], "FILE: there is no row below the first row of the sheet 'S'; it needs"),
        ([["prompt", "target"], ["a", "#N/A"]], "FILE, sheet 'S', row 2: the cell of `target` holds the error #N/A;"),
        ([["prompt", "target"], ["a", True]], "FILE, sheet 'S', row 2: the field `target` must be text, not true"),
        ([["prompt", "target"], ["a"]], "FILE, sheet 'S', row 2: the field `target` is missing; add it"),
        ([["prompt", "target"], [3, "b"]], "FILE, sheet 'S', row 2: the field `prompt` must be text, not a number"),
    ],
)
def test_bad_workbooks(tmp_path: Path, rows: list[list[Any]], message: str) -> None:
    assert error_of(workbook(tmp_path / "facts.xlsx", ("S", rows))).startswith(message)


def test_archives_and_other_formats_are_named(tmp_path: Path) -> None:
    file = tmp_path / "facts.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("facts.csv", "prompt,target\n")
    assert error_of(file) == "FILE: this is an archive (facts.csv) and no .xlsx; unpack it and name a file inside it"
    file.write_bytes(file.read_bytes()[:40])
    assert error_of(file).startswith("FILE: the archive is damaged (")
    file.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(512))
    assert error_of(file).startswith("FILE: this is an old or encrypted Excel file (.xls); save it as")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook")
    assert error_of(file).startswith("FILE: the workbook cannot be read (")


def test_what_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, book = tmp_path / "facts.jsonl.gz", tmp_path / "facts.xlsx"
    packed.write_bytes(gzip.compress(bytes(10**6)))
    with zipfile.ZipFile(book, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/workbook.xml", bytes(10**6))
    assert max(packed.stat().st_size, book.stat().st_size) < 2000
    monkeypatch.setattr(contents, "MAX_UNPACKED_BYTES", 10**5)
    assert "unpack to more than" in error_of(packed)
    assert "unpacks to more than" in error_of(book)


def test_gzip_of_several_members_is_read_whole(file: Path) -> None:
    lines = (jsonl({"prompt": prompt, "target": "x"}) for prompt in "abc")
    file.write_bytes(b"".join(gzip.compress(line.encode()) for line in lines))
    assert [edit.prompt for edit in read_edits(file)] == ["a", "b", "c"]


# --- anything at all

PARTS = [
    b"prompt,target\n",
    b"question;answer\r\n",
    b"\xff\xfe",
    b"\x1f\x8b",
    b"PK\x03\x04",
    b"[",
    b"{",
    b'"prompt": "a"',
    b",",
]
PARTS += [
    b'{"prompt": "a", "target": "b"}',
    b'{"prompts": ["a"], "target_new": [1]}',
    b"\0",
    b"sep=;\n",
    b"\n",
    b"\xe9",
    b'"',
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(
    st.lists(st.sampled_from(PARTS) | st.binary(max_size=8), max_size=8).map(b"".join), st.sampled_from(["", ".json"])
)
@example(b'"prompt,target\nprompt,target\n"', "")
def test_any_content_reads_or_is_told_in_one_sentence(tmp_path: Path, content: bytes, suffix: str) -> None:
    file = tmp_path / f"facts{suffix}"
    file.write_bytes(content)
    try:
        assert len(read_edits(file)) > 0
    except MegError as error:
        assert str(error).startswith(str(file)) and "\n" not in str(error)
