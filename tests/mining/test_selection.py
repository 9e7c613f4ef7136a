"""From candidates to negatives: which are allowed, how many are drawn, and the counts."""

import random
from collections import Counter
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest

from ance_cli.config import DrawConfig
from ance_cli.formats.candidates import Candidates
from ance_cli.formats.dataset import Passage, positives_of
from ance_cli.mining.audit import Audit
from ance_cli.mining.false_negatives import DuplicateIndex
from ance_cli.mining.mix import parse_mix
from ance_cli.mining.pool import Pool, RankedLists
from ance_cli.mining.rules import RULES
from ance_cli.mining.sampling import SAMPLERS
from ance_cli.mining.selection import Draw, select_negatives

MIXES = ["ann", "ann:0.5,random:0.5", "random", "bm25", "lookahead:1,bm25:1,ann:2,random:1"]

RULE_NAMES = {*RULES, "teacher_max", "teacher_pairs"}


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
        shares = parse_mix(mix, ("ann", "bm25", "lookahead", "random"))
        audit = Audit(count)
        settings = {"sampler": sampler, "negatives": count, "seed": seed, "min_rel": min_rel}
        given = {name: value for name, value in more.items() if name in RULE_NAMES}
        teacher = "teacher" if "teacher" in more else None
        draw = Draw(DrawConfig(depth=16, teacher=teacher, **settings, **given), shares, step)
        candidates = more.get("candidates", self.candidates)
        lists = {"ann": RankedLists.of(candidates), **self.others()}
        pool = Pool(
            candidates.query_ids,
            positives_of(more.get("qrels", self.qrels), min_rel),
            DuplicateIndex(self.passages),
            {source: lists[source] for source in shares if source != "random"},
            candidates.positive_scores,
            more.get("rescore", score_of),
            more.get("has_answer"),
            more.get("teacher"),
        )
        return list(select_negatives(pool, draw, audit)), audit.summary()

    def others(self):
        """Two more sources: a shifted ranking of each query, and neighbours of each document."""
        size = len(self.passages)
        rows = {query_id: row for row, query_id in enumerate(self.candidates.query_ids)}
        depth = min(12, size)
        bm25 = [[(5 * row + 3 * rank) % size for rank in range(depth)] for row in range(len(rows))]
        near = [[(doc + rank) % size for rank in range(depth)] for doc in range(size)]
        return {
            "bm25": RankedLists(np.array(bm25, np.int32), None, rows),
            "lookahead": RankedLists(
                np.array(near, np.int32), None, {f"d{doc}": doc for doc in range(size)}, True
            ),
        }


def score_of(query_id, docs):
    """Replaces the model: scores between -5 and 5."""
    return np.array([((hash_of(query_id) + 7 * doc) % 1000) / 100 - 5 for doc in docs.tolist()])


def hash_of(query_id):
    return sum(map(ord, query_id)) * 131


def judge(pairs):
    """Replaces a cross-encoder: about every third document is a likely positive."""
    return np.array(
        [4.0 if (hash_of(query) + doc) % 3 == 0 else -2.0 for query, doc in pairs], np.float32
    )


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
            names = list(dict.fromkeys(part.split(":")[0] for part in mix.split(",")))
            assert list(dict.fromkeys(pair.sources)) == [n for n in names if n in pair.sources]
            lists = {"ann": RankedLists.of(world.candidates), **world.others()}
            for doc_id, score, rank, source in zip(
                pair.negative_ids,
                pair.negative_scores,
                pair.negative_ranks,
                pair.sources,
                strict=True,
            ):
                doc = int(doc_id[1:])
                expected = score_of(pair.query_id, np.array([doc]))[0]
                if source == "random":
                    assert rank is None
                else:
                    name = pair.positive_id if source == "lookahead" else pair.query_id
                    docs, scores = lists[source].listed(name)
                    assert docs[rank - 1] == doc
                    expected = expected if scores is None else scores[rank - 1]
                assert score == pytest.approx(expected, abs=1e-6)
            for source in names:
                ranks = [
                    rank
                    for rank, found in zip(pair.negative_ranks, pair.sources, strict=True)
                    if found == source and rank
                ]
                assert ranks == sorted(ranks)


