import numpy as np
import pytest

from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.inference import batches_by_length
from ance_cli.models.tokens import Tokenizer, join_rows


@pytest.fixture
def tokenizer(checkpoint):
    return lambda **pins: Tokenizer(Checkpoint(checkpoint).with_pins(**pins))


LONG = " ".join(f"word{number}" for number in range(25))


def test_queries_and_passages_are_cut_to_their_lengths(tokenizer):
    tokens = tokenizer()
    assert tokens([LONG], "query").lengths.tolist() == [12]
    assert tokens([LONG], "passage").lengths.tolist() == [24]


def test_segments_have_their_own_special_tokens_and_no_empty_one(tokenizer):
    tokens = tokenizer(segmentation="special", passage_length=12, max_segments=4)
    rows = tokens([LONG, "river", LONG + " " + LONG], "passage")
    assert rows.row_counts.tolist() == [3, 1, 4]  # 25 words in segments of 10; 50 cut at four
    assert rows.lengths.tolist() == [12, 12, 7, 3, 12, 12, 12, 12]
    cls, sep = rows.ids[0], rows.ids[11]
    for row in range(rows.num_rows):
        assert (rows.row(row)[0], rows.row(row)[-1]) == (cls, sep)
    words = np.concatenate([rows.row(row)[1:-1] for row in range(3)])
    np.testing.assert_array_equal(
        words, tokenizer(passage_length=50)([LONG], "passage").row(0)[1:-1]
    )


def test_queries_are_never_segmented(tokenizer):
    rows = tokenizer(segmentation="special")([LONG], "query")
    assert rows.row_counts.tolist() == [1]


def test_case_and_prefix(tokenizer):
    plain = tokenizer()(["query: river"], "query")
    prefixed = tokenizer(query_prefix="query: ")(["river"], "query")
    np.testing.assert_array_equal(plain.ids, prefixed.ids)


def test_padding_and_mask(tokenizer):
    rows = tokenizer()(
        ["river", "river violin granite engine orchid comet bread falcon"], "passage"
    )
    token_ids, mask = rows.padded([0, 1], pad_id=0)
    assert token_ids.shape == (2, 16)  # ten tokens, rounded up to a multiple of eight
    assert mask.sum(1).tolist() == [3, 10]
    assert (token_ids[mask == 0] == 0).all()


def test_joining(tokenizer):
    tokens = tokenizer(segmentation="special", passage_length=12)
    texts = ["river", LONG, "bread violin"]
    whole = tokens(texts, "passage")
    joined = join_rows([tokens(texts[:1], "passage"), tokens(texts[1:], "passage")])
    for one, other in ((whole.ids, joined.ids), (whole.offsets, joined.offsets)):
        np.testing.assert_array_equal(one, other)


def test_batches_hold_every_row_once_within_the_budget():
    lengths = np.random.default_rng(0).integers(1, 90, 500)
    batches = list(batches_by_length(lengths, 512))
    assert sorted(np.concatenate(batches).tolist()) == list(range(500))
    for batch in batches:
        width = -(-int(lengths[batch].max()) // 8) * 8
        assert len(batch) == 1 or width * len(batch) <= 512
    padded = sum(-(-int(lengths[b].max()) // 8) * 8 * len(b) for b in batches)
    assert padded < 1.15 * lengths.sum()
