"""From candidates to negatives: what may be one, how many, and all of it counted."""

import random
from collections import Counter
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest

from ance_cli.formats.candidates import Candidates
from ance_cli.formats.dataset import Passage, positives_of
from ance_cli.negatives.audit import Audit
from ance_cli.negatives.filtering import Copies
from ance_cli.negatives.sampling import SAMPLERS, parse_mix
from ance_cli.negatives.selection import select_negatives

MIXES = ["ann", "ann:0.5,random:0.5", "ann:0.25,random:0.75", "random"]


@dataclass
class World:
    """A random dataset with many copies and several positives a query, and candidates for it."""

    passages: list
    qrels: dict
    candidates: Candidates

    @property
    def texts(self):
        """What counts as the text of each document, with white space folded."""
        return [" ".join((passage.text or passage.title).split()) for passage in self.passages]

    def select(self, mix="ann", sampler="uniform", count=4, min_rel=1, seed=1, step=0, **more):
        audit = Audit(wanted=count)
        pairs = select_negatives(
            more.get("candidates", self.candidates),
            positives_of(more.get("qrels", self.qrels), min_rel),
            Copies(self.passages),
            "ann",
            parse_mix(mix, ("ann", "random")),
            sampler,
            count,
            seed,
            step,
            audit,
        )
        return list(pairs), audit.summary()