@pytest.mark.parametrize("min_rel", [1, 2])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("ann", "rand"), [(4, 0), (2, 2), (0, 4), (12, 0), (12, 12), (3, 9)])
def test_removals_and_shortfalls_equal_a_recount(worlds, ann, rand, sampler, min_rel):
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
        assert summary["removed_from_candidates"] == ({"ann": removed} if ann else {})
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


def test_positives_of_one_query_draw_independently(worlds):
    drawn = [
        (pair.query_id, tuple(pair.negative_ids))
        for pair in worlds[0].select(count=3)[0]
        if len(listed(worlds[0], pair.query_id)) > 10
    ]
    assert len(set(drawn)) > len({query_id for query_id, _ in drawn})


def test_top_takes_the_best_ranked_allowed_candidates():
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
    assert summary["removed_from_candidates"] == {"ann": {"positives": 2, "copies_of_positives": 1}}


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
def test_a_draw_depends_neither_on_the_order_nor_on_other_queries(worlds, mix):
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
def test_another_seed_or_step_draws_other_negatives(worlds, mix, change):
    world = worlds[0]
    first, other = by_pair(world.select(mix)[0]), by_pair(world.select(mix, **change)[0])
    assert first.keys() == other.keys()
    changed = sum(first[pair].negative_ids != other[pair].negative_ids for pair in first)
    assert changed > len(first) / 3


def test_a_short_list_is_not_filled_from_the_corpus(worlds):
    short = 0
    for world in worlds:
        for pair in world.select("ann", count=16)[0]:
            assert {f"d{doc}" for doc in listed(world, pair.query_id)}.issuperset(pair.negative_ids)
            short += len(pair.negative_ids) < 16
    assert short > 100


# ---------------------------------------------------------------- filters, answers, teacher


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_margins_hold_against_the_lowest_positive_in_every_source(worlds, sampler):
    drawn = 0
    for world in worlds:
        pairs, _ = world.select(MIXES[-1], sampler, 10, relative_margin=0.1, min_score=-4.5)
        for pair in pairs:
            known = world.candidates.positive_scores[pair.query_id]
            relevant = [d for d, grade in world.qrels[pair.query_id].items() if grade >= 1]
            lowest = min(known[doc_id] for doc_id in relevant)
            for score in pair.negative_scores:
                assert -4.5 - 1e-6 <= score <= lowest - abs(lowest) * 0.1 + 1e-6
            drawn += len(pair.negative_ids)
    assert drawn > 500


def test_a_rank_window_counts_ranks_of_the_raw_list(worlds):
    for world in worlds:
        pairs, summary = world.select("ann", "top", 16, range_min=2, range_max=6)
        taken = Counter()
        for pair in pairs:
            assert all(2 < rank <= 6 for rank in pair.negative_ranks)
            hits = listed(world, pair.query_id)
            taken[pair.query_id] = len(pair.negative_ids)
            assert taken[pair.query_id] <= len(hits[2:6])
        removed = summary["removed_from_candidates"]["ann"]
        listed_docs = sum(len(listed(world, query_id)) for query_id in taken)
        assert sum(removed.values()) + sum(taken.values()) == listed_docs


def test_sources_without_scores_give_negatives_without_scores(worlds):
    for world in worlds:
        for pair in world.select("bm25:1,random:1", rescore=None)[0]:
            assert set(pair.negative_scores) <= {None}


def test_a_document_is_drawn_once_and_sources_get_their_shares(worlds):
    counts, pairs_seen = Counter(), 0
    for world in worlds:
        for seed in range(4):
            pairs, summary = world.select("bm25:0.5,ann:0.3,random:0.2", count=3, seed=seed)
            counts.update(summary["by_source"])
            counts.update(summary["missing_by_source"])
            pairs_seen += len(pairs)
            assert all(len(set(p.negative_ids)) == len(p.negative_ids) for p in pairs)
    for source, share in {"bm25": 0.5, "ann": 0.3, "random": 0.2}.items():
        rest = 3 * share % 1
        spread = (rest * (1 - rest) / pairs_seen) ** 0.5
        assert counts[source] / pairs_seen == pytest.approx(3 * share, abs=4 * spread)


