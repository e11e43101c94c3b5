"""Objects in JSON text: one a line (JSONL), one after another in any layout, in a list, or as `{"edits": [...]}`."""

import json
import re
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Literal

from megedit.edits.rows import Number, Row, kind_of
from megedit.errors import MegError

_DECODER = json.JSONDecoder(parse_int=Number, parse_float=Number, parse_constant=lambda name: None)  # NaN is no value
_SPACE = re.compile(r"\s*")
_GAP = re.compile(r"\s*(?:,\s*)?")  # a comma may stand behind an object, as in a list without brackets

# EasyEdit gives the facts of one call as lists, one for each field
_LISTS = {
    "prompts": "prompt",
    "targets": "target",
    "subjects": "subject",
    "rephrase_prompts": "rephrase_prompt",
    "locality_inputs": "locality",
    "portability_inputs": "portability",
}


def json_rows(source: str, text: str) -> tuple[Literal["json", "jsonl"], Iterator[Row]]:
    """The container, `jsonl` if the first object stands on one line, and the rows, read as the iterator runs.

    Raises:
        MegError: the text is not valid JSON, or not of objects.
    """
    documents = _documents(source, text)
    first = next(documents)
    _, value, length = first
    rows = _rows(source, chain([first], documents))
    in_list = isinstance(value, list) or (isinstance(value, dict) and "edits" in value)
    spread = "\n" in text.lstrip("\ufeff \t\r\n")[:length]
    return "json" if in_list or spread else "jsonl", rows


def _documents(source: str, text: str) -> Iterator[tuple[int, object, int]]:
    """The line on which each JSON value begins, the value, and its length in characters."""
    index, line = 0, 1
    while True:
        gap = (_GAP if index else _SPACE).match(text, index)
        start = gap.end() if gap else index
        line += text.count("\n", index, start)
        if start == len(text):
            return
        try:
            value, index = _DECODER.raw_decode(text, start)
        except json.JSONDecodeError as error:
            there = line + text[start : error.pos].rstrip().count("\n")  # where what is missing should have stood
            inside = f" in the object that begins on line {line}" if there > line and text[start] == "{" else ""
            raise MegError(
                f"{source}, line {there}: this is not valid JSON ({error.msg}{inside}); correct or remove the line"
            ) from None
        except RecursionError:
            raise MegError(f"{source}: this is not valid JSON (too many brackets in one another); correct it") from None
        yield line, value, index - start
        line += text.count("\n", start, index)


def _rows(source: str, documents: Iterator[tuple[int, object, int]]) -> Iterator[Row]:
    for number, (line, value, _) in enumerate(documents):
        if isinstance(value, dict) and "edits" in value:
            value = value["edits"]
            if not isinstance(value, list):
                raise MegError(f"{source}: `edits` must be a list of objects, not {kind_of(value)}")
        elif number or not isinstance(value, list):  # only the whole text may be a list
            yield from _rows_of(f"{source}, line {line}", value)
            continue
        if not value:
            raise MegError(f"{source}: the list is empty; it needs at least one record")
        for i, item in enumerate(value, start=1):
            yield from _rows_of(f"{source}, record {i}", item)


def _rows_of(where: str, value: object) -> Iterator[Row]:
    """The row of an object, or the rows of one whose fields are lists."""
    if not isinstance(value, dict):
        raise MegError(f"{where}: a record must be an object with named fields, not {kind_of(value)}")
    if not isinstance(prompts := value.get("prompts"), list):
        yield Row(where, value)
        return
    for i in range(len(prompts)):
        items = {name: _item(where, name, held, i, len(prompts)) for name, held in value.items()}
        yield Row(f"{where} item {i + 1}", {_LISTS.get(name) or name: item for name, item in items.items()})


def _item(where: str, name: str, held: object, i: int, count: int) -> object:
    """The part of a field that belongs to the prompt with index `i`."""
    if isinstance(held, list):
        if len(held) != count:
            raise MegError(
                f"{where}: the field `{name}` has {len(held)} items and `prompts` {count}; give one for each prompt"
            )
        return held[i]
    if name in ("locality_inputs", "portability_inputs") and isinstance(held, Mapping):
        return {aspect: _questions(where, f"{name}.{aspect}", asked, i, count) for aspect, asked in held.items()}
    return held if count == 1 or name not in ("id", "case_id") else f"{held}-{i + 1}"


def _questions(where: str, name: str, asked: object, i: int, count: int) -> list[dict[str, object]]:
    """The questions of an aspect about one prompt: `{"prompt": [...], "ground_truth": [...]}`, in KnowEdit's form."""
    if not isinstance(asked, Mapping):
        raise MegError(f"{where}: the field `{name}` must be an object of lists, not {kind_of(asked)}")
    prompts, answers = (_item(where, f"{name}.{key}", asked.get(key), i, count) for key in ("prompt", "ground_truth"))
    if not isinstance(prompts, list):
        return [{"prompt": prompts, "ground_truth": answers}] if prompts else []
    if not isinstance(answers, list) or len(answers) != len(prompts):
        raise MegError(f"{where}: the field `{name}.ground_truth` must have an answer for each of its prompts")
    return [{"prompt": prompt, "ground_truth": answer} for prompt, answer in zip(prompts, answers, strict=True)]