def make_world(seed, num_docs=40, num_queries=15, depth=16):
    rng = random.Random(seed)
    bodies = [f"body {n}" for n in range(num_docs * 2 // 3)] + ["", "body  0 ", "\tbody 1"]
    passages = [
        Passage(f"d{n}", rng.choice(["", "Title", "body 2"]), rng.choice(bodies))
        for n in range(num_docs)
    ]
    query_ids = [f"q{n}" for n in range(num_queries)]
    qrels, docs = {}, np.full((num_queries, depth), -1, np.int32)
    scores = np.full((num_queries, depth), -np.inf, np.float32)
    for row, query_id in enumerate(query_ids):
        judged = rng.sample(range(num_docs), rng.randint(0, 8))
        qrels[query_id] = {f"d{doc}": rng.choice([0, 1, 1, 2, 3]) for doc in judged}
        found = rng.choice([0, 2, depth // 2, depth, depth])
        pool = rng.sample(judged, min(len(judged), found // 2))
        pool += rng.sample([doc for doc in range(num_docs) if doc not in pool], found - len(pool))
        rng.shuffle(pool)
        docs[row, :found] = pool
        scores[row, :found] = sorted((rng.uniform(-5, 5) for _ in pool), reverse=True)
    known = {
        query_id: {doc_id: round(rng.uniform(-5, 5), 6) for doc_id in judged}
        for query_id, judged in qrels.items()
    }
    return World(passages, qrels, Candidates(query_ids, docs, scores, known))


@pytest.fixture(scope="module")
def worlds():
    return [make_world(seed) for seed in range(8)]


def listed(world, query_id):
    row = world.candidates.query_ids.index(query_id)
    return [doc for doc in world.candidates.docs[row].tolist() if doc >= 0]


EVERY_WAY = list(product(MIXES, SAMPLERS, [1, 4, 7], [1, 2]))


@pytest.mark.parametrize(("mix", "sampler", "count", "min_rel"), EVERY_WAY)
def test_no_negative_is_a_positive_or_a_copy_of_one(worlds, mix, sampler, count, min_rel):
    drawn = 0
    for world in worlds:
        texts = world.texts
        pairs, _ = world.select(mix, sampler, count, min_rel)
        for pair in pairs:
            positives = [d for d, grade in world.qrels[pair.query_id].items() if grade >= min_rel]
            forbidden = {texts[int(doc_id[1:])] for doc_id in positives}
            assert pair.positive_id in positives
            assert not set(positives).intersection(pair.negative_ids)
            assert not forbidden.intersection(texts[int(d[1:])] for d in pair.negative_ids)
            assert len(set(pair.negative_ids)) == len(pair.negative_ids) <= count
            drawn += len(pair.negative_ids)
    assert drawn > 100 * count


@pytest.mark.parametrize(("mix", "sampler", "count", "min_rel"), EVERY_WAY)
def test_each_negative_tells_where_it_is_from(worlds, mix, sampler, count, min_rel):
    for world in worlds:
        for pair in world.select(mix, sampler, count, min_rel)[0]:
            row = world.candidates.query_ids.index(pair.query_id)
            assert set(pair.sources) <= set(parse_mix(mix, ("ann", "random")))
            for doc_id, score, rank, source in zip(
                pair.negative_ids,
                pair.negative_scores,
                pair.negative_ranks,
                pair.sources,
                strict=True,
            ):
                if source == "random":
                    assert (score, rank) == (None, None)
                else:
                    assert world.candidates.docs[row, rank - 1] == int(doc_id[1:])
                    assert score == pytest.approx(world.candidates.scores[row, rank - 1], abs=1e-6)
            ranks = [rank for rank in pair.negative_ranks if rank is not None]
            assert ranks == sorted(ranks)


@pytest.mark.parametrize("min_rel", [1, 2])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("ann", "rand"), [(4, 0), (2, 2), (0, 4), (12, 0), (12, 12), (3, 9)])
def test_removals_and_shortfalls_are_those_of_a_recount(worlds, ann, rand, sampler, min_rel):
    count = ann + rand
    for world in worlds:
        pairs, summary = world.select(f"ann:{ann},random:{rand}", sampler, count, min_rel)
        texts = world.texts
        removed, by_source, found = Counter(), Counter(), []
        for query_id in world.candidates.query_ids:
            own = {int(d[1:]) for d, grade in world.qrels[query_id].items() if grade >= min_rel}
            if not own:
                continue
            own_texts = {texts[doc] for doc in own}
            same = {n for n, text in enumerate(texts) if text in own_texts and n not in own}
            hits = listed(world, query_id)
            removed["positives"] += sum(doc in own for doc in hits)
            removed["copies_of_positives"] += sum(doc in same for doc in hits)
            left = sum(doc not in own and doc not in same for doc in hits)
            for _ in own:
                from_ann = min(ann, left)
                from_corpus = min(rand, len(texts) - len(own) - len(same) - from_ann)
                by_source["ann"] += from_ann
                by_source["random"] += from_corpus
                found.append(from_ann + from_corpus)
        assert len(pairs) == summary["pairs"] == len(found)
        assert [len(pair.negative_ids) for pair in pairs] == found
        assert Counter(summary["removed_from_candidates"]) == removed
        assert Counter(summary["by_source"]) == +by_source
        assert summary["negatives"] == sum(found)
        assert summary["pairs_short_of_negatives"] == sum(n < count for n in found)
        assert summary["pairs_without_negatives"] == found.count(0)
        assert summary["negatives_missing"] == sum(count - n for n in found)


def test_every_positive_of_a_query_has_its_pair(worlds):
    for world in worlds:
        pairs, _ = world.select()
        expected = [
            (query_id, doc_id)
            for query_id in world.candidates.query_ids
            for doc_id, grade in world.qrels[query_id].items()
            if grade >= 1
        ]
        assert [(pair.query_id, pair.positive_id) for pair in pairs] == expected
        for pair in pairs:
            known = world.candidates.positive_scores[pair.query_id]
            assert pair.positive_score == known[pair.positive_id]


def test_positives_of_one_query_draw_each_on_their_own(worlds):
    drawn = [
        (pair.query_id, tuple(pair.negative_ids))
        for pair in worlds[0].select(count=3)[0]
        if len(listed(worlds[0], pair.query_id)) > 10
    ]
    assert len(set(drawn)) > len({query_id for query_id, _ in drawn})


def test_top_takes_the_best_ranked_that_may_be_taken():
    passages = [Passage(f"d{n}", "", f"text {n % 6}") for n in range(8)]
    candidates = Candidates(
        ["q"],
        np.array([[6, 2, 5, 0, 7, 4, -1]], np.int32),
        np.array([[6.0, 5.5, 5, 4, 3, 2.25, -np.inf]], np.float32),
        {},
    )
    world = World(passages, {"q": {"d0": 1, "d5": 2, "d1": 0}}, candidates)
    pairs, summary = world.select(sampler="top", count=2)
    assert [pair.positive_id for pair in pairs] == ["d0", "d5"]
    for pair in pairs:  # d6 copies d0; d5 and d0 are positives; d7 copies d1, which is none
        assert pair.negative_ids == ["d2", "d7"]
        assert pair.negative_scores == [5.5, 3.0]
        assert pair.negative_ranks == [2, 5]
        assert pair.sources == ["ann", "ann"]
        assert pair.positive_score is None
    assert summary["removed_from_candidates"] == {"positives": 2, "copies_of_positives": 1}


def test_a_query_without_a_positive_has_no_pair():
    passages = [Passage(f"d{n}", "", f"text {n}") for n in range(4)]
    found = Candidates(
        ["q1", "q2"], np.array([[0, 1], [2, 3]], np.int32), np.ones((2, 2), np.float32), {}
    )
    pairs, summary = World(passages, {"q1": {"d0": 0}, "q9": {"d1": 1}}, found).select()
    assert pairs == []
    assert summary["pairs"] == 0
    assert summary["removed_from_candidates"] == {}


# ---------------------------------------------------------------- a function of the key


def by_pair(pairs):
    return {(pair.query_id, pair.positive_id): pair for pair in pairs}


def reordered(world, order):
    candidates = world.candidates
    return Candidates(
        [candidates.query_ids[row] for row in order],
        candidates.docs[order],
        candidates.scores[order],
        candidates.positive_scores,
    )


@pytest.mark.parametrize("mix", MIXES)
def test_neither_order_nor_company_changes_what_is_drawn(worlds, mix):
    for world in worlds:
        whole = by_pair(world.select(mix)[0])
        order = np.random.default_rng(3).permutation(len(world.candidates.query_ids))
        assert by_pair(world.select(mix, candidates=reordered(world, order))[0]) == whole
        shard = by_pair(world.select(mix, candidates=reordered(world, order[:5]))[0])
        assert shard == {pair: whole[pair] for pair in shard}
        backwards = {q: dict(reversed(judged.items())) for q, judged in world.qrels.items()}
        assert by_pair(world.select(mix, qrels=backwards)[0]) == whole


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("change", [{"seed": 2}, {"step": 1000}])
def test_another_seed_or_step_draws_others(worlds, mix, change):
    world = worlds[0]
    first, other = by_pair(world.select(mix)[0]), by_pair(world.select(mix, **change)[0])
    assert first.keys() == other.keys()
    changed = sum(first[pair].negative_ids != other[pair].negative_ids for pair in first)
    assert changed > len(first) / 3


def test_the_corpus_is_not_drawn_from_where_a_list_is_short(worlds):
    short = 0
    for world in worlds:
        for pair in world.select("ann", count=16)[0]:
            assert {f"d{doc}" for doc in listed(world, pair.query_id)}.issuperset(pair.negative_ids)
            short += len(pair.negative_ids) < 16
    assert short > 100
