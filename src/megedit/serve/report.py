"""The report that the page shows: of results of evaluations, which the operator names."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megedit.evaluate.report import load_result, render_report

STYLE = re.compile(r"<style>(.*?)</style>", re.DOTALL)


@dataclass(frozen=True)
class Report:
    """html: a page of its own. styles: its style sheets, as sources of a content security policy."""

    html: str
    styles: tuple[str, ...]


def read_report(results: Sequence[Path]) -> Report | None:
    """The report of results that `meg eval` has written; None without any.

    Raises MegError where a file is no result, or the results cannot be compared.
    """
    if not results:
        return None
    html = render_report([load_result(path) for path in results])
    digests = (hashlib.sha256(style.encode()).digest() for style in STYLE.findall(html))
    return Report(html, tuple(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests))
