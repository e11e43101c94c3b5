"""The verifier: what it reads, and that the shipped one reads rightly."""

import shutil
from pathlib import Path

import pytest
import torch

from megedit.errors import MegError
from megedit.router.verifier import EDIT_WINDOW, TARGET_WORDS, WINDOW, edit_text, load_verifier, padded
from megedit.runtime.shipped import SECOND_VERIFIER, VERIFIER, shipped

PORT = edit_text("Which port does the billing service use?", "8443")
ASKS = ("what port is the billing service on?", "billing service port number")
DO_NOT = (
    "Which port does the billing service not use?",
    "How many ports does the billing service use?",
    "Does the billing service use port 9443?",
    "Which port did the billing service use until May?",
    "Who is the head of the billing service?",
)


def test_the_verifier_reads_the_question() -> None:
    verifier = load_verifier(shipped(VERIFIER))
    queries = [*ASKS, *DO_NOT]
    scores = verifier.score(queries, [PORT] * len(queries))
    assert scores[: len(ASKS)].min() > 0 > scores[len(ASKS) :].max()
    alone = torch.cat([verifier.score([query], [PORT]) for query in queries])
    torch.testing.assert_close(scores, alone, atol=1e-3, rtol=1e-3)  # padding changes nothing
    assert verifier.score([], []).shape == (0,)


def test_the_second_verifier_reads_the_best_edit_alone() -> None:
    verifier = load_verifier(shipped(VERIFIER))
    assert verifier.second is not None
    other = edit_text("Who leads the Atlas project?", "Ines")
    (found,), (alone,) = verifier.read([ASKS[0]], [[other, PORT]]), verifier.read([ASKS[0]], [[PORT]])
    opinions = verifier.score([ASKS[0]] * 2, [other, PORT]), verifier.second.score([ASKS[0]], [PORT])
    assert found[0] == pytest.approx(float(opinions[0][0]), abs=1e-4)
    assert found[1] == alone[0] == pytest.approx(float(opinions[0][1] + opinions[1][0]) / 2, abs=1e-4)
    assert opinions[0][1] != opinions[1][0]
    assert verifier.read([], []) == []


def test_a_verifier_without_a_second_one_decides_alone(tmp_path: Path) -> None:
    """As in adapters that were made before there were two."""
    shutil.copyfile(shipped(VERIFIER), tmp_path / VERIFIER)
    verifier = load_verifier(tmp_path / VERIFIER)
    assert verifier.second is None
    assert verifier.read([ASKS[0]], [[PORT]])[0] == verifier.score([ASKS[0]], [PORT]).tolist()
    (tmp_path / SECOND_VERIFIER).write_bytes(b"no")
    with pytest.raises(MegError, match="second_verifier"):
        load_verifier(tmp_path / VERIFIER)


def test_long_texts_are_cut_where_they_matter_least() -> None:
    verifier = load_verifier(shipped(VERIFIER))
    (ids, segments), *_ = verifier.tokens(["word " * 500 + "end"], ["edit " * 500])
    assert len(ids) == len(segments) == WINDOW
    assert sum(segments) == EDIT_WINDOW + 1
    assert str(verifier.tokenizer.decode(ids[: WINDOW - EDIT_WINDOW - 1])).endswith("word end [SEP]")
    assert len(edit_text("A", "b " * 50).split()) == TARGET_WORDS + 2


def test_padding_of_no_rows_and_of_two() -> None:
    assert padded([])[0].shape == (0, 1)
    ids, segments, mask = padded([([1, 2, 3], [0, 0, 1]), ([4], [0])])
    assert ids.tolist() == [[1, 2, 3], [4, 0, 0]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert segments.tolist() == [[0, 0, 1], [0, 0, 0]]
