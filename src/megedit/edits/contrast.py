"""The contrast schema: facts, each with texts that ask for it and texts that only look like it (docs/contrast.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from megedit.edits.files import read_rows
from megedit.edits.rows import Row, kind_of
from megedit.edits.text import chat_text, normalise_query
from megedit.errors import MegError

Texts = Mapping[str, tuple[str, ...]]  # by kind
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class ContrastFact:
    """A fact in the contrast schema.

    fire: texts that the target answers. other: texts that it must not answer ("not" in the files). Conversations are
    texts of `chat_text`. asks: those of `other` that ask for another fact of the same file, with the prompt of that
    fact. set: where it comes from.
    """

    prompt: str
    target: str
    subject: str
    fire: Texts
    other: Texts
    set: str
    asks: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def asking(self) -> frozenset[str]:
        """The normalised prompt and texts that the target answers."""
        return frozenset(map(normalise_query, (self.prompt, *(text for _, text in texts(self.fire)))))


def texts(by_kind: Texts) -> Iterator[tuple[str, str]]:
    """(kind, text) of every text."""
    return ((kind, text) for kind, found in by_kind.items() for text in found)


def read_contrast(path: str | Path) -> list[ContrastFact]:
    """Read a JSONL or JSON file in the contrast schema.

    Raises:
        MegError: the file, or a record of it, cannot be used; it names the file, the place and the field.
    """
    container, rows = read_rows(path, required=("prompt", "target", "fire", "not"))
    if container not in ("jsonl", "json"):
        raise MegError(f"{path}: facts with contrast texts are objects in JSONL or JSON, not a table")
    facts, known = [], dict[str, str]()
    for row in rows:
        fact = _fact(row, Path(path).name.partition(".")[0])
        key = normalise_query(fact.prompt)
        if key in known:
            row.fail(f"the prompt {fact.prompt!r} stands in {known[key]} already; join the two records")
        known[key] = row.place
        facts.append(fact)
    if not any(fact.other for fact in facts):
        raise MegError(f"{path}: no record has texts under `not`, so that nothing could fire falsely; add some")
    for fact in facts:
        for text, prompt in fact.asks.items():
            if normalise_query(prompt) not in known:
                raise MegError(
                    f"{path}: `asks` says that {text!r} asks for {prompt!r}, which is the prompt of no record"
                )
    return facts


def _fact(row: Row, name: str) -> ContrastFact:
    fire, other = _side(row, "fire"), _side(row, "not")
    if not fire:
        row.fail("the field `fire` is missing or empty; give at least one text that asks for the fact")
    asks = row.get("asks")
    if not isinstance(asks, Mapping | None):
        row.fail(f"the field `asks` must be an object from texts to prompts, not {kind_of(asks)}")
    near = {normalise_query(text): text for _, text in texts(other)}
    pairs = {}
    for text, prompt in (asks or {}).items():
        if normalise_query(text) not in near:
            row.fail(f"`asks` names the text {text!r}, which does not stand under `not`")
        pairs[near[normalise_query(text)]] = Row(row.where, {"asks": prompt}).text("asks")
    prompt, target = row.text("prompt"), row.answer("target")
    fact = ContrastFact(prompt, target, row.optional_answer("subject") or "", fire, other, name, pairs)
    for _, text in texts(other):
        if normalise_query(text) in fact.asking:
            row.fail(f"the text {text!r} stands both under `fire` and under `not`; leave it on the right side")
    return fact


def _side(row: Row, name: Literal["fire", "not"]) -> dict[str, tuple[str, ...]]:
    """The texts of one side, by kind."""
    kinds = row.get(name)
    if not isinstance(kinds, Mapping | None):
        row.fail(f"the field `{name}` must be an object of lists of texts, by kind, not {kind_of(kinds)}")
    found = {}
    for kind, values in (kinds or {}).items():
        if not isinstance(values, list | tuple):
            row.fail(f"the field `{name}.{kind}` must be a list of texts, not {kind_of(values)}")
        found[kind] = tuple(_query(row, f"{name}.{kind}[{i}]", value) for i, value in enumerate(values))
    return {kind: queries for kind, queries in found.items() if queries}


def _text(row: Row, name: str, value: object) -> str:
    """A checked text, whatever its kind is called."""
    side, *keys = name.split(".")
    for key in reversed(keys):
        value = {key: value}
    return Row(row.where, {side: value}).text(name)


def _query(row: Row, name: str, value: object) -> str:
    """A text, or a conversation: a list of turns that ends with the user's."""
    if not isinstance(value, list | tuple):
        return _text(row, name, value)
    turns = []
    for i, turn in enumerate(value):
        if not isinstance(turn, Mapping) or turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
            row.fail(f'the field `{name}[{i}]` must be a turn, {{"role": {" or ".join(ROLES)}, "content": text}}')
        turns.append({"role": str(turn["role"]), "content": str(turn["content"])})
    if not turns or turns[-1]["role"] != "user":
        row.fail(f"the conversation in `{name}` must end with a turn of the user")
    return chat_text(turns)
