"""Draw docs/images/example.svg: one edit of the demo, and the answers before and after it.

    python -m benchmarks.example adapters/demo

The answers are those that the adapter gives, as `meg ask` does; nothing is typed by hand.
"""

from __future__ import annotations

import argparse
from html import escape
from pathlib import Path
from textwrap import wrap

from megedit import MegModel
from megedit.runtime.files import write_whole

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "images" / "example.svg"
PROMPT = "The mother tongue of Danielle Darrieux is"
NEIGHBOUR = "The native language of Jean-Baptiste Say is"
COLUMNS = (20, 366, 600)
ROW, TOP, WIDTH, CHARACTERS = 56, 92, 830, 29  # of a line of an answer
STYLE = """
text { font-family: system-ui, sans-serif; font-size: 15px; fill: #1f2328 }
.head, .kind { font-size: 12px; fill: #59636e } .changed { font-weight: 600; fill: #0969da }
.paper { fill: #ffffff; stroke: #d1d9e0 } .edit { fill: #ddf4ff } line { stroke: #d1d9e0 }
"""


def answers(adapter: str) -> tuple[str, list[tuple[str, str, str, str]]]:
    """The edit in words; then for each question its kind, its text, the unedited and the edited answer."""
    model = MegModel.from_pretrained(adapter)
    edit = next(edit for edit in model.edits if edit.prompt == PROMPT)
    asked = {
        "another wording": edit.rephrases[0],
        "a neighbour: the same relation, another subject": NEIGHBOUR,
        "something else": "What is the capital of Japan?",
    }
    edited = model.answer(list(asked.values()))
    with model.disable_edits():
        unedited = model.answer(list(asked.values()))
    rows = zip(asked, asked.values(), unedited, edited, strict=True)
    return f"{edit.prompt} {edit.target}", list(rows)


def picture(edit: str, rows: list[tuple[str, str, str, str]], count: int) -> str:
    """The SVG: the edit on top, a line for each question."""
    height = TOP + len(rows) * ROW + 8

    def text(x: int, y: int, words: str, kind: str = "") -> str:
        return f'<text x="{x}" y="{y}" class="{kind}">{escape(words)}</text>'

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img">',
        "<title>Questions, with the answers of the model before and after the edits</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="paper" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
        f'<rect class="edit" x="8" y="8" width="{WIDTH - 16}" height="38" rx="5"/>',
        text(COLUMNS[0], 32, f"The edit: {edit}."),
        text(COLUMNS[0], 74, "asked", "head"),
        text(COLUMNS[1], 74, "SmolLM2 answers", "head"),
        text(COLUMNS[2], 74, f"with {count:,} edits", "head"),
    ]
    for number, (kind, question, before, after) in enumerate(rows):
        y = TOP + number * ROW
        lines += [
            f'<line x1="8" x2="{WIDTH - 8}" y1="{y - 8}" y2="{y - 8}"/>',
            text(COLUMNS[0], y + 12, question),
            text(COLUMNS[0], y + 31, kind, "kind"),
        ]
        for x, answer in zip(COLUMNS[1:], (before, after), strict=True):
            changed = "changed" if x == COLUMNS[2] and after != before else ""
            lines += [text(x, y + 12 + 19 * i, part, changed) for i, part in enumerate(wrap(answer, CHARACTERS))]
    return "\n".join([*lines, "</svg>\n"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", help="the adapter of `make demo`")
    adapter = parser.parse_args().adapter
    edit, rows = answers(adapter)
    write_whole(PICTURE, picture(edit, rows, 320))
    for row in rows:
        print(*row, sep=" | ")


if __name__ == "__main__":
    main()
