"""The report of one or several evaluations: a single HTML file that needs nothing else, from the results' JSON objects.

What a result lacks (a router's numbers, relations, a fit) is left out of the report.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from megedit.errors import MegError
from megedit.evaluate import firing
from megedit.evaluate.protocols import CONTRAST
from megedit.evaluate.report import charts, contrast, details, overview
from megedit.evaluate.result import FORMAT
from megedit.runtime.files import write_whole

ResultJson = Mapping[str, Any]
_NO_RULE = {"batch_size"}  # a setting of the machine; says nothing about what a number means
_FIELDS: dict[str, tuple[type, tuple[str, ...]]] = {
    "protocol": (dict, ("name", "version", "settings")),
    "system": (dict, ("name",)),
    "data": (dict, ("source", "edits")),
    "metrics": (list, ("name", "label", "unit", "edited", "unedited")),
    "verdicts": (list, ("edit", "group", "kind", "query", "answers", "edited")),
}


def compare_check(results: Sequence[ResultJson]) -> None:
    """Raise MegError if there are no results, or two whose protocol, its version or its settings differ."""
    if not results:
        raise MegError("There is no result to report; name at least one file that `meg eval --out` wrote.")
    first = results[0]
    for other in results[1:]:
        if difference := _difference(first["protocol"], other["protocol"]):
            raise MegError(
                f"{first['system']['name']} and {other['system']['name']} cannot be compared: they were evaluated "
                f"with {difference}; evaluate both in the same way."
            )


def load_result(path: Path) -> dict[str, Any]:
    """The result in a file.

    Raises MegError, which names the file, if it cannot be read, is not JSON, not a result or of a newer format.
    """
    try:
        result = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise MegError(f"{path} could not be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise MegError(f"{path} is not a JSON file ({error}); name a file that `meg eval --out` wrote.") from error
    number = result.get("format") if isinstance(result, dict) else None
    if isinstance(result, dict) and number == 1 and "subject" in result:  # format 1 called the system so
        result["system"] = result.pop("subject")
    if not isinstance(number, int):
        raise MegError(f"{path} is not the result of an evaluation; name a file that `meg eval --out` wrote.")
    newest, fields = (firing.FORMAT, contrast.FIELDS) if _is_contrast(result) else (FORMAT, _FIELDS)
    if number > newest:
        raise MegError(f"{path} has format {number}, and this MegEdit reads format {newest}; update MegEdit.")
    if missing := _missing_field(result, fields):
        raise MegError(f"{path}: the field `{missing}` is missing or not valid; evaluate again with `meg eval --out`.")
    return dict(result)


def render_report(results: Sequence[ResultJson], examples: int = 5) -> str:
    """The page, with up to `examples` examples of each kind of failure. Raises MegError as `compare_check` does."""
    compare_check(results)
    labels = overview.labels_of(results)
    if _is_contrast(results[0]):
        name, values = "contrast.html.jinja", contrast.page_values(results, labels, examples)
    else:
        name, values = "page.html.jinja", _page_values(results, labels, examples)
    environment = Environment(
        loader=FunctionLoader(lambda name: files("megedit.evaluate.report").joinpath(name).read_text("utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(figure_style=Markup(charts.STYLE), **values)


def _page_values(results: Sequence[ResultJson], labels: Sequence[str], examples: int) -> dict[str, Any]:
    return {
        "labels": labels,
        "first": results[0],
        "measured": overview.measured(results, labels),
        "metrics": overview.metrics(results, labels),
        "bars": overview.bars(results, "Bars of the metrics"),
        "scaling": overview.scaling(results, "Score against the number of edits"),
        "blocks": [
            {
                "label": label,
                "router": details.router(result),
                "relations": details.relations(result),
                "failures": details.failures(result, examples),
                "dropped": result["data"].get("dropped"),
            }
            for label, result in zip(labels, results, strict=True)
        ],
        "costs": overview.costs(results, labels),
        "environment": overview.environment(results, labels),
    }


def write_report(results: Sequence[ResultJson], folder: Path, examples: int = 5) -> Path:
    """Write `index.html` to the folder, which is made if it is not there; its path.

    Raises MegError if that fails, or as `compare_check` does.
    """
    page = render_report(results, examples)
    path = folder / "index.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, page, errors="replace")  # half a surrogate pair in an answer is not worth a crash
    except OSError as error:
        raise MegError(f"{path} could not be written: {error.strerror}; choose another folder.") from error
    return path


def _difference(first: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first difference between two protocols, in words."""
    names = [f"{protocol['name']} version {protocol['version']}" for protocol in (first, other)]
    if names[0] != names[1]:
        return f"different protocols, {names[0]} and {names[1]}"
    settings = [protocol["settings"] for protocol in (first, other)]
    for name in dict.fromkeys([*settings[0], *settings[1]]):
        values = [json.dumps(each.get(name), ensure_ascii=False) for each in settings]
        if values[0] != values[1] and name not in _NO_RULE:
            return f"different settings, {name} {values[0]} and {values[1]}"
    return None


def _is_contrast(result: ResultJson) -> bool:
    protocol = result.get("protocol")
    return isinstance(protocol, Mapping) and protocol.get("name") == CONTRAST


def _missing_field(result: ResultJson, fields: Mapping[str, tuple[type, tuple[str, ...]]]) -> str | None:
    """The first of the fields that every result has and this one has not."""
    for name, (kind, parts) in fields.items():
        value = result.get(name)
        if not isinstance(value, kind):
            return name
        for entry in value if isinstance(value, list) else [value]:
            missing = [part for part in parts if not isinstance(entry, dict) or part not in entry]
            if missing:
                return f"{name}.{missing[0]}"
    return None
