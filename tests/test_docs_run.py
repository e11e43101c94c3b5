"""Code in the documents: Python blocks run and print what they say, `meg` lines have options that there are.

docs/development.md, "Benchmarks and documents", tells how they are written.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from benchmarks import render
from megedit.cli.app import app

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "adapters" / "demo"
BLOCK = re.compile(r"^(<!-- not run: .+ -->\n)?```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PRINTED = re.compile(r"# -> (.*)$", re.MULTILINE)
MEG = re.compile(r"^(?: {4}|\$ )(?:.* -m )?(meg(?:edit)? .*)$", re.MULTILINE)
NEWS = {"id": "capital", "prompt": "What is the capital of Zubrowka?", "target": "Lutz", "subject": "Zubrowka"}
PAGES = render.documents(ROOT)


@dataclass(frozen=True)
class Block:
    """A Python block of a page. line: of its first line of code, from 0."""

    code: str
    line: int

    @property
    def printed(self) -> list[str]:
        """What it says that it prints, line by line; `...` stands for anything."""
        return PRINTED.findall(self.code)


def blocks(text: str) -> Iterator[Block]:
    """The Python blocks that are to be run."""
    for match in BLOCK.finditer(text):
        if not match[1]:
            yield Block(match[2], text.count("\n", 0, match.start(2)))


def difference(block: Block, output: str) -> str:
    """The first line that is not as the block says; the empty text if there is none."""
    lines, said = output.splitlines(), block.printed
    for line, wanted in zip(lines, said, strict=False):
        if not doctest.OutputChecker().check_output(f"{wanted}\n", f"{line}\n", doctest.ELLIPSIS):
            return f"says {wanted!r}, prints {line!r}"
    if len(lines) != len(said):
        return f"says {len(said)} lines, prints {len(lines)}: {lines}"
    return ""


def run(page: Path, namespace: dict[str, Any]) -> list[str]:
    """Run the blocks of a page in order, in one namespace; returns what is not as they say."""
    wrong = []
    for block in blocks(page.read_text("utf-8")):
        output = io.StringIO()
        code = compile("\n" * block.line + block.code, str(page), "exec")
        with contextlib.redirect_stdout(output):
            exec(code, namespace)
        if found := difference(block, output.getvalue()):
            wrong.append(f"{page.name}, block at line {block.line + 1}: {found}")
    return wrong


def facts() -> list[dict[str, Any]]:
    """The facts of the README."""
    return [json.loads(line) for line in re.findall(r"^    (\{.*\})$", (ROOT / "README.md").read_text("utf-8"), re.M)]


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder to run in: the demo's adapter under two names, the README's facts, and one more."""
    for name in ("demo", "facts"):
        shutil.copytree(DEMO, tmp_path / "adapters" / name)
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts()))
    (tmp_path / "news.jsonl").write_text(json.dumps(NEWS) + "\n")
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not DEMO.is_dir(), reason="`make demo` makes the adapter that the documents speak of")
@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize(
    "page", [page for page in PAGES if [*blocks(page.read_text("utf-8"))]], ids=lambda page: page.name
)
def test_the_python_blocks_of_a_page(page: Path) -> None:
    assert run(page, {"__name__": "__main__"}) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_blocks_can_be_compiled_and_imported(page: Path) -> None:
    """Those that are not run as well; and every name that a block imports from the package is there."""
    for match in BLOCK.finditer(page.read_text("utf-8")):
        code = compile(match[2], str(page), "exec")
        assert code
        for line in re.findall(r"^\s*(?:from megedit\S* import .*|import megedit\S*)$", match[2], re.MULTILINE):
            exec(line.strip(), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_have_options_that_there_are(page: Path) -> None:
    commands: dict[str, Any] = vars(get_command(app))["commands"]
    for line in MEG.findall(page.read_text("utf-8").replace("\\\n", " ")):
        words = shlex.split(line.rstrip("'"), comments=True)[1:]
        if not words or words[0] in ("COMMAND", "--help"):
            continue
        assert words[0] in commands, line
        parameters = commands[words[0]].params
        known = {name: parameter for parameter in parameters for name in parameter.opts if name.startswith("-")}
        known["--help"] = None
        for word, value in zip(words[1:], [*words[2:], ""], strict=True):
            if not word.startswith("--"):
                continue
            assert word in known, f"{line}: {word}"
            choices = getattr(getattr(known[word], "type", None), "choices", None)
            assert choices is None or value in choices, f"{line}: {word} {value}"


# ---------------------------------------------------------------------------------------------------
# The rules themselves


def test_what_a_block_prints_is_compared() -> None:
    [block] = blocks(
        "text\n```python\nprint(1, 2.5)  # -> 1 2...\nfor i in range(2):\n    print(i)\n# -> 0\n# -> 1\n```\n"
    )
    assert block.line == 2
    assert difference(block, "1 2.5\n0\n1\n") == ""
    assert difference(block, "1 3.5\n0\n1\n") == "says '1 2...', prints '1 3.5'"
    assert difference(block, "1 2.5\n0\n") == "says 3 lines, prints 2: ['1 2.5', '0']"


def test_a_block_with_a_reason_is_not_run() -> None:
    text = "<!-- not run: uploads -->\n```python\npush()\n```\n\n```python\nx = 1\n```\n```json\n{}\n```\n"
    assert [block.code for block in blocks(text)] == ["x = 1\n"]
