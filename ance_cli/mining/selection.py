"""From candidates to negatives: remove what may not be one, order the rest, take from the front."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, repeat
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ance_cli.formats.negatives_file import PairNegatives
from ance_cli.mining.audit import Audit
from ance_cli.mining.filtering import Filters, logit_of, passing
from ance_cli.mining.pool import Pool
from ance_cli.mining.sampling import (
    RANDOM,
    Floats,
    Positions,
    Sampler,
    draw_from_corpus,
    keyed_generator,
    order,
    split_by_shares,
)

_FEW = 8
"""`np.isin` costs as much as so many comparisons, however little it is asked."""
_CHUNK = 512
"""Pairs that are drawn together, so that a teacher sees thousands of texts in one call."""


@dataclass(frozen=True)
class Recipe:
    """How negatives are drawn from a pool.

    `shares` says how much of `count` comes from each source, in the order in which sources choose
    (a document that one has taken is not there for the next). `depth` bounds the documents that
    `random` looks at for a pair. With a teacher, `teacher_max` is the probability above which a
    candidate is taken for an unlabelled positive and replaced, and `teacher_pairs` the number of
    pairs that it scores, 0 = all.
    """

    shares: Mapping[str, float]
    count: int
    seed: int
    checkpoint_step: int
    depth: int = 200
    sampler: Sampler = field(default_factory=Sampler)
    filters: Filters = field(default_factory=Filters)
    teacher_max: float | None = None
    teacher_pairs: int = 0

    def generator(self, query_id: str, positive_id: str, what: str) -> np.random.Generator:
        """The generator of one draw: `what` is a source, or `mix`."""
        return keyed_generator(self.seed, self.checkpoint_step, query_id, positive_id, what)


class Candidate(NamedTuple):
    """A document that a source offers to a pair; rank and score None where it has none."""

    doc: int
    source: str
    rank: int | None
    score: float | None


def select_negatives(pool: Pool, recipe: Recipe, audit: Audit) -> Iterator[PairNegatives]:
    """The negatives of every (query, positive) pair of the pool.

    D- is the candidates without D+ (ANN_f(q, C) \\ D+, ICLR Sec. 4, arXiv Eq. 10), without copies
    of D+ and without what the filters refuse. The sampler puts each source's candidates into an
    order, and a pair takes from the front of it, passing over what holds an answer and what the
    teacher takes for a positive (RocketQA's denoising, Qu et al., NAACL 2021). A source that has
    too few is never topped up: the shortfall is counted.
    """
    drafts = _drafts(pool, recipe, audit)
    at_once = 1 if pool.teacher is None else _CHUNK
    while chunk := list(islice(drafts, at_once)):
        drawn = [(draft, found) for draft in chunk for found in draft.fill()]
        if pool.teacher is not None:
            _judge(chunk, drawn, pool, recipe, audit)
        for draft in chunk:
            pair = draft.finished()
            audit.add(pair, draft.missing)
            yield pair


def _drafts(pool: Pool, recipe: Recipe, audit: Audit) -> Iterator[_Draft]:
    judged = _judged_pairs(pool, recipe)
    number = 0
    for query_id in pool.query_ids:
        positives = pool.positives.get(query_id)
        if not positives:
            continue
        query = _Query(query_id, positives, pool, recipe, audit)
        for positive_id in positives:
            yield _Draft(query, positive_id, judged is None or number in judged)
            number += 1


def _judged_pairs(pool: Pool, recipe: Recipe) -> set[int] | None:
    """Numbers of the pairs that the teacher scores; None = all."""
    if pool.teacher is None:
        return set()
    total = sum(len(pool.positives.get(query_id, ())) for query_id in pool.query_ids)
    if not 0 < recipe.teacher_pairs < total:
        return None
    rng = keyed_generator(recipe.seed, recipe.checkpoint_step, "teacher")
    return set(rng.choice(total, recipe.teacher_pairs, replace=False).tolist())


class _Query:
    """What the pairs of one query share: what is banned, and the lists that are filtered once."""

    def __init__(
        self, query_id: str, positives: Sequence[str], pool: Pool, recipe: Recipe, audit: Audit
    ) -> None:
        self.id = query_id
        self.pool, self.recipe, self.audit = pool, recipe, audit
        self.own, self.same = pool.duplicates.banned(positives)
        self.positive_scores = pool.positive_scores.get(query_id, {})
        known = [self.positive_scores[name] for name in positives if name in self.positive_scores]
        self.lowest_positive = min(known, default=None)
        self._lists: dict[str, tuple[Positions, Positions, Floats]] = {}
        for source, lists in pool.sources.items():
            if not lists.by_positive:
                self._lists[source] = self._left(source, query_id)

    def candidates(self, source: str, positive_id: str) -> tuple[Positions, Positions, Floats]:
        """Positions, ranks and scores of what a ranked source may offer, by rank."""
        if source in self._lists:
            return self._lists[source]
        return self._left(source, positive_id)

    def _left(self, source: str, name: str) -> tuple[Positions, Positions, Floats]:
        docs, found = self.pool.sources[source].listed(name)
        scores = self.pool.scored(self.id, docs, found)
        ranks = np.arange(1, len(docs) + 1)
        own, same = _among(docs, self.own), _among(docs, self.same)
        self.audit.remove(source, "positives", int(own.sum()))
        self.audit.remove(source, "copies_of_positives", int(same.sum()))
        gone = own | same
        if self.pool.scope is not None:
            foreign = self.pool.scope.foreign(self.id, docs)
            self.audit.remove(source, "other_datasets", int(foreign.sum()))
            gone |= foreign
        left = np.flatnonzero(~gone)
        passes, refused = passing(
            self.recipe.filters, ranks[left], scores[left], self.lowest_positive
        )
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
        recipe = query.recipe
        mixing = partial(recipe.generator, query.id, positive_id, "mix")
        self.missing = split_by_shares(recipe.count, recipe.shares, mixing) if recipe.count else {}
        self._seen: set[int] = set()
        self._offers = {source: self._offered(source) for source in self.missing}

    def fill(self) -> list[Candidate]:
        """Take what is missing from the front of each source's order; returns what is new."""
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
        """Give a candidate back; the next `fill` takes another one from its source."""
        self.kept.remove(found)
        self.missing[found.source] += 1

    def finished(self) -> PairNegatives:
        """The line of the pair: source by source, by rank where there is one."""
        place = {source: nth for nth, source in enumerate(self._offers)}
        self._offers.clear()  # generators that hold this draft: else both wait for the collector
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
        """The candidates of a source in the order in which this pair wants them."""
        rng = self.query.recipe.generator(self.query.id, self.positive_id, source)
        if source == RANDOM:
            yield from self._from_corpus(rng)
            return
        docs, ranks, scores = self.query.candidates(source, self.positive_id)
        places = order(scores, self.positive_score, self.query.recipe.sampler, rng)
        step = self.missing[source]
        for part in (places[start : start + step] for start in range(0, len(places), step)):
            yield from _as_candidates(source, docs[part], ranks[part].tolist(), scores[part])

    def _from_corpus(self, rng: np.random.Generator) -> Iterator[Candidate]:
        query, wanted = self.query, self.missing[RANDOM]
        banned = query.own | query.same | self._seen
        size = max(query.recipe.depth, wanted)
        drawn = draw_from_corpus(query.pool.corpus_of(query.id), size, banned, rng)
        for start in range(0, len(drawn), wanted):
            docs = drawn[start : start + wanted]
            scores = query.pool.scored(query.id, docs)
            passes, refused = passing(query.recipe.filters, None, scores, query.lowest_positive)
            for rule, count in refused.items():
                query.audit.remove(RANDOM, rule, count)
            yield from _as_candidates(RANDOM, docs[passes], repeat(None), scores[passes])


def _among(docs: Positions, places: Set[int]) -> npt.NDArray[np.bool_]:
    """(docs,) which of them are in `places`."""
    if len(places) > _FEW:
        return np.isin(docs, list(places))
    found = np.zeros(len(docs), bool)
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
    recipe: Recipe,
    audit: Audit,
) -> None:
    """The teacher scores what the judged pairs drew; what it takes for a positive is replaced."""
    assert pool.teacher is not None
    judged = [draft for draft in chunk if draft.is_judged]
    if not judged:
        return
    position = pool.duplicates.position
    logits = pool.teacher([(draft.query.id, position[draft.positive_id]) for draft in judged])
    for draft, logit in zip(judged, logits.tolist(), strict=True):
        draft.positive_logit = round(logit, 6)
    limit = math.inf if recipe.teacher_max is None else logit_of(recipe.teacher_max)
    fresh = [(draft, found) for draft, found in drawn if draft.is_judged]
    while fresh:
        logits = pool.teacher([(draft.query.id, found.doc) for draft, found in fresh])
        refilled = {}
        for (draft, found), logit in zip(fresh, logits.tolist(), strict=True):
            assert draft.positive_logit is not None
            audit.judge(logit, draft.positive_logit)
            if logit > limit:
                audit.remove(found.source, "teacher", 1)
                draft.refuse(found)
                refilled[id(draft)] = draft
            else:
                draft.logits[found.doc] = round(logit, 6)
        fresh = [(draft, found) for draft in refilled.values() for found in draft.fill()]


def _all_rounded(scores: Floats) -> list[float | None]:
    """To six places; None where there is no score."""
    rounded = np.round(scores.astype(np.float64), 6).tolist()
    return [None if math.isnan(score) else score for score in rounded]
