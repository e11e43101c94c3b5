"""The rules by which an answer counts, as pure functions of texts, token ids and probabilities.

AG (autoregressive): the model answers freely, greedy, and the whole answer counts. TF (teacher forcing): the share of
target tokens that are the model's first choice when the tokens before them are given. Exact match and containment
compare normalised text. The same rules for every model.

Sources: AG, TF and the Score, MeG (arXiv 2512.14395), section 4.1; normalisation, the evaluation of SQuAD (arXiv
1606.05250), section 6; probabilities compared and generation entropy, ROME (arXiv 2202.05262); ROUGE-L, Lin (2004),
from rouge-score; BLEU from sacrebleu (arXiv 1804.08771).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from statistics import fmean
from typing import Any

from megedit.errors import needs

ARTICLES = frozenset({"a", "an", "the"})

# A letter, mark or digit of Thai, Lao, Myanmar, Khmer, Japanese kana or Chinese characters: no spaces between words.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff]"
)
_LONG_DASHES = str.maketrans(dict.fromkeys("\u2014\u2015", " "))


def answer_text(generated: str) -> str:
    """The answer in a generated text: cut at the first newline, stripped, without one final full stop."""
    return generated.split("\n", 1)[0].strip().removesuffix(".").strip()


# ---------------------------------------------------------------------------------------------------
# Short answers


def answers_target(generated: str, target: str) -> bool:
    """True if the whole answer is the target, ignoring case."""
    return answer_text(generated).casefold() == answer_text(target).casefold()


def begins_with_target(generated: str, target: str) -> bool:
    """True if the text begins with the target and the target ends at a word boundary, ignoring case."""
    text, target = generated.strip().casefold(), answer_text(target).casefold()
    return text.startswith(target) and not text[len(target) : len(target) + 1].isalnum()


def normalise_answer(text: str) -> str:
    """The form in which two short answers are compared, as in SQuAD, and for every script.

    Compatibility forms and case are folded (NFKC, casefold); punctuation and invisible format characters are removed,
    so that `U.S.` is `us`; the English articles a, an, the are dropped; white space is collapsed. A long dash parts
    words. Letters with their combining marks, digits and symbols stay: `C++` is not `C`, unlike in SQuAD.
    """
    folded = _fold(text.translate(_LONG_DASHES))
    kept = "".join(c for c in folded if not _is_punctuation(c) and unicodedata.category(c) != "Cf")
    return " ".join(word for word in kept.split() if word not in ARTICLES)


def exact_match(generated: str, answers: Sequence[str]) -> bool:
    """True if the whole answer (`answer_text`) is one of the accepted answers when both are normalised.

    An accepted answer of which normalisation leaves nothing (`The The`, `?`) is compared as it is, ignoring case.
    """
    return any(_same_answer(generated, answer) for answer in answers)


def contains_target(generated: str, answers: Sequence[str]) -> bool:
    """True if the words of an accepted answer stand one after the other in the first line, both normalised.

    Words are whole: `Paris` is not in `Parisian`, nor in `Paris-Nord`. Scripts without spaces between words (Chinese,
    Japanese, Thai, Lao, Khmer, Myanmar) are compared letter by letter, a letter with its marks, so that 東京 is in
    東京都; spaces between such letters do not count. Korean joins particles to words and is taken word by word. An
    accepted answer without any text is in no text.
    """
    return any(_contains(generated, answer) for answer in answers)


def token_agreement(predicted: Sequence[int], expected: Sequence[int]) -> float:
    """Share of positions that agree; 1 when nothing is expected."""
    if not expected:
        return 1.0
    return fmean(float(a == b) for a, b in zip(predicted, expected, strict=True))


def harmonic_mean(values: Sequence[float]) -> float:
    """The Score: 0 when any value is 0."""
    if any(value <= 0 for value in values):
        return 0.0
    return len(values) / sum(1 / value for value in values)


# ---------------------------------------------------------------------------------------------------
# Probabilities


def mean_log_prob(log_probs: Sequence[float]) -> float:
    """Mean log-probability of a continuation's tokens, each after the ones before it.

    Raises ValueError for a continuation without tokens.
    """
    if not log_probs:
        raise ValueError("a continuation without tokens has no mean log-probability")
    return fmean(log_probs)


def success(log_prob_wanted: float, log_prob_other: float) -> bool:
    """True if the wanted continuation is the more probable one: ES, PS and NS of CounterFact; a tie is no success.

    ROME (arXiv 2202.05262, section 3) writes P[new] > P[true]. The published evaluations of ROME and MEMIT compare
    the mean negative log-likelihood per token, so that a long target has no handicap; give `mean_log_prob` of both to
    get their numbers. For ES and PS the target is wanted, for NS the true answer.
    """
    return log_prob_wanted > log_prob_other


# ---------------------------------------------------------------------------------------------------
# Long texts


def ngram_entropy(text: str) -> float:
    """Generation entropy (GE) of a text in bits: low when the text repeats itself, 0 for fewer than three words.

    ROME (arXiv 2202.05262, section 3) and its published evaluation: the mean of the bigram entropy times 2/3 and the
    trigram entropy times 4/3. Words here are runs without white space, each punctuation mark and symbol a word of its
    own, each letter a word in scripts without spaces; case counts. ROME splits by NLTK's `word_tokenize`, which needs
    data to be downloaded; the two differ mostly in contractions, abbreviations and hyphenated words.
    """
    words = _words("".join(f" {c} " if unicodedata.category(c)[0] in "PS" else c for c in text))
    if len(words) < 3:
        return 0.0
    return (2 / 3 * _entropy(words, 2) + 4 / 3 * _entropy(words, 3)) / 2


def long_answer(generated: str, reference: str) -> dict[str, float]:
    """ROUGE-L (F1) and sentence BLEU of a whole text against its reference, each from 0 to 1.

    `rouge_l`: from rouge-score, without stemming, on lower-case words without punctuation; for English the words of
    its own tokenizer, which would drop every letter outside ASCII. `bleu`: from sacrebleu with its defaults
    (tokenization 13a, exponential smoothing, effective order). In both, each letter is a word in scripts without
    spaces. 0 when either text is empty. Raises MegError when a library is missing; both are in the extra `long`.
    """
    rouge = _rouge_scorer().score(reference, generated)["rougeL"].fmeasure
    bleu = _bleu_scorer().sentence_score(_spaced(generated), [_spaced(reference)]).score / 100
    return {"rouge_l": float(rouge), "bleu": min(1.0, float(bleu))}  # sacrebleu's 100 may be 100.00000000000004


@cache
def _rouge_scorer() -> Any:
    needs("rouge_score", "long", "ROUGE-L of long answers")
    from rouge_score.rouge_scorer import RougeScorer  # takes a second, and most commands need none

    return RougeScorer(["rougeL"], tokenizer=_RougeTokenizer())


@cache
def _bleu_scorer() -> Any:
    needs("sacrebleu", "long", "BLEU of long answers")
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(effective_order=True)


class _RougeTokenizer:
    """The words that rouge-score compares."""

    def tokenize(self, text: str) -> list[str]:
        return _words("".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in _fold(text)))


# ---------------------------------------------------------------------------------------------------
# Words


def _fold(text: str) -> str:
    # Case folding may leave a form that is not composed, hence twice.
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def _is_punctuation(char: str) -> bool:
    """Punctuation of any script, and modifier symbols, of which the backtick is one."""
    category = unicodedata.category(char)
    return category[0] == "P" or category == "Sk"


def _words(text: str) -> list[str]:
    """Runs without white space; in scripts without spaces, each letter with its marks."""
    words: list[str] = []
    for run in text.split():
        goes_on = False  # whether a letter would belong to the word before it
        for i, char in enumerate(run):
            spaced = not UNSPACED.match(char)
            if i and (unicodedata.category(char)[0] == "M" or (goes_on and spaced)):
                words[-1] += char
            else:
                words.append(char)
                goes_on = spaced
    return words


def _spaced(text: str) -> str:
    return " ".join(_words(text))


def _same_answer(generated: str, answer: str) -> bool:
    wanted = normalise_answer(answer_text(answer))
    if wanted:
        return normalise_answer(answer_text(generated)) == wanted
    return _bare(generated) == _bare(answer)


def _contains(generated: str, answer: str) -> bool:
    wanted, said = _words(normalise_answer(answer_text(answer))), _words(normalise_answer(answer_text(generated)))
    if not wanted:
        wanted, said = _bare(answer).split(), _bare(generated).split()
    return bool(wanted) and any(said[i : i + len(wanted)] == wanted for i in range(len(said) - len(wanted) + 1))


def _bare(text: str) -> str:
    """The answer, ignoring case; a text that is only a full stop stays one."""
    return (answer_text(text) or text.split("\n", 1)[0].strip()).casefold()


def _entropy(words: Sequence[str], n: int) -> float:
    """Entropy of the n-grams of the words, in bits."""
    counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)).values()
    total = sum(counts)
    return sum(count / total * math.log2(total / count) for count in counts)
