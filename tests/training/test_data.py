"""The order of the pairs, the negatives that each brings, and what a batch holds."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ance_cli.config import TrainConfig
from ance_cli.errors import BadInput
from ance_cli.formats.dataset import Dataset, Passage
from ance_cli.formats.negatives_file import PairNegatives
from ance_cli.formats.tokens import TokenRows
from ance_cli.mining.false_negatives import DuplicateIndex
from ance_cli.training.data import (
    NegativesSnapshot,
    PairStream,
    StreamPosition,
    TrainingSet,
    rows_of_docs,
)
from ance_cli.training.dataset_mixing import mixed_order

PAIRS = [(f"q{n // 2}", f"d{n}") for n in range(20)]
DOC_IDS = [f"d{n}" for n in range(60)]


def training_set(pairs=PAIRS, seed=1, per_positive=1, copies=(), doc_ids=DOC_IDS, shares=None):
    """Pairs over a small corpus; the documents in `copies` have the text of d0."""
    in_batch = "none" if per_positive else "all"
    config = TrainConfig(seed=seed, negatives_per_positive=per_positive, in_batch=in_batch)
    positives = {}
    for query_id, doc_id in pairs:
        positives.setdefault(query_id, []).append(doc_id)
    corpus = [
        Passage(doc_id, "", "text of d0" if doc_id in copies else f"text of {doc_id}")
        for doc_id in doc_ids
    ]
    return TrainingSet(
        config, Dataset(Path("corpus.jsonl"), None, None), "", {name: name for name in positives},
        positives, DuplicateIndex(corpus), shares,
    )  # fmt: skip


def stream(negatives=None, step=0, pairs=PAIRS, **settings):
    if negatives is None:
        negatives = [
            PairNegatives(q, d, [f"d{20 + (7 * n + k) % 40}" for k in range(5)])
            for n, (q, d) in enumerate(pairs)
        ]
    return PairStream(training_set(pairs, **settings), negatives, step)


def query_id(source, query):
    return source.training_set.query_ids[query]


def visited(source, batches, size):
    """(query, positive) ids in the order of the stream, and their negatives."""
    at, pairs, negatives = StreamPosition(), [], []
    for _ in range(batches):
        batch, at = source.next_batch(at, size)
        for query, members in zip(batch.queries, batch.members, strict=True):
            names = [DOC_IDS[batch.docs[m]] for m in members]
            pairs.append((query_id(source, query), names[0]))
            negatives.append(names[1:])
    return pairs, negatives


def all_picks(source, epoch=0):
    return [source.picks(pair, epoch).tolist() for pair in range(len(source.pairs))]


def test_an_epoch_visits_every_pair_once_and_every_positive():
    pairs, _ = visited(stream(), 5, 4)
    assert Counter(pairs) == Counter(PAIRS)


def test_the_order_is_a_function_of_the_seed_not_of_negatives_or_batches():
    first, _ = visited(stream(seed=1), 10, 4)
    other_negatives = [PairNegatives(q, d, ["d59", "d58"]) for q, d in PAIRS]
    assert visited(stream(other_negatives, seed=1, step=900), 10, 4)[0] == first
    assert visited(stream(seed=1), 20, 2)[0] == first
    assert visited(stream(seed=2), 10, 4)[0] != first


def test_epochs_differ_in_order_and_in_picks():
    source = stream()
    assert source.order(0).tolist() != source.order(1).tolist()
    assert all_picks(source, 0) != all_picks(source, 1)


def test_picks_depend_on_seed_step_pair_and_epoch_alone():
    one, backwards = stream(), stream(pairs=PAIRS[::-1])
    assert sorted(map(repr, backwards.pairs)) == sorted(map(repr, one.pairs))
    for number, (query, doc) in enumerate(PAIRS):
        alone = [PairNegatives(query, doc, [f"d{30 + k}" for k in range(5)])]
        again = stream(alone, pairs=[(query, doc)])
        assert again.picks(0, 3).tolist() == one.picks(number, 3).tolist()
        moved = backwards.pairs.index((query, doc))
        assert backwards.picks(moved, 3).tolist() == one.picks(number, 3).tolist()
    assert all_picks(one) != all_picks(stream(step=1))


def test_several_negatives_are_distinct():
    _, negatives = visited(stream(per_positive=3), 5, 4)
    assert all(len(set(names)) == 3 for names in negatives)


def test_pairs_without_enough_negatives_are_skipped_and_counted():
    negatives = [PairNegatives(q, d, ["d50"] if n % 2 else []) for n, (q, d) in enumerate(PAIRS)]
    source = stream(negatives)
    pairs, _ = visited(source, 5, 2)
    assert source.num_skipped == 10
    assert set(pairs) == set(PAIRS[1::2])
    full, _ = visited(stream(), 5, 4)
    assert pairs == [pair for pair in full if pair in set(PAIRS[1::2])]  # the same order


def test_no_pair_at_all_is_an_error():
    with pytest.raises(BadInput, match="none of the 20 pairs of the labels has 1 negatives"):
        stream([])


def test_resuming_the_stream_anywhere():
    source = stream()
    at, positions, batches = StreamPosition(), [], []
    for _ in range(12):
        positions.append(at)
        batch, at = source.next_batch(at, 3)
        batches.append(batch)
    for place in (1, 6, 7, 11):  # 6 and 7 are around the end of an epoch
        batch, _ = stream().next_batch(positions[place], 3)
        np.testing.assert_array_equal(batch.members, batches[place].members)
        np.testing.assert_array_equal(batch.queries, batches[place].queries)


def test_a_document_is_encoded_once_in_a_batch():
    negatives = [PairNegatives(q, d, ["d59"]) for q, d in PAIRS]
    batch, _ = stream(negatives).next_batch(StreamPosition(), 8)
    assert len(batch.docs) == 9


def test_rows_of_documents_with_segments():
    counts = np.array([2, 1, 3], np.int32)
    offsets = np.arange(0, 7, dtype=np.int64)
    passages = TokenRows(np.arange(6, dtype=np.int32), offsets, counts)
    rows, rows_of = rows_of_docs(np.array([0, 2]), passages)
    assert rows.tolist() == [0, 1, 3, 4, 5]
    assert rows_of.tolist() == [[0, 1, -1], [2, 3, 4]]
    rows, rows_of = rows_of_docs(np.array([1]), passages)
    assert (rows.tolist(), rows_of.tolist()) == ([2], [[0]])


def test_known_positives_and_copies_are_banned_wherever_they_come_from():
    """d59 is a copy of d0, which is a positive of q0 alone."""
    negatives = [PairNegatives(q, d, ["d59", "d58"]) for q, d in PAIRS]
    source = stream(negatives, per_positive=2, copies=("d0", "d59"))
    batch, _ = source.next_batch(StreamPosition(), 20)
    for row, query in enumerate(batch.queries):
        name = query_id(source, query)
        known = {doc_id for q, doc_id in PAIRS if q == name} | ({"d59"} if name == "q0" else set())
        for column, doc in enumerate(batch.docs):
            assert batch.banned[row, column] == (DOC_IDS[doc] in known)
    assert batch.banned.any(1).all() and not batch.banned.all()


def test_documents_of_another_dataset_are_banned_and_the_shares_order_the_pairs():
    pairs = [(f"{name}/q{n}", f"{name}/d{n}") for name in ("a", "b") for n in range(6)]
    doc_ids = [f"{name}/d{n}" for name in ("a", "b") for n in range(9)]
    shares = {"a": 0.25, "b": 0.75}
    negatives = [PairNegatives(q, d, [f"{d[0]}/d8"]) for q, d in pairs]
    source = stream(negatives, pairs=pairs, doc_ids=doc_ids, shares=shares)
    expected = mixed_order(np.repeat([0, 1], 6), (0.25, 0.75), 1, 2)
    assert source.order(2).tolist() == expected.tolist()
    batch, _ = source.next_batch(StreamPosition(), 12)
    for row, query in enumerate(batch.queries):
        name = query_id(source, query)
        for column, doc in enumerate(batch.docs):
            own = (name, doc_ids[doc]) in pairs
            assert batch.banned[row, column] == (own or doc_ids[doc][0] != name[0])


def test_a_query_of_no_dataset_is_refused_before_negatives_are_read():
    with pytest.raises(BadInput, match="the id 'q0' belongs to none of the datasets a, b"):
        stream(iter(()), shares={"a": 0.5, "b": 0.5})


def test_without_negatives_a_pair_is_its_positive_alone():
    source = stream([], per_positive=0)
    batch, _ = source.next_batch(StreamPosition(), 6)
    assert batch.members.shape == (6, 1) and source.num_skipped == 0
    assert source.docs.tolist() == list(range(20))


def test_a_teachers_scores_follow_the_picks():
    negatives = [
        PairNegatives(q, d, ["d50", "d51", "d52"], teacher_scores=[5.0, None, 7.0],
                      teacher_positive_score=None if n == 3 else 9.0)
        for n, (q, d) in enumerate(PAIRS)
    ]  # fmt: skip
    source = stream(negatives, per_positive=2)
    assert source.has_teacher and not stream().has_teacher
    batch, _ = source.next_batch(StreamPosition(), 20)
    score = {"d50": 5.0, "d51": np.nan, "d52": 7.0}
    for query, members, teacher in zip(batch.queries, batch.members, batch.teacher, strict=True):
        names = [DOC_IDS[batch.docs[m]] for m in members]
        expected = [9.0, *(score[name] for name in names[1:])]
        if (query_id(source, query), names[0]) == PAIRS[3]:
            expected = [np.nan] * 3
        np.testing.assert_array_equal(teacher, np.asarray(expected, np.float32))


def test_the_documents_of_a_stream_are_those_of_its_pairs_and_negatives():
    negatives = [PairNegatives(q, d, ["d59", "d31"] if n else []) for n, (q, d) in enumerate(PAIRS)]
    assert stream(negatives).docs.tolist() == [*range(20), 31, 59]


def test_a_snapshot_finds_the_rows_of_a_position_in_the_corpus():
    source = stream([PairNegatives(q, d, ["d59", "d31"]) for q, d in PAIRS])
    counts = np.ones(22, np.int32)
    counts[20] = 2  # d31 has two segments
    offsets = np.arange(24, dtype=np.int64)
    snapshot = NegativesSnapshot(source, TokenRows(np.arange(23, dtype=np.int32), offsets, counts))
    rows, rows_of = snapshot.rows_of(np.array([4, 31, 59]))
    assert rows.tolist() == [4, 20, 21, 22]
    assert rows_of.tolist() == [[0, -1], [1, 2], [3, -1]]
