"""The token cache: written block after block, read block by block through checks."""

import numpy as np
import pytest
import xxhash

from ance_cli.errors import BadInput, Mismatch
from ance_cli.formats.embeddings import DOC_OFFSETS, IDS
from ance_cli.formats.plan import Plan
from ance_cli.formats.tokens import (
    KIND,
    OFFSETS,
    TOKENS,
    TokenCache,
    TokenRows,
    TokenWriter,
    doc_hashes,
    join_rows,
)

BLOCK_DOCS = 3
ROW_COUNTS = [1, 2, 1, 4, 1, 1, 3, 1]
"""Rows of eight documents in three blocks of 4, 6 and 4 rows."""


def random_rows(row_counts, vocabulary=1000, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, sum(row_counts))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(0, vocabulary, offsets[-1]).astype(np.int32)
    return TokenRows(ids, offsets, np.asarray(row_counts, np.int32))


def as_lists(rows):
    return [rows.row(row).tolist() for row in range(rows.num_rows)]


def ids_of(row_counts):
    return [f"d{place}" for place in range(len(row_counts))]


def publish(output, rows, vocabulary=1000):
    plan = Plan(KIND, output, {}, {"corpus": "the corpus"})
    writer = TokenWriter(plan.open_partial(), vocabulary, BLOCK_DOCS)
    names = ids_of(rows.row_counts)
    for start in range(0, len(names), BLOCK_DOCS):
        docs = np.arange(start, min(start + BLOCK_DOCS, len(names)))
        writer.write_block(names[start : start + BLOCK_DOCS], rows.of_texts(docs))
    plan.publish_folder(writer.finish(), {})
    return output


