"""Names of the fields of plain facts, as the columns of people's files have them."""

import logging
import re
from collections.abc import Sequence

from megedit.edits.rows import Row

logger = logging.getLogger("megedit")

OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "id": ("case_id", "edit_id"),
    "prompt": ("query", "question", "src", "input", "instruction"),
    "target": ("answer", "target_new", "new_target", "new_answer", "alt", "output", "response", "completion"),
    "subject": ("entity",),
    "relation": ("relation_id", "predicate", "property"),
    "rephrases": ("rephrase", "rephrase_prompt", "rephrase_prompts", "paraphrase", "paraphrases", "paraphrase_prompts"),
    "neighbours": ("neighbour", "neighbor", "neighbors", "neighborhood_prompts", "neighbourhood_prompts"),
    "wordings": ("wording", "other_wordings", "other_questions"),
    "aliases": ("alias", "other_names", "also_known_as"),
    "target_true": ("target_old", "old_target", "old_answer", "true_target"),
}
LISTS = ("rephrases", "neighbours", "wordings", "aliases")

_FIELDS = {name: field for field, names in OTHER_NAMES.items() for name in (field, *names)}


def columns_of(names: Sequence[str]) -> dict[str, list[int]]:
    """The columns that a plain fact is read from: by field, the indices of the names that stand for it.

    Case does not count, nor that of spaces and hyphens against underscores. Only where no column has the name of the
    field itself, its other names count. A field that several columns may be has several indices.
    """
    own: dict[str, list[int]] = {}
    other: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        folded = _folded(name)
        if field := _FIELDS.get(folded):
            (own if folded == field else other).setdefault(field, []).append(index)
    return {**other, **own}


def log_other_names(source: str, names: dict[str, str]) -> None:
    """Log which columns are read under another name; `names` are those of the columns, by field."""
    renamed = [f"`{name}` as `{field}`" for field, name in names.items() if _folded(name) != field]
    if renamed:
        logger.info("%s: reading %s", source, ", ".join(renamed))


def several(field: str, names: Sequence[str]) -> str:
    """The problem that more than one column may be a field."""
    if len(set(names)) == 1:
        return f"two columns have the same name, `{names[0]}`; rename one"
    return f"`{'` and `'.join(names)}` may both be the field `{field}`; rename the right one to `{field}`"


class PlainNames:
    """Gives the fields of rows the names of the plain schema, and logs once which ones it reads under other names."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._columns: dict[tuple[str, ...], dict[str, list[int]]] = {}  # by the names of a row's fields
        self._logged: set[str] = set()

    def __call__(self, row: Row) -> Row:
        """The row with plain names; MegError if two of its fields may be the same one."""
        found = tuple(row.fields)
        if (columns := self._columns.get(found)) is None:
            columns = self._columns[found] = columns_of(found)
        names = {field: self._name(row, field, [found[i] for i in indices]) for field, indices in columns.items()}
        if new := {field: name for field, name in names.items() if name not in self._logged}:
            log_other_names(self._source, new)
            self._logged.update(new.values())
        fields = {field: row.fields[name] for field, name in names.items()}
        for field in LISTS:  # the singular names may hold one text
            if isinstance(value := fields.get(field), str) and _folded(names[field]) != field:
                fields[field] = [value] if value.strip() else []
        return Row(row.where, fields)

    def _name(self, row: Row, field: str, names: list[str]) -> str:
        """The name under which the row has a field: of several, the one that holds something."""
        if len(names) == 1:
            return names[0]
        filled = [name for name in names if row.fields[name] not in (None, "", [])] or names[:1]
        if len(filled) > 1:
            row.fail(several(field, filled))
        return filled[0]


def _folded(name: str) -> str:
    return re.sub(r"[\s\-]+", "_", name.strip().casefold())
