"""What a server refuses to be started with."""

from __future__ import annotations

import pytest

from megedit.errors import MegError
from megedit.serve.settings import ServeSettings


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"host": "0.0.0.0"}, "--api-key"),
        ({"host": "0.0.0.0", "edit_key": "e" * 16}, "--api-key"),
        ({"api_key": "short"}, "at least 16"),
        ({"api_key": "x" * 16, "edit_key": "x" * 16}, "two keys"),
        ({"edit_key": "ümlaut-is-not-ascii"}, "ASCII"),
        ({"batch": 0}, "--batch"),
    ],
)
def test_a_server_that_would_be_open_does_not_start(options: dict[str, object], part: str) -> None:
    with pytest.raises(MegError, match=part):
        ServeSettings(name="x", **options)  # type: ignore[arg-type]


def test_addresses_of_this_machine_need_no_keys() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.1.2.3"):
        ServeSettings(name="x", host=host)
    ServeSettings(name="x", host="0.0.0.0", api_key="a" * 16, edit_key="b" * 16)
