"""Filters that read the texts of candidates: the answer test, and a cross-encoder as teacher.

Both need texts by position in the corpus, in an unpredictable order. The texts are held in memory
as one block of bytes, the size of the corpus's titles and bodies (about 3 GB for the 8.8 million
passages of MS MARCO). Without --answers and --teacher nothing is read.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from ance_cli.call import Call
from ance_cli.config import DeviceConfig, DrawConfig
from ance_cli.formats.dataset import Dataset, Passage, read_answers, read_corpus
from ance_cli.formats.journal import Journal
from ance_cli.mining.pool import HasAnswer, Teacher
from ance_cli.progress import Reporter

if TYPE_CHECKING:
    from ance_cli.models.cross_encoder import CrossEncoder


class PassageTexts:
    """Titles and bodies by position, packed as UTF-8."""

    def __init__(self, passages: Iterable[Passage]) -> None:
        self._bytes = bytearray()
        self._ends = array("q", [0])
        for passage in passages:
            for text in (passage.title, passage.text):
                self._bytes += text.encode()
                self._ends.append(len(self._bytes))

    def _part(self, number: int) -> str:
        return self._bytes[self._ends[number] : self._ends[number + 1]].decode()

    def title(self, place: int) -> str:
        """The title; may be empty."""
        return self._part(2 * place)

    def body(self, place: int) -> str:
        """The text without its title."""
        return self._part(2 * place + 1)

    def joined(self, place: int) -> str:
        """Title and text, in the form that a cross-encoder reads."""
        return Passage("", self.title(place), self.body(place)).joined(" ")


class CandidateFilters(NamedTuple):
    """The two filters, each None if it is off, and the teacher's model."""

    has_answer: HasAnswer | None = None
    teacher: Teacher | None = None
    encoder: CrossEncoder | None = None

    @property
    def dtype(self) -> str | None:
        """The teacher's number format."""
        return self.encoder.dtype if self.encoder else None

    def say_cut(self, reporter: Reporter) -> None:
        """Tell how many of the pairs that the teacher scored were cut, if any were."""
        if self.encoder:
            self.encoder.say_cut(reporter)


def teacher_inputs(config: DrawConfig) -> dict[str, str]:
    """The manifest input that a teacher adds: a hash of its files."""
    if config.teacher is None:
        return {}
    from ance_cli.models.cross_encoder import cross_encoder_fingerprint

    return {"teacher": cross_encoder_fingerprint(Path(config.teacher), config.pair_length)}


def open_candidate_filters(
    config: DrawConfig,
    compute: DeviceConfig,
    dataset: Dataset,
    queries: Mapping[str, str],
    journal: Journal,
    call: Call,
) -> CandidateFilters:
    """The filters that the config asks for; `journal` keeps the teacher's scores, so that an
    interrupted call does not compute them again."""
    if not config.negatives or not (config.answers or config.teacher):
        return CandidateFilters()
    has_answer = teacher = encoder = None
    answers = read_answers(dataset.need("queries"), call.skipped) if config.answers else {}
    texts = PassageTexts(read_corpus(dataset.corpus, call.skipped))
    if config.answers:
        has_answer = _answer_test(answers, queries, texts, call.reporter)
    if config.teacher is not None:
        from ance_cli.models.cross_encoder import CrossEncoder

        encoder = CrossEncoder(
            Path(config.teacher), compute.gpus, compute.dtype, config.pair_length
        )
        scores = partial(encoder.scores, journal=journal)

        def teacher(pairs: list[tuple[str, int]]) -> npt.NDArray[np.float32]:
            read = [(queries[query], texts.joined(doc)) for query, doc in pairs]
            return scores(read)

    return CandidateFilters(has_answer, teacher, encoder)


def _answer_test(
    answers: Mapping[str, list[str]],
    queries: Mapping[str, str],
    texts: PassageTexts,
    reporter: Reporter,
) -> HasAnswer:
    from ance_cli.evaluation.answer_match import AnswerMatcher

    without = sum(query_id not in answers for query_id in queries)
    if without:
        reporter.warn(f"{without} of {len(queries)} queries have no answer: --answers skips them")
    matchers = {query_id: AnswerMatcher(answers.get(query_id, ())) for query_id in queries}
    return lambda query_id, doc: matchers[query_id].matches(texts.body(doc))
