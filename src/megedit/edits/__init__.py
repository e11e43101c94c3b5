"""Facts in: from the rows of a file to edits that are checked, without repetitions and contradictions."""

from megedit.edits.builder import Dropped, OnConflict
from megedit.edits.edit_set import EditSet, edits_of, read_edits
from megedit.edits.public import load_edits
from megedit.edits.schemas import MAX_TARGET_CHARS, Edit, Question, QuestionKind
from megedit.edits.text import chat_text, clean_query, fold, normalise_query, query_id, user_turns

__all__ = [
    "MAX_TARGET_CHARS",
    "Dropped",
    "Edit",
    "EditSet",
    "OnConflict",
    "Question",
    "QuestionKind",
    "chat_text",
    "clean_query",
    "edits_of",
    "fold",
    "load_edits",
    "normalise_query",
    "query_id",
    "read_edits",
    "user_turns",
]
