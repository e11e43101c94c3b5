"""Files of edits that are not as they should be: what is wrong, and where, in one sentence."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from megedit.edits import MAX_TARGET_CHARS, read_edits
from megedit.edits.rows import MAX_TEXT_CHARS
from tests.edits.test_edit_set import FRANCE, SPAIN, error_of, jsonl, zsre


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "FILE: the file is empty; it needs at least one record"),
        (" \n\n", "FILE: the file is empty; it needs at least one record"),
        ("[]", "FILE: the list is empty; it needs at least one record"),
        ('{"edits": []}', "FILE: the list is empty; it needs at least one record"),
        ('{"edits": 3}', "FILE: `edits` must be a list of objects, not a number"),
        (b"caf\x81\xff\xfe\x8d\x90\x9d", "FILE: byte 4 is not UTF-8"),
        (b"\x1f\x8bxx", "FILE: the gzip data is damaged"),
        (gzip.compress(b"text" * 99)[:-9], "FILE: the gzip data is damaged"),
        (jsonl(FRANCE) + "\n{oops}\n", "FILE, line 3: this is not valid JSON (Expecting property name"),
        ("{oops}\n" + jsonl(FRANCE), "FILE, line 1: this is not valid JSON"),
        (jsonl(FRANCE) + "9" * 5000, "FILE, line 2: a record must be an object with named fields, not a number"),
        ("[\n{},\n{]", "FILE, line 3: this is not valid JSON"),
        ("[" * 100_000, "FILE: this is not valid JSON"),
        (jsonl(FRANCE, [1]), "FILE, line 2: a record must be an object with named fields, not a list"),
        (
            '[{"prompt": "a", "target": "b"}, null]',
            "FILE, record 2: a record must be an object with named fields, not null",
        ),
        (
            jsonl({"fact": "a", "truth": "b"}),
            "FILE, line 1: the schema is unknown; give each record `prompt` and `target`, or the fields of CounterFact "
            "or MQuAKE (`requested_rewrite`), ZsRE (`src`, `alt`), KnowEdit (`prompt`, `target_new`) or UnKE "
            "(`question`, `answer`) (found: `fact`, `truth`)",
        ),
        (jsonl({"prompt": "a"}), "FILE, line 1: the field `target` is missing; add it"),
        (
            jsonl({"prompt": "a", "target": " "}),
            "FILE, line 1: the field `target` is empty; fill it in or remove the record",
        ),
        (jsonl({"prompt": 3, "target": "b"}), "FILE, line 1: the field `prompt` must be text, not a number"),
        (
            jsonl({"prompt": "a", "target": True}),
            "FILE, line 1: the field `target` must be text, not true or false",
        ),
        (
            jsonl({**FRANCE, "rephrases": "b"}),
            "FILE, line 1: the field `rephrases` must be a list of texts, not text",
        ),
        (jsonl({**FRANCE, "rephrases": ["b", ""]}), "FILE, line 1: the field `rephrases[1]` is empty"),
        (jsonl({**FRANCE, "id": True}), "FILE, line 1: the field `id` must be text, not true or false"),
        (
            jsonl({**FRANCE, "target": "b" * 2001}),
            "FILE, line 1: the field `target` has 2001 characters, more than the limit of 2000; shorten it",
        ),
        (
            jsonl({**FRANCE, "prompt": "b" * 8001}),
            "FILE, line 1: the field `prompt` has 8001 characters, more than the limit of 8000",
        ),
        (
            jsonl({**FRANCE, "target": "\u200b \u200b"}),
            "FILE, line 1: the field `target` holds only characters that cannot be seen; fill it in or remove",
        ),
        (jsonl({**FRANCE, "target": "\x07"}), "FILE, line 1: the field `target` holds only characters that cannot"),
        (
            jsonl({**FRANCE, "target": "b\0"}),
            "FILE, line 1: the field `target` holds text that cannot be encoded (U+0000 at character 2)",
        ),
        (
            jsonl({**FRANCE, "prompt": "\ud800"}),
            "FILE, line 1: the field `prompt` holds text that cannot be encoded (U+D800 at character 1)",
        ),
        (
            jsonl({**FRANCE, "id": "x"}, {**SPAIN, "id": "x"}),
            "FILE, line 2: the id 'x' is that of line 1; give each edit an id of its own",
        ),
        (
            jsonl({"requested_rewrite": "a"}),
            "FILE, line 1: the field `requested_rewrite.prompt` is missing; add it",
        ),
        (
            jsonl({"requested_rewrite": {"prompt": "a", "subject": "b"}}),
            "FILE, line 1: the field `requested_rewrite.prompt` must hold {} where the subject goes",
        ),
        (jsonl(zsre(alt="")), "FILE, line 1: the field `alt` is empty"),
        (
            "prompt,truth\na,b\n",
            "FILE: the CSV header has no column `target`; name the columns in the first line "
            "(found: `prompt`, `truth`)",
        ),
        ("some words", "FILE: the CSV header has no column `prompt`, `target`;"),
        ("prompt,target\n", "FILE: there is no row below the CSV header; it needs at least one record"),
        (
            "prompt,target,target\na,b,c\n",
            "FILE: in the CSV header, two columns have the same name, `target`; rename one",
        ),
        (
            'prompt,target\n"a\nb",c\n\nd\n',
            "FILE, line 5: the row has 1 cell and the header 2; put cells that",
        ),
        ('prompt,target\na,b\n"c"d,e\n', "FILE, line 3: this is not valid CSV"),
        ("prompt,target\na,\n", "FILE, line 2: the field `target` is missing; add it"),
    ],
)
def test_bad_content_is_told_in_one_sentence(file: Path, content: str | bytes, message: str) -> None:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    told = error_of(file)
    assert told.startswith(message)
    assert "\n" not in told


def test_bad_paths(tmp_path: Path) -> None:
    assert error_of(tmp_path) == "FILE: this is a directory; name a file inside it"
    assert error_of(tmp_path / "none") == "FILE: there is no such file; check the path"
    assert error_of(Path("a\0b")).startswith("FILE: the file cannot be read")


def test_json_suffix_turns_text_into_a_json_error(tmp_path: Path) -> None:
    file = tmp_path / "edits.jsonl"
    file.write_text("some words")
    assert error_of(file).startswith("FILE, line 1: this is not valid JSON")


def test_longest_allowed_texts_pass(file: Path) -> None:
    file.write_text(jsonl({"prompt": "p" * MAX_TEXT_CHARS, "target": "t" * MAX_TARGET_CHARS}))
    assert len(read_edits(file)[0].target) == MAX_TARGET_CHARS


@pytest.mark.parametrize("options", [{"limit": 0}, {"on_conflict": "last"}])
def test_bad_options(file: Path, options: dict[str, object]) -> None:
    file.write_text(jsonl(FRANCE))
    assert "must be" in error_of(file, **options)
