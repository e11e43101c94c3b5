"""Settings of a server, which its operator chooses."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from megedit.errors import MegError

LEAST_KEY = 16  # characters of a key


@dataclass(frozen=True)
class ServeSettings:
    """name: of the model, as clients ask for it. api_key: needed to ask and to read, None where nothing is needed.
    edit_key: needed to change edits, None where nobody may. batch: answers that are generated at a time. queue: those
    that may wait. max_tokens: of an answer. max_body: bytes of a request. max_edits: in one request. read_seconds: in
    which a request must have arrived. hosts: other names of this server. log_questions: whether the log has the texts
    of questions. results: files of evaluations, whose report the page shows.
    """

    name: str
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    edit_key: str | None = None
    batch: int = 32
    queue: int = 256
    max_tokens: int = 1024
    max_body: int = 8 * 1024**2
    max_edits: int = 1000
    read_seconds: float = 30.0
    hosts: tuple[str, ...] = ()
    log_questions: bool = False
    results: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        """Raise MegError for what would leave the server open, or cannot be."""
        for name, key in (("--api-key", self.api_key), ("--edit-key", self.edit_key)):
            if key is not None and (len(key) < LEAST_KEY or not key.isascii() or not key.isprintable() or " " in key):
                raise MegError(
                    f"The key of {name} must be at least {LEAST_KEY} printable ASCII characters without blanks; "
                    'make one with: python -c "import secrets; print(secrets.token_urlsafe(24))"'
                )
        if self.api_key is not None and self.api_key == self.edit_key:
            raise MegError("--api-key and --edit-key are the same; who may ask is not who may change: give two keys.")
        if not is_loopback(self.host) and (self.api_key is None or self.edit_key is None):
            raise MegError(
                f"{self.host} can be reached from other machines: give --api-key and --edit-key, "
                "or leave --host at 127.0.0.1."
            )
        for field in ("batch", "queue", "max_tokens", "max_body", "max_edits"):
            if getattr(self, field) < 1:
                raise MegError(f"--{field.replace('_', '-')} must be at least 1.")


def is_loopback(host: str) -> bool:
    """True for an address that only this machine reaches."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
