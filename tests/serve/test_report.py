"""The report of evaluations that a server gives to its page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from megedit.errors import MegError
from megedit.serve.report import read_report
from tests.results import full_result
from tests.serve.conftest import API_KEY, Serve


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(full_result()))
    return path


def test_who_may_ask_may_read_the_report(serve: Serve, file: Path) -> None:
    live = serve(results=(file,), api_key=API_KEY)
    assert "</svg>" in live.http.get("/v1/report").json()["html"]
    assert live.http.get("/v1/status").json()["report"] is True
    assert live.http.get("/v1/report", headers={"Authorization": ""}).status_code == 401
    policy = live.http.get("/").headers["Content-Security-Policy"]
    assert re.search(r"style-src 'self' 'sha256-[\w+/=]+';", policy) and "unsafe" not in policy


def test_without_results_there_is_none(serve: Serve) -> None:
    live = serve()
    assert live.http.get("/v1/status").json()["report"] is False
    answer = live.http.get("/v1/report")
    assert answer.status_code == 404 and "--report" in answer.json()["error"]["message"]


def test_a_file_that_is_no_result_is_named(file: Path) -> None:
    file.write_text("{}")
    with pytest.raises(MegError, match=r"result\.json"):
        read_report([file])
    assert read_report([]) is None
