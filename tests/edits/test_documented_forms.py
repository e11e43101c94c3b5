"""docs/datasets.md: every example reads as the schema that it stands under, and its tables are those of the code."""

import re
from pathlib import Path

import pytest

from megedit.edits import contents, read_edits
from megedit.edits.columns import OTHER_NAMES
from megedit.edits.public import PUBLIC

TEXT = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text("utf-8")
EXAMPLES = [
    (name[1].casefold(), block[1])
    for name in re.finditer(r"^\*\*(\w+)\.?\*\*(.*?)(?=^\*\*\w+\.?\*\*|^## |\Z)", TEXT, flags=re.M | re.S)
    for block in re.finditer(r"```(?:json|csv)\n(.*?)```", name[2], flags=re.S)
]


def test_every_example_is_found() -> None:
    assert len(EXAMPLES) == len(re.findall(r"^```(?:json|csv)$", TEXT, flags=re.M)) == 11


@pytest.mark.parametrize(("schema", "text"), EXAMPLES)
def test_example_reads_as_its_schema(file: Path, schema: str, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    edits = read_edits(file)
    assert edits.format.split()[0] == schema
    assert edits.dropped == ()


def test_tables_name_what_the_code_knows() -> None:
    for field, names in OTHER_NAMES.items():
        assert f"| `{field}` | {', '.join(f'`{name}`' for name in names)} |" in TEXT
    for name, public in PUBLIC.items():
        commit = f", commit `{public.revision[:8]}`" if public.revision else ""
        assert f"| `{name}` | `{public.repository}`{commit} | " in TEXT
    assert f"up to {contents.MAX_UNPACKED_BYTES // 1024**3} GiB unpacked" in TEXT
