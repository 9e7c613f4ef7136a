"""Does a passage contain an answer? DPR's test for OpenQA, with pyserini's copy of its tokenizer.

Training uses passages without an answer as negatives; evaluation counts queries with an answer in
their top k (Karpukhin et al., EMNLP 2020, Sec. 3.2 and 5; `has_answer` in DPR's
`qa_validation.py`). The test is a proxy: a passage may contain the words without answering the
question.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from typing import Any


@cache
def _tokenizer() -> Any:
    from pyserini.eval.evaluate_dpr_retrieval import SimpleTokenizer  # neither torch nor a JVM

    return SimpleTokenizer()


def normalised(text: str) -> str:
    """The text in NFD, the form that `PatternMatcher.matches_normalised` reads."""
    return unicodedata.normalize("NFD", text)


def answer_tokens(text: str) -> str:
    """The tokens of a text, in the form that `AnswerMatcher.matches_tokens` reads.

    Tokens are runs of letters, digits and marks, and other single characters, after NFD and in
    lower case, with one space before and after each. No token contains a space, so a subsequence of
    tokens is a substring, and a substring search is far faster. A text without a token is a single
    space.
    """
    words = _tokenizer().tokenize(normalised(text)).words(uncased=True)
    return " ".join(["", *words, ""]) if words else " "


class AnswerMatcher:
    """The answers of one query, tokenised once.

    An answer without a token matches nothing (DPR's own code lets it match everything).
    """

    def __init__(self, answers: Iterable[str]) -> None:
        found = dict.fromkeys(map(answer_tokens, answers))
        self._answers = [tokens for tokens in found if tokens.strip()]

    def matches(self, text: str) -> bool:
        """Whether the text contains the tokens of an answer, adjacent and in order."""
        return self.matches_tokens(answer_tokens(text))

    def matches_tokens(self, tokens: str) -> bool:
        """`matches` for a text that `answer_tokens` has tokenised already."""
        return any(answer in tokens for answer in self._answers)


class PatternMatcher:
    """The answers of one query as regular expressions, compiled once (DPR's `--match regex`).

    They match anywhere in a text, without regard to case; ^ and $ match at each line. As in DPR, an
    answer that is not a valid regular expression matches nothing; `broken` lists such answers.
    """

    def __init__(self, answers: Iterable[str]) -> None:
        self._patterns = []
        self.broken: list[str] = []
        for answer in answers:
            try:
                self._patterns.append(re.compile(normalised(answer), re.IGNORECASE | re.MULTILINE))
            except re.error:
                self.broken.append(answer)

    def matches_normalised(self, text: str) -> bool:
        """Whether an answer matches a text that `normalised` has returned."""
        return any(pattern.search(text) for pattern in self._patterns)
