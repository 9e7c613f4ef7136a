import json
import shutil

import numpy as np
import pytest

from ance_cli.errors import BadInput
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.inference import batches_by_length
from ance_cli.models.tokens import Tokenizer, join_rows
from tests.world import Said


@pytest.fixture
def tokenizer(checkpoint):
    return lambda **settings: Tokenizer(Checkpoint(checkpoint).with_settings(**settings))


LONG = " ".join(f"word{number}" for number in range(25))


def test_a_token_without_a_row_of_the_embedding_is_refused(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "ckpt")
    config = next(folder.rglob("0_Transformer/config.json"), folder / "config.json")
    facts = json.loads(config.read_text())
    rows = facts["vocab_size"]
    config.write_text(json.dumps({**facts, "vocab_size": rows - 1}))
    with pytest.raises(BadInput, match=f"has {rows} tokens.* embedding has {rows - 1}"):
        Tokenizer(Checkpoint(folder))


def test_queries_and_passages_are_cut_to_their_lengths(tokenizer):
    tokens = tokenizer()
    assert tokens([LONG], "query").lengths.tolist() == [12]
    assert tokens([LONG], "passage").lengths.tolist() == [24]


def test_the_lengths_of_texts_before_they_are_cut(tokenizer):
    """Twin: their rows at a length that cuts none."""
    texts = [LONG, "river", f"{LONG} {LONG}", ""]
    tokens, whole = tokenizer(), tokenizer(passage_length=100)
    assert tokens.lengths_of(texts, "passage").tolist() == whole(texts, "passage").lengths.tolist()
    prompted = tokenizer(query_prefix="bread of ")
    assert prompted.lengths_of(["river"], "query").tolist() == [5]
    assert tokens([LONG], "query").lengths.tolist() == [12], "it still cuts afterwards"


@pytest.mark.parametrize(
    ("settings", "side", "texts", "line"),
    [
        ({}, "query", [LONG, "river"],
         "1 of 2 queries have more than 12 tokens and are cut (--query-length)"),
        ({}, "passage", [LONG, "river", LONG],
         "2 of 3 passages have more than 24 tokens and are cut (--passage-length)"),
        ({}, "passage", ["river"], None),
        *[({"segmentation": kind, "passage_length": 12, "max_segments": 3}, "passage",
           [LONG, f"{LONG} {LONG} {LONG}"],
           "1 of 2 passages have more than 3 x 12 tokens and are cut (--max-segments, "
           "--passage-length)")
          for kind in ("special", "slice")],
    ],
)  # fmt: skip
def test_texts_that_are_cut_are_counted(tokenizer, settings, side, texts, line):
    tokens, said = tokenizer(**settings), Said()
    tokens(texts, side)
    tokens.say_cut(side, said)
    assert said.lines == ([line] if line else [])


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


def sliced_by_hand(words, vocabulary, length, segments):
    """One sequence [CLS] words [SEP], cut to all segments ([SEP] is kept), then cut into pieces."""
    inside = [vocabulary[word] for word in words][: length * segments - 2]
    left = [vocabulary["[CLS]"], *inside, vocabulary["[SEP]"]]
    pieces = []
    while left:
        pieces.append(left[:length])
        left = left[length:]
    return pieces


@pytest.mark.parametrize("num_words", [0, 1, 5, 6, 7, 13, 14, 15, 21, 22, 23, 50])
def test_slices_are_pieces_of_one_sequence(tokenizer, checkpoint, num_words):
    """Six words fill one piece of eight tokens, 14 two, 22 three, which is the limit."""
    vocabulary = json.loads((checkpoint / "tokenizer.json").read_text())["model"]["vocab"]
    words = [f"word{number}" for number in range(num_words)]
    tokens = tokenizer(segmentation="slice", passage_length=8, max_segments=3)
    rows = tokens([" ".join(words), "river"], "passage")
    expected = sliced_by_hand(words, vocabulary, 8, 3)
    assert rows.row_counts.tolist() == [len(expected), 1]
    found = [rows.row(row).tolist() for row in range(rows.num_rows)]
    assert found == [*expected, *sliced_by_hand(["river"], vocabulary, 8, 3)]
    assert rows.lengths.min() >= 1
    assert tokens.settings.segments == 3


def test_one_slice_is_the_first_part(tokenizer):
    sliced = tokenizer(segmentation="slice", max_segments=1)([LONG], "passage")
    np.testing.assert_array_equal(sliced.ids, tokenizer()([LONG], "passage").ids)


def test_slicing_is_no_reason_to_warn(tokenizer, caplog):
    from transformers.utils import logging

    tokens = tokenizer(segmentation="slice", passage_length=100, max_segments=4)
    logging.set_verbosity_warning()
    logging.enable_propagation()
    try:
        assert tokens([LONG * 8], "passage").row_counts.tolist() == [2]  # 200 words, 128 positions
        tokens._tokenizers["passage"].model_max_length = 128
        tokens([LONG * 8], "passage")
        assert not caplog.records
        tokens._tokenizers["passage"](LONG * 8)
        assert "longer than" in caplog.text  # where nobody cuts, it does warn
    finally:
        logging.disable_propagation()
        logging.set_verbosity_error()


@pytest.mark.parametrize("segmentation", ["special", "slice"])
def test_queries_are_never_segmented(tokenizer, segmentation):
    rows = tokenizer(segmentation=segmentation)([LONG], "query")
    assert rows.row_counts.tolist() == [1]


def test_each_side_is_tokenised_by_its_own_tower(tmp_path, two_towers):
    copy = shutil.copytree(two_towers, tmp_path / "copy")
    settings = copy / "query_0_Transformer" / "tokenizer.json"
    changed = json.loads(settings.read_text())
    vocabulary = changed["model"]["vocab"]
    vocabulary["river"], vocabulary["violin"] = vocabulary["violin"], vocabulary["river"]
    settings.write_text(json.dumps(changed))
    special = copy / "query_0_Transformer" / "tokenizer_config.json"
    special.write_text(special.read_text().replace('"pad_token": "[PAD]"', '"pad_token": "[MASK]"'))
    tokens = Tokenizer(Checkpoint(copy))
    queries, passages = tokens(["river"], "query"), tokens(["violin"], "passage")
    np.testing.assert_array_equal(queries.ids, passages.ids)
    assert tokens(["river"], "passage").ids.tolist() != passages.ids.tolist()
    assert (tokens.pad_id_of("query"), tokens.pad_id_of("passage")) == (4, 0)


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