def test_candidates_with_an_answer_are_replaced_by_the_next_ones(worlds):
    def has_answer(query_id, doc):
        return (hash_of(query_id) + doc) % 4 == 0

    for world in worlds:
        pairs, summary = world.select("ann:1,random:1", "uniform", 6, has_answer=has_answer)
        for pair in pairs:
            assert not any(has_answer(pair.query_id, int(d[1:])) for d in pair.negative_ids)
            left = {
                doc for doc in listed(world, pair.query_id) if not has_answer(pair.query_id, doc)
            }
            if len(left) > 10:
                assert pair.sources.count("ann") == 3
        assert summary["removed_from_candidates"]["ann"]["answers"] > 0


@pytest.mark.parametrize("mix", MIXES)
def test_candidates_that_the_teacher_considers_positive_are_replaced(worlds, mix):
    limit = 0.5
    for world in worlds:
        plain, _ = world.select(mix, count=4)
        pairs, summary = world.select(mix, count=4, teacher=judge, teacher_max=limit)
        refused = 0
        for before, pair in zip(plain, pairs, strict=True):
            places = [(pair.query_id, int(doc_id[1:])) for doc_id in pair.negative_ids]
            assert pair.teacher_scores == judge(places).tolist() == [-2.0] * len(places)
            [own] = judge([(pair.query_id, int(pair.positive_id[1:]))])
            assert pair.teacher_positive_score == own
            fine = {d for d in before.negative_ids if judge([(pair.query_id, int(d[1:]))])[0] < 0}
            assert fine.issubset(pair.negative_ids)  # only what is refused changes
            refused += len(before.negative_ids) - len(fine)
        removed = summary["removed_from_candidates"]
        assert sum(rules.get("teacher", 0) for rules in removed.values()) >= refused > 0
        judged = summary["teacher"]["judged_negatives"]
        assert judged == summary["negatives"] + sum(
            rules.get("teacher", 0) for rules in removed.values()
        )


def test_a_teacher_that_refuses_everything_leaves_no_negatives(worlds):
    pairs, summary = worlds[0].select("ann:1,random:1", teacher=judge, teacher_max=0.0)
    assert not any(pair.negative_ids for pair in pairs)
    assert summary["negatives_missing"] == 4 * len(pairs)
    assert summary["pairs_without_negatives"] == len(pairs)


def test_a_teacher_without_a_limit_changes_nothing_but_scores(worlds):
    for world in worlds:
        plain, _ = world.select(MIXES[-1])
        pairs, _ = world.select(MIXES[-1], teacher=judge)
        assert [p.negative_ids for p in pairs] == [p.negative_ids for p in plain]
        assert all(len(p.teacher_scores) == len(p.negative_ids) for p in pairs)


def test_the_judged_pairs_are_always_the_same(worlds):
    world = worlds[0]
    pairs, summary = world.select(teacher=judge, teacher_pairs=7)
    judged = [pair for pair in pairs if pair.teacher_positive_score is not None]
    assert len(judged) == 7
    assert summary["teacher"]["judged_negatives"] == sum(len(p.negative_ids) for p in judged)
    assert all(not p.teacher_scores for p in pairs if p.teacher_positive_score is None)
    assert world.select(teacher=judge, teacher_pairs=7)[0] == pairs
    everyone, _ = world.select(teacher=judge, teacher_pairs=10_000)
    assert all(pair.teacher_positive_score is not None for pair in everyone)


def test_zero_negatives_per_pair(worlds):
    pairs, summary = worlds[0].select(MIXES[-1], count=0)
    assert pairs and not any(pair.negative_ids for pair in pairs)
    assert summary["pairs_short_of_negatives"] == summary["negatives_missing"] == 0
