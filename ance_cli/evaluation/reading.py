"""Does a reader's answer match one of the answers? SQuAD's exact match and F1.

As SQuAD v1.1's `evaluate-v1.1.py` computes them (Rajpurkar et al., EMNLP 2016, Sec. 6.1), which
DPR and ANCE also report for OpenQA: the best value over the answers of a question.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalised_answer(text: str) -> str:
    """The text in lower case with single spaces, without ASCII punctuation and English articles."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, gold: Sequence[str]) -> float:
    """1 if the answer equals one of `gold` after normalisation, else 0."""
    return float(normalised_answer(answer) in set(map(normalised_answer, gold)))


def f1(answer: str, gold: Sequence[str]) -> float:
    """The highest F1 between the answer's bag of words and that of one of `gold`."""
    words = normalised_answer(answer).split()
    return max((_overlap(words, normalised_answer(text).split()) for text in gold), default=0.0)


def _overlap(words: list[str], gold: list[str]) -> float:
    same = (Counter(words) & Counter(gold)).total()
    return 2 * same / (len(words) + len(gold)) if same else 0.0