@pytest.mark.parametrize(("vocabulary", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_the_files_are_plain_arrays(tmp_path, vocabulary, dtype):
    rows = random_rows(ROW_COUNTS, vocabulary)
    folder = publish(tmp_path / "tokens", rows, vocabulary)
    tokens = np.load(folder / TOKENS)
    assert (tokens.dtype, tokens.ndim) == (np.dtype(dtype), 1)
    assert np.array_equal(tokens, rows.ids)
    assert np.array_equal(np.load(folder / OFFSETS), rows.offsets)
    assert np.load(folder / DOC_OFFSETS).tolist() == [0, 1, 3, 4, 8, 9, 10, 13, 14]
    assert (folder / IDS).read_text().split() == ids_of(ROW_COUNTS)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [TOKENS, OFFSETS, DOC_OFFSETS, IDS, "manifest.json"]
    )


def test_blocks_are_what_was_written(tmp_path):
    rows = random_rows(ROW_COUNTS)
    cache = TokenCache(publish(tmp_path / "tokens", rows))
    assert (cache.num_docs, cache.num_rows, cache.num_blocks) == (8, 14, 3)
    assert cache.num_tokens == len(rows.ids)
    blocks = [cache.block(block) for block in range(3)]
    assert [block.row_counts.tolist() for block in blocks] == [[1, 2, 1], [4, 1, 1], [3, 1]]
    assert as_lists(join_rows(blocks)) == as_lists(rows)
    assert cache.block_tokens.tolist() == [len(block.ids) for block in blocks]
    assert list(cache.doc_ids()) == ids_of(ROW_COUNTS)


@pytest.mark.parametrize("wanted", [[], [0], [7], [1, 3], [2, 3, 5, 6], range(8)])
def test_rows_of_some_documents(tmp_path, wanted):
    rows = random_rows(ROW_COUNTS)
    cache = TokenCache(publish(tmp_path / "tokens", rows))
    found = cache.rows_of(np.asarray(wanted, np.int64))
    expected = []
    for doc in wanted:
        first = sum(ROW_COUNTS[:doc])
        expected += [rows.row(row).tolist() for row in range(first, first + ROW_COUNTS[doc])]
    assert as_lists(found) == expected
    assert found.row_counts.tolist() == [ROW_COUNTS[doc] for doc in wanted]


def test_hashes_of_documents_are_those_of_their_tokens(tmp_path):
    """A twin over lists; other tokens, or the same in other rows, have another hash."""
    rows = random_rows(ROW_COUNTS)
    found = TokenCache(publish(tmp_path / "tokens", rows)).doc_hashes()
    expected, lists = [], as_lists(rows)
    for count in ROW_COUNTS:
        own, lists = lists[:count], lists[count:]
        lengths = np.array([len(row) for row in own], "<i8").tobytes()
        tokens = b"".join(np.array(row, "<u2").tobytes() for row in own)
        expected.append(xxhash.xxh3_64_intdigest(lengths + tokens))
    assert found.dtype == np.uint64 and found.tolist() == expected
    ids = np.arange(6, dtype=np.uint16)
    parts = [TokenRows(ids, np.array([0, cut, 6]), np.array([2], np.int32)) for cut in (2, 3)] + [
        TokenRows(ids, np.array([0, 6]), np.array([1], np.int32))
    ]
    assert len({int(doc_hashes(part)[0]) for part in parts}) == 3


def test_a_block_too_short_is_a_mistake_of_the_caller(tmp_path):
    writer = TokenWriter(tmp_path, 1000, BLOCK_DOCS)
    writer.write_block(["a"], random_rows([1]))
    with pytest.raises(ValueError, match="only the last block may be short"):
        writer.write_block(["b"], random_rows([1]))
    with pytest.raises(ValueError, match="the numbers of texts and ids differ"):
        writer.write_block(["b"], random_rows([1, 1]))


@pytest.mark.parametrize("name", [TOKENS, OFFSETS, DOC_OFFSETS])
def test_a_damaged_byte_is_found_in_its_block(tmp_path, name):
    folder = publish(tmp_path / "tokens", random_rows(ROW_COUNTS))
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1  # in the last block
    (folder / name).write_bytes(data)
    cache = TokenCache(folder)
    cache.block(0)
    with pytest.raises(BadInput) as caught:
        cache.block(2)
    assert caught.value.what == (
        f"{folder}: block 2 (documents 6 to 8) is damaged: "
        "its hash differs from the one in the manifest"
    )
    assert "ance tokenize --force" in caught.value.hint


def test_damaged_ids_are_found(tmp_path):
    folder = publish(tmp_path / "tokens", random_rows(ROW_COUNTS))
    (folder / IDS).write_text((folder / IDS).read_text().replace("d4", "d9"))
    with pytest.raises(BadInput, match="is damaged: its hash differs from the one in the manifest"):
        list(TokenCache(folder).doc_ids())


@pytest.mark.parametrize("name", [TOKENS, OFFSETS, DOC_OFFSETS])
def test_an_array_of_another_length_is_refused(tmp_path, name):
    folder = publish(tmp_path / "tokens", random_rows(ROW_COUNTS))
    np.save(folder / name, np.load(folder / name)[:-1])
    with pytest.raises(BadInput, match=r"has shape \(.*\), expected \(.*\) \(the manifest\)"):
        TokenCache(folder)


def test_without_a_manifest_it_is_refused(tmp_path):
    folder = publish(tmp_path / "tokens", random_rows(ROW_COUNTS))
    (folder / "manifest.json").unlink()
    with pytest.raises(Mismatch, match=r"has no manifest\.json"):
        TokenCache(folder)


@pytest.mark.parametrize("multiple", [1, 4, 8])
def test_padding_is_that_of_a_loop(multiple):
    rows = random_rows([1] * 20)
    chosen = [3, 17, 3, 0]
    token_ids, mask = rows.padded(chosen, 99, multiple)
    longest = max(len(rows.row(row)) for row in chosen)
    assert token_ids.shape == mask.shape and token_ids.shape[1] % multiple == 0
    assert longest <= token_ids.shape[1] < longest + multiple
    for place, row in enumerate(chosen):
        found = rows.row(row).tolist()
        left = token_ids.shape[1] - len(found)
        assert token_ids[place].tolist() == found + [99] * left
        assert mask[place].tolist() == [1] * len(found) + [0] * left
