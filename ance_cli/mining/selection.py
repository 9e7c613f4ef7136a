"""From candidates to negatives: remove positives and refused candidates, order the rest, and take
from the front."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, repeat
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ance_cli.config import DrawConfig
from ance_cli.formats.negatives_file import PairNegatives
from ance_cli.mining.audit import Audit, logit_of
from ance_cli.mining.mix import RANDOM, split_by_shares
from ance_cli.mining.pool import Pool
from ance_cli.mining.rules import passing
from ance_cli.mining.sampling import Floats, Positions, draw_from_corpus, keyed_generator, order

_FEW = 8
"""A search in a sorted array costs at least as much as this many comparisons."""
_CHUNK = 512
"""Pairs drawn together, so that a teacher scores thousands of texts in one call."""


@dataclass(frozen=True)
class Draw:
    """How negatives are drawn from a pool."""

    config: DrawConfig
    """`depth` bounds the documents that `random` draws for a pair."""
    shares: Mapping[str, float]
    """source -> share of the negatives. A document that one source has given to a pair is not
    available to the sources after it."""
    checkpoint_step: int = 0

    def generator(self, query_id: str, positive_id: str, what: str) -> np.random.Generator:
        """The generator of one draw; `what` is a source, or `mix`."""
        return keyed_generator(self.config.seed, self.checkpoint_step, query_id, positive_id, what)


class Candidate(NamedTuple):
    """A document that a source offers to a pair; rank and score are None if they are not known."""

    doc: int
    source: str
    rank: int | None
    score: float | None


def select_negatives(pool: Pool, draw: Draw, audit: Audit) -> Iterator[PairNegatives]:
    """The negatives of every (query, positive) pair of the pool.

    D- is the candidates without D+ (ANN_f(q, C) \\ D+, ICLR Sec. 4, arXiv Eq. 10), without copies
    of D+, without the query itself, and without candidates that a rule refuses. The sampler orders
    the candidates of each source, and a pair takes candidates from the front. It skips those that
    contain an answer, and those that the teacher considers a positive (RocketQA's denoising, Qu et
    al., NAACL 2021). If a source has too few candidates, no other source replaces them: the audit
    counts the shortfall.
    """
    drafts = _drafts(pool, draw, audit)
    at_once = 1 if pool.teacher is None else _CHUNK
    while chunk := list(islice(drafts, at_once)):
        drawn = [(draft, found) for draft in chunk for found in draft.fill()]
        if pool.teacher is not None:
            _judge(chunk, drawn, pool, draw, audit)
        for draft in chunk:
            pair = draft.finished()
            audit.add(pair, draft.missing)
            yield pair


def _drafts(pool: Pool, draw: Draw, audit: Audit) -> Iterator[_Draft]:
    judged = _judged_pairs(pool, draw)
    number = 0
    for query_id in pool.query_ids:
        positives = pool.positives.get(query_id)
        if not positives:
            continue
        query = _Query(query_id, positives, pool, draw, audit)
        for positive_id in positives:
            yield _Draft(query, positive_id, judged is None or number in judged)
            number += 1


def _judged_pairs(pool: Pool, draw: Draw) -> set[int] | None:
    """The numbers of the pairs that the teacher scores; None = all pairs."""
    if pool.teacher is None:
        return set()
    total = sum(len(pool.positives.get(query_id, ())) for query_id in pool.query_ids)
    wanted = draw.config.teacher_pairs
    if not 0 < wanted < total:
        return None
    rng = keyed_generator(draw.config.seed, draw.checkpoint_step, "teacher")
    return set(rng.choice(total, wanted, replace=False).tolist())


class _Query:
    """What all pairs of one query share: banned documents, and lists that are filtered once."""

    def __init__(
        self, query_id: str, positives: Sequence[str], pool: Pool, draw: Draw, audit: Audit
    ) -> None:
        self.id = query_id
        self.pool, self.draw, self.audit = pool, draw, audit
        own, same = pool.duplicates.banned(positives)
        by_rule = {"positives": own, "copies_of_positives": same}
        if itself := pool.duplicates.itself(query_id) - own - same:
            by_rule["the_query_itself"] = itself
        self.banned = own | same | itself
        self._banned_by = {
            rule: np.asarray(sorted(places), np.int64) for rule, places in by_rule.items()
        }
        self.positive_scores = pool.positive_scores.get(query_id, {})
        known = [self.positive_scores[name] for name in positives if name in self.positive_scores]
        self.lowest_positive = min(known, default=None)
        self._lists: dict[str, tuple[Positions, Positions, Floats]] = {}
        for source, lists in pool.sources.items():
            if not lists.by_positive:
                self._lists[source] = self._left(source, query_id)

    def candidates(self, source: str, positive_id: str) -> tuple[Positions, Positions, Floats]:
        """Positions, ranks and scores of the candidates that a ranked source may offer, by rank."""
        if source in self._lists:
            return self._lists[source]
        return self._left(source, positive_id)

    def _left(self, source: str, name: str) -> tuple[Positions, Positions, Floats]:
        docs, found = self.pool.sources[source].listed(name)
        scores = self.pool.scored(self.id, docs, found)
        ranks = np.arange(1, len(docs) + 1)
        gone = np.zeros(len(docs), bool)
        for rule, places in self._banned_by.items():
            removed = _among(docs, places)
            self.audit.remove(source, rule, int(removed.sum()))
            gone |= removed
        if self.pool.scope is not None:
            foreign = self.pool.scope.foreign(self.id, docs)
            self.audit.remove(source, "other_datasets", int(foreign.sum()))
            gone |= foreign
        left = np.flatnonzero(~gone)
        passes, refused = passing(self.draw.config, ranks[left], scores[left], self.lowest_positive)
        for rule, count in refused.items():
            self.audit.remove(source, rule, count)
        left = left[passes]
        return docs[left], ranks[left], scores[left]


class _Draft:
    """The negatives of one pair while they are being drawn."""

    def __init__(self, query: _Query, positive_id: str, is_judged: bool) -> None:
        self.query = query
        self.positive_id = positive_id
        self.is_judged = is_judged
        self.positive_score = query.positive_scores.get(positive_id)
        self.kept: list[Candidate] = []
        self.logits: dict[int, float] = {}
        self.positive_logit: float | None = None
        count = query.draw.config.negatives
        mixing = partial(query.draw.generator, query.id, positive_id, "mix")
        self.missing = split_by_shares(count, query.draw.shares, mixing) if count else {}
        self._seen: set[int] = set()
        self._offers = {source: self._offered(source) for source in self.missing}

    def fill(self) -> list[Candidate]:
        """Take the missing negatives from the front of each source's order, and return them."""
        drawn: list[Candidate] = []
        has_answer = self.query.pool.has_answer
        for source, offers in self._offers.items():
            wanted = len(drawn) + self.missing[source]
            while len(drawn) < wanted and (found := next(offers, None)):
                if found.doc in self._seen:
                    continue
                self._seen.add(found.doc)
                if has_answer is not None and has_answer(self.query.id, found.doc):
                    self.query.audit.remove(source, "answers", 1)
                    continue
                drawn.append(found)
            self.missing[source] = wanted - len(drawn)
        self.kept += drawn
        return drawn

    def refuse(self, found: Candidate) -> None:
        """Drop a candidate; the next `fill` takes another one from its source."""
        self.kept.remove(found)
        self.missing[found.source] += 1

    def finished(self) -> PairNegatives:
        """The pair's line: negatives sorted by source, then by rank."""
        place = {source: nth for nth, source in enumerate(self._offers)}
        self._offers.clear()  # the generators refer to this draft: break the cycle
        kept = sorted(self.kept, key=lambda found: (place[found.source], found.rank or 0))
        doc_ids = self.query.pool.duplicates.doc_ids
        return PairNegatives(
            self.query.id,
            self.positive_id,
            [doc_ids[found.doc] for found in kept],
            [found.score for found in kept],
            [found.rank for found in kept],
            self.positive_score,
            [found.source for found in kept],
            [self.logits.get(found.doc) for found in kept] if self.logits else [],
            self.positive_logit,
        )

    def _offered(self, source: str) -> Iterator[Candidate]:
        """The candidates of a source, in the order in which this pair takes them."""
        rng = self.query.draw.generator(self.query.id, self.positive_id, source)
        if source == RANDOM:
            yield from self._from_corpus(rng)
            return
        docs, ranks, scores = self.query.candidates(source, self.positive_id)
        places = order(scores, self.positive_score, self.query.draw.config, rng)
        step = self.missing[source]
        for part in (places[start : start + step] for start in range(0, len(places), step)):
            yield from _as_candidates(source, docs[part], ranks[part].tolist(), scores[part])

    def _from_corpus(self, rng: np.random.Generator) -> Iterator[Candidate]:
        query, wanted = self.query, self.missing[RANDOM]
        size = max(query.draw.config.depth, wanted)
        corpus = query.pool.corpus_of(query.id)
        drawn = draw_from_corpus(corpus, size, query.banned, rng, self._seen)
        for start in range(0, len(drawn), wanted):
            docs = drawn[start : start + wanted]
            scores = query.pool.scored(query.id, docs)
            passes, refused = passing(query.draw.config, None, scores, query.lowest_positive)
            for rule, count in refused.items():
                query.audit.remove(RANDOM, rule, count)
            yield from _as_candidates(RANDOM, docs[passes], repeat(None), scores[passes])


