"""Facts in: from the rows of a file to edits that are checked, without repetitions and contradictions."""

from megedit.edits.edit_set import Dropped, EditSet, OnConflict, edits_of, fold, normalise_query, read_edits
from megedit.edits.public import load_edits
from megedit.edits.schemas import MAX_TARGET_CHARS, Edit, Question, QuestionKind

__all__ = [
    "MAX_TARGET_CHARS",
    "Dropped",
    "Edit",
    "EditSet",
    "OnConflict",
    "Question",
    "QuestionKind",
    "edits_of",
    "fold",
    "load_edits",
    "normalise_query",
    "read_edits",
]
