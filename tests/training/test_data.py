from collections import Counter

import numpy as np
import pytest

from ance_cli.errors import BadInput
from ance_cli.formats.negatives_file import PairNegatives
from ance_cli.models.tokens import TokenRows
from ance_cli.training.data import PairStream, StreamPosition, rows_of_docs

PAIRS = [(f"q{n // 2}", f"d{n}") for n in range(20)]
ORDER = {f"d{n}": n for n in range(60)}


def stream(negatives=None, seed=1, step=0, per_positive=1, pairs=PAIRS):
    if negatives is None:
        negatives = [
            PairNegatives(q, d, [f"d{20 + (7 * n + k) % 40}" for k in range(5)])
            for n, (q, d) in enumerate(pairs)
        ]
    return PairStream(pairs, negatives, ORDER, seed, step, per_positive)


def visited(source, batches, size):
    """(query, positive) ids in the order of the stream, and their negatives."""
    at, pairs, negatives = StreamPosition(), [], []
    for _ in range(batches):
        batch, at = source.next_batch(at, size)
        for query, members in zip(batch.queries, batch.members, strict=True):
            names = [source.doc_ids[batch.docs[m]] for m in members]
            pairs.append((source.query_ids[query], names[0]))
            negatives.append(names[1:])
    return pairs, negatives


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
    picks = [tuple(source.picks(pair, epoch) for pair in range(20)) for epoch in (0, 1)]
    assert picks[0] != picks[1]


def test_picks_depend_on_seed_step_pair_and_epoch_alone():
    one, reversed_pairs = stream(), stream(pairs=PAIRS[::-1])
    for number, pair in enumerate(PAIRS):
        again = PairStream([pair], [one.negatives[number]], ORDER, 1, 0, 1)
        assert again.picks(0, 3) == one.picks(number, 3)
    assert reversed_pairs.pairs[::-1] == one.pairs
    assert [one.picks(n, 0) for n in range(20)] != [stream(step=1).picks(n, 0) for n in range(20)]


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
    def known(query_id):
        return {name for name, _ in [(d, q) for q, d in PAIRS if q == query_id]} | {"d59"}

    negatives = [PairNegatives(q, d, ["d59", "d58"]) for q, d in PAIRS]
    source = PairStream(PAIRS, negatives, ORDER, 1, 0, 2, known)
    batch, _ = source.next_batch(StreamPosition(), 8)
    for row, query in enumerate(batch.queries):
        for column, doc in enumerate(batch.docs):
            name = source.doc_ids[doc]
            assert batch.banned[row, column] == (name in known(source.query_ids[query]))
    assert batch.banned.any(1).all() and not batch.banned.all()


def test_without_negatives_a_pair_is_its_positive_alone():
    source = stream([], per_positive=0)
    batch, _ = source.next_batch(StreamPosition(), 6)
    assert batch.members.shape == (6, 1) and source.num_skipped == 0
    assert len(source.doc_ids) == 20


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
        names = [source.doc_ids[batch.docs[m]] for m in members]
        expected = [9.0, *(score[name] for name in names[1:])]
        if (source.query_ids[query], names[0]) == PAIRS[3]:
            expected = [np.nan] * 3
        np.testing.assert_array_equal(teacher, np.asarray(expected, np.float32))


def test_an_order_may_be_given():
    source = PairStream(PAIRS, [], ORDER, 1, 0, 0, order=lambda epoch: np.arange(20)[::-1] - epoch)
    batch, at = source.next_batch(StreamPosition(0, 18), 2)
    assert [source.query_ids[q] for q in batch.queries] == ["q0", "q0"]
    assert at == StreamPosition(0, 20)