def _among(docs: Positions, places: Positions) -> npt.NDArray[np.bool_]:
    """(docs,) whether each document is in `places`, which are sorted."""
    found = np.zeros(len(docs), bool)
    if len(places) > _FEW:
        nearest = np.minimum(np.searchsorted(places, docs), len(places) - 1)
        return np.equal(places[nearest], docs)
    for place in places:
        found |= docs == place
    return found


def _as_candidates(
    source: str, docs: Positions, ranks: Iterable[int | None], scores: Floats
) -> Iterator[Candidate]:
    return map(Candidate, docs.tolist(), repeat(source), ranks, _all_rounded(scores))


def _judge(
    chunk: Iterable[_Draft],
    drawn: list[tuple[_Draft, Candidate]],
    pool: Pool,
    draw: Draw,
    audit: Audit,
) -> None:
    """Let the teacher score the negatives of the judged pairs, and replace likely positives."""
    assert pool.teacher is not None
    judged = [draft for draft in chunk if draft.is_judged]
    if not judged:
        return
    position = pool.duplicates.position
    logits = pool.teacher([(draft.query.id, position[draft.positive_id]) for draft in judged])
    for draft, logit in zip(judged, logits.tolist(), strict=True):
        draft.positive_logit = round(logit, 6)
    limit = draw.config.teacher_max
    highest = math.inf if limit is None else logit_of(limit)
    fresh = [(draft, found) for draft, found in drawn if draft.is_judged]
    while fresh:
        logits = pool.teacher([(draft.query.id, found.doc) for draft, found in fresh])
        refilled = {}
        for (draft, found), logit in zip(fresh, logits.tolist(), strict=True):
            assert draft.positive_logit is not None
            audit.judge(logit, draft.positive_logit)
            if logit > highest:
                audit.remove(found.source, "teacher", 1)
                draft.refuse(found)
                refilled[id(draft)] = draft
            else:
                draft.logits[found.doc] = round(logit, 6)
        fresh = [(draft, found) for draft in refilled.values() for found in draft.fill()]


def _all_rounded(scores: Floats) -> list[float | None]:
    """Rounded to six places; NaN becomes None."""
    rounded = np.round(scores.astype(np.float64), 6).tolist()
    return [None if math.isnan(score) else score for score in rounded]
