"""Who reads the texts of candidates while negatives are drawn: answers, and a cross-encoder.

Both need texts by position in the corpus, in no order that could be foreseen. They are held in
memory as one block of bytes, the size of the corpus's titles and bodies (about 3 GB for the 8.8
million passages of MS MARCO); nothing is read where neither is asked for.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ance_cli.call import Call
from ance_cli.config import DeviceConfig, DrawConfig
from ance_cli.formats.dataset import Dataset, Passage, read_answers, read_corpus
from ance_cli.formats.journal import Journal
from ance_cli.mining.pool import HasAnswer, Teacher
from ance_cli.progress import Reporter


class PassageTexts:
    """Titles and bodies by position, in as many bytes as they have."""

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
        """The title, which may be empty."""
        return self._part(2 * place)

    def body(self, place: int) -> str:
        """The text without its title."""
        return self._part(2 * place + 1)

    def joined(self, place: int) -> str:
        """Title and text, as a cross-encoder reads them."""
        return Passage("", self.title(place), self.body(place)).joined(" ")


class CandidateFilters(NamedTuple):
    """The two, each None where it is not asked for, and the number format of the teacher."""

    has_answer: HasAnswer | None = None
    teacher: Teacher | None = None
    dtype: str | None = None


def teacher_inputs(config: DrawConfig) -> dict[str, str]:
    """What a teacher adds to the inputs of the negatives: a hash of its files."""
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
    """The judges that the config names, with the texts that they read; `journal` keeps the
    teacher's scores."""
    if not config.negatives or not (config.answers or config.teacher):
        return CandidateFilters()
    has_answer = teacher = dtype = None
    answers = read_answers(dataset.need("queries"), call.skipped) if config.answers else {}
    texts = PassageTexts(read_corpus(dataset.corpus, call.skipped))
    if config.answers:
        has_answer = _answer_test(answers, queries, texts, call.reporter)
    if config.teacher is not None:
        from ance_cli.models.cross_encoder import CrossEncoder

        encoder = CrossEncoder(
            Path(config.teacher), compute.gpus, compute.dtype, config.pair_length
        )
        dtype = encoder.dtype

        def teacher(pairs: list[tuple[str, int]]) -> npt.NDArray[np.float32]:
            read = [(queries[query], texts.joined(doc)) for query, doc in pairs]
            return encoder.scores(read, journal=journal)

    return CandidateFilters(has_answer, teacher, dtype)


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
