"""Embeddings: written in resumable blocks, read through checks."""

import errno
import json
import os
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest

from ance_cli.errors import BadInput, Mismatch, ResourceExhausted, UsageProblem
from ance_cli.formats import embeddings
from ance_cli.formats.embeddings import (
    DOC_HASHES,
    DOC_OFFSETS,
    DONE,
    IDS,
    RECALL,
    UNFINISHED_ONLY,
    VECTORS,
    Embeddings,
    EmbeddingsWriter,
    _free_range,
    load_array,
    read_ids,
    save_array,
    write_ids,
)
from ance_cli.formats.plan import Plan
from ance_cli.formats.row_format import ROW_FORMATS

DIM = 4
BLOCK_DOCS = 3
ROW_COUNTS = np.array([1, 2, 1, 4, 1, 1, 3, 1], np.int32)
"""Rows of eight documents in three blocks of 4, 6 and 4 rows."""


def vectors_of(row_counts, dtype=np.float32):
    return np.random.default_rng(1).standard_normal((int(row_counts.sum()), DIM)).astype(dtype)


def offsets_of(row_counts):
    return np.concatenate([[0], np.cumsum(row_counts)])


def writer(folder, row_counts=ROW_COUNTS, dtype="float32"):
    return EmbeddingsWriter.begin(folder, offsets_of(row_counts), DIM, dtype, BLOCK_DOCS)


def write_blocks(open_writer, blocks, vectors, row_counts=ROW_COUNTS):
    offsets = offsets_of(row_counts)
    for block in blocks:
        docs = open_writer.docs_of(block)
        open_writer.write_block(block, vectors[offsets[docs.start] : offsets[docs.stop]])


def ids_of(row_counts):
    return [f"d{place}" for place in range(len(row_counts))]


def plan_at(output):
    return Plan("embeddings", output, {}, {"tower": "the tower", "corpus": "the corpus"})


def publish(output, row_counts=ROW_COUNTS, dtype="float32"):
    """Embeddings of random vectors under `output`; returns the folder."""
    plan = plan_at(output)
    open_writer = writer(plan.open_partial(), row_counts, dtype)
    write_blocks(open_writer, range(open_writer.num_blocks), vectors_of(row_counts), row_counts)
    plan.publish_folder(open_writer.finish(ids_of(row_counts)), {}, UNFINISHED_ONLY)
    return output


def refused(folder):
    """What `Embeddings` says when it does not open the folder."""
    with pytest.raises((BadInput, Mismatch)) as caught:
        Embeddings(folder)
    return caught.value


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_matrix_is_a_plain_npy_file(tmp_path, dtype):
    folder = publish(tmp_path / "emb", dtype=dtype)
    found = np.load(folder / VECTORS, allow_pickle=False)
    assert found.shape == (14, DIM)
    assert found.dtype == np.dtype(dtype)
    assert found.flags.c_contiguous
    assert np.array_equal(found, vectors_of(ROW_COUNTS, dtype))
    assert np.array_equal(np.load(folder / VECTORS, mmap_mode="r"), found)


def test_offsets_and_ids_give_the_rows_of_each_document(tmp_path):
    folder = publish(tmp_path / "emb")
    offsets = np.load(folder / DOC_OFFSETS)
    assert offsets.dtype == np.int64
    assert offsets.tolist() == [0, 1, 3, 4, 8, 9, 10, 13, 14]
    assert (folder / IDS).read_text() == "d0\nd1\nd2\nd3\nd4\nd5\nd6\nd7\n"


def test_a_finished_folder_has_no_working_files(tmp_path):
    assert sorted(path.name for path in publish(tmp_path / "emb").iterdir()) == sorted(
        [VECTORS, IDS, DOC_OFFSETS, "manifest.json"]
    )


def test_the_manifest_describes_the_content(tmp_path):
    content = Embeddings(publish(tmp_path / "emb")).manifest["content"]
    assert len(content.pop("block_xxh3")) == 3
    assert {len(content.pop(f"{name}_xxh3")) for name in ("ids", "doc_offsets")} == {16}
    assert list(content.pop("files")) == [DOC_OFFSETS, VECTORS, IDS]
    assert content == {
        "rows": 14, "docs": 8, "dim": DIM, "dtype": "float32", "block_docs": BLOCK_DOCS,
    }  # fmt: skip


def test_the_blocks_of_documents(tmp_path):
    open_writer = writer(tmp_path)
    assert open_writer.num_blocks == 3
    assert [open_writer.docs_of(block) for block in range(3)] == [
        range(3),
        range(3, 6),
        range(6, 8),
    ]


def test_an_interrupted_writer_continues_and_writes_the_same_bytes(tmp_path):
    vectors = vectors_of(ROW_COUNTS)
    (tmp_path / "part").mkdir()
    first = writer(tmp_path / "part")
    assert first.missing() == [0, 1, 2]
    write_blocks(first, [0, 1], vectors)
    del first
    second = writer(tmp_path / "part")
    assert second.missing() == [2]
    assert [second.is_done(block) for block in range(3)] == [True, True, False]
    write_blocks(second, [2], vectors)
    content = second.finish(ids_of(ROW_COUNTS))
    whole = publish(tmp_path / "whole")
    for name in (VECTORS, IDS, DOC_OFFSETS):
        assert (tmp_path / "part" / name).read_bytes() == (whole / name).read_bytes()
    assert content["block_xxh3"] == Embeddings(whole).manifest["content"]["block_xxh3"]


KILLED_IN_BLOCK_1 = """
import os, sys
from pathlib import Path
import numpy as np
from ance_cli.formats.embeddings import EmbeddingsWriter
from ance_cli.formats import embeddings
vectors, row_counts = np.load(sys.argv[2]), np.load(sys.argv[3])
offsets = np.concatenate([[0], np.cumsum(row_counts)])
writer = EmbeddingsWriter.begin(Path(sys.argv[1]), offsets, vectors.shape[1], "float32", 3)
writer.write_block(0, vectors[:4])
write = embeddings._write_at
def killed(path, offset, data):
    if path.name == sys.argv[4]:
        os.kill(os.getpid(), 9)
    write(path, offset, data)
embeddings._write_at = killed
writer.write_block(1, vectors[4:10])
"""


@pytest.mark.parametrize("before", [VECTORS, DONE])
def test_a_writer_killed_inside_a_block_repeats_that_block(tmp_path, before):
    vectors = vectors_of(ROW_COUNTS)
    np.save(tmp_path / "vectors.npy", vectors)
    np.save(tmp_path / "row_counts.npy", ROW_COUNTS)
    (tmp_path / "part").mkdir()
    arguments = [tmp_path / name for name in ("part", "vectors.npy", "row_counts.npy")]
    command = [sys.executable, "-c", KILLED_IN_BLOCK_1, *arguments, before]
    found = subprocess.run(command, capture_output=True, timeout=60)
    assert found.returncode == -signal.SIGKILL, found.stderr.decode()
    again = writer(tmp_path / "part")
    assert again.missing() == [1, 2]
    write_blocks(again, [1, 2], vectors)
    again.finish(ids_of(ROW_COUNTS))
    assert np.array_equal(np.load(tmp_path / "part" / VECTORS), vectors)


def test_a_block_that_did_not_become_durable_is_not_done(tmp_path, monkeypatch):
    vectors = vectors_of(ROW_COUNTS)
    open_writer = writer(tmp_path)
    write_blocks(open_writer, [0], vectors)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(embeddings.os, "pwrite", full)
        with pytest.raises(ResourceExhausted) as caught:
            write_blocks(open_writer, [1], vectors + 1)
    assert caught.value.what.startswith(f"{tmp_path}: no room left on the disk")
    again = writer(tmp_path)
    assert again.missing() == [1, 2]
    write_blocks(again, [1, 2], vectors)
    again.finish(ids_of(ROW_COUNTS))
    assert np.array_equal(np.load(tmp_path / VECTORS), vectors)


def test_a_done_block_that_was_damaged_is_done_again(tmp_path):
    vectors = vectors_of(ROW_COUNTS)
    write_blocks(writer(tmp_path), [0, 1, 2], vectors)
    data = bytearray((tmp_path / VECTORS).read_bytes())
    data[128 + 5 * DIM * 4] ^= 1  # in the sixth row, the second of the block
    (tmp_path / VECTORS).write_bytes(data)
    again = writer(tmp_path)
    assert again.missing() == [1]
    write_blocks(again, [1], vectors)
    again.finish(ids_of(ROW_COUNTS))
    assert np.array_equal(np.load(tmp_path / VECTORS), vectors)


def test_a_block_that_fills_the_disk_frees_its_space(tmp_path):
    """Another process may need the space."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * (1 << 20))
    before = path.stat()
    with open(path, "r+b") as handle:
        _free_range(handle.fileno(), 1 << 18, 1 << 19)
    after = path.stat()
    assert after.st_size == before.st_size
    assert after.st_blocks <= before.st_blocks - (1 << 19) // 512
    data = path.read_bytes()
    assert data == b"x" * (1 << 18) + bytes(1 << 19) + b"x" * (1 << 18)


def test_a_full_disk_at_the_end_keeps_every_block(tmp_path, monkeypatch):
    vectors = vectors_of(ROW_COUNTS)
    open_writer = writer(tmp_path)
    write_blocks(open_writer, range(3), vectors)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(ResourceExhausted):
            open_writer.finish(ids_of(ROW_COUNTS))
    again = writer(tmp_path)
    assert again.missing() == []
    again.finish(ids_of(ROW_COUNTS))
    assert np.array_equal(np.load(tmp_path / VECTORS), vectors)


def test_a_kill_during_preparation_starts_again(tmp_path):
    write_blocks(writer(tmp_path), [0], vectors_of(ROW_COUNTS))
    (tmp_path / DONE).unlink()  # it is made last
    assert writer(tmp_path).missing() == [0, 1, 2]


@pytest.mark.parametrize("order", [[2, 0, 1], [1, 2, 0]])
def test_any_writer_writes_any_block(tmp_path, order):
    """Two writers of one folder, in any order, write the same as one writer from start to end."""
    (tmp_path / "part").mkdir()
    vectors, both = vectors_of(ROW_COUNTS), [writer(tmp_path / "part") for _ in range(2)]
    for nth, block in enumerate(order):
        write_blocks(both[nth % 2], [block], vectors)
        assert both[0].missing() == both[1].missing() == sorted(order[nth + 1 :])
    content = both[1].finish(ids_of(ROW_COUNTS))
    whole = publish(tmp_path / "whole")
    for name in (VECTORS, IDS, DOC_OFFSETS):
        assert (tmp_path / "part" / name).read_bytes() == (whole / name).read_bytes()
    assert content["block_xxh3"] == Embeddings(whole).manifest["content"]["block_xxh3"]


def test_vectors_that_are_not_the_blocks_are_a_mistake_of_the_caller(tmp_path):
    expected = r"block 1 has vectors of shape \(5, 4\), expected \(6, 4\)"
    with pytest.raises(ValueError, match=expected):
        writer(tmp_path).write_block(1, vectors_of(ROW_COUNTS)[:5])


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8", "binary"])
def test_rows_that_are_stored_already_are_put_between_the_others(tmp_path, dtype):
    """Blocks of which all rows, some and none are stored make the folder that encoding makes."""
    whole, vectors = publish(tmp_path / "whole", dtype=dtype), vectors_of(ROW_COUNTS)
    stored = Embeddings(whole)
    plan = plan_at(tmp_path / "part")
    open_writer = writer(plan.open_partial(), dtype=dtype)
    for block, kept in enumerate(([1] * 4, [0, 1, 1, 0, 0, 1], [0] * 4)):
        is_kept = np.array(kept, bool)
        rows = np.array(open_writer.rows_of(block))
        given = is_kept, stored.stored(rows[is_kept])
        open_writer.write_block(block, vectors[rows[~is_kept]], kept=given)
    plan.publish_folder(open_writer.finish(ids_of(ROW_COUNTS)), {}, UNFINISHED_ONLY)
    assert Embeddings(tmp_path / "part").manifest["content"] == stored.manifest["content"]


def test_stored_rows_of_a_damaged_block_are_refused(tmp_path):
    folder = publish(tmp_path / "emb")
    data = bytearray((folder / VECTORS).read_bytes())
    data[-1] ^= 1
    (folder / VECTORS).write_bytes(data)
    opened = Embeddings(folder)
    assert len(opened.stored(np.arange(9))) == 9
    with pytest.raises(BadInput, match="block 2 .* is damaged"):
        opened.stored(np.array([10]))


def test_the_hashes_of_documents_are_a_part_of_the_folder(tmp_path):
    plan, hashes = plan_at(tmp_path / "emb"), np.arange(8, dtype=np.uint64)
    open_writer = writer(plan.open_partial())
    write_blocks(open_writer, range(3), vectors_of(ROW_COUNTS))
    save_array(plan.partial / DOC_HASHES, hashes)
    plan.publish_folder(open_writer.finish(ids_of(ROW_COUNTS)), {}, UNFINISHED_ONLY)
    opened = Embeddings(plan.output)
    assert opened.doc_hashes().dtype == np.uint64
    assert np.array_equal(opened.doc_hashes(), hashes)
    assert len(opened.manifest["content"]["doc_hashes_xxh3"]) == 16
    save_array(plan.output / DOC_HASHES, hashes + np.uint64(1))
    with pytest.raises(BadInput, match=r"doc_hashes\.npy: is damaged"):
        Embeddings(plan.output).doc_hashes()


def test_a_folder_without_hashes_of_documents_is_opened(tmp_path):
    opened = Embeddings(publish(tmp_path / "emb"))
    with pytest.raises(Mismatch, match="did not note of which texts the vectors are"):
        opened.doc_hashes()


def test_finishing_early_is_a_mistake_of_the_caller(tmp_path):
    open_writer = writer(tmp_path)
    write_blocks(open_writer, [0, 1], vectors_of(ROW_COUNTS))
    with pytest.raises(ValueError, match="not every block is done"):
        open_writer.finish(ids_of(ROW_COUNTS))
    write_blocks(open_writer, [2], vectors_of(ROW_COUNTS))
    with pytest.raises(ValueError, match="not every block is done"):
        open_writer.finish(ids_of(ROW_COUNTS)[:-1])


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_vectors_that_do_not_fit_their_type_are_refused(tmp_path):
    vectors = vectors_of(ROW_COUNTS)
    vectors[2, 1] = 70_000
    with pytest.raises((BadInput, ValueError)):
        write_blocks(writer(tmp_path, dtype="float16"), [0], vectors)


def test_a_number_that_is_none_is_refused_in_every_format(tmp_path):
    vectors = vectors_of(ROW_COUNTS)
    vectors[2, 1] = np.inf
    with pytest.raises(BadInput, match="block 0: a vector is not finite, or has a component"):
        write_blocks(writer(tmp_path, dtype="binary"), [0], vectors)


# ---------------------------------------------------------------- rounded vectors

ROUNDED = ["int8", "binary"]


def kept(dtype):
    """What a format keeps of the vectors."""
    rows = ROW_FORMATS[dtype](DIM)
    return rows.floats(rows.stored(vectors_of(ROW_COUNTS)))


@pytest.mark.parametrize("dtype", ROUNDED)
def test_readers_get_floats_of_rounded_vectors(tmp_path, dtype):
    found = Embeddings(publish(tmp_path / "emb", dtype=dtype))
    assert (found.num_rows, found.dim, found.manifest["content"]["dtype"]) == (14, DIM, dtype)
    blocks = list(found.blocks())
    assert [(first, len(data)) for first, data in blocks] == [(0, 4), (4, 6), (10, 4)]
    assert np.array_equal(np.concatenate([data for _, data in blocks]), kept(dtype))
    rows = np.array([13, 0, 5, 5])
    assert np.array_equal(found.rows(rows), kept(dtype)[rows])
    assert found.rows(rows).dtype == blocks[0][1].dtype == np.float32


@pytest.mark.parametrize("dtype", ROUNDED)
def test_rounded_vectors_are_a_plain_npy_file(tmp_path, dtype):
    stored = ROW_FORMATS[dtype](DIM).stored(vectors_of(ROW_COUNTS))
    found = np.load(publish(tmp_path / "emb", dtype=dtype) / VECTORS, allow_pickle=False)
    assert found.dtype == stored.dtype and np.array_equal(found, stored)


@pytest.mark.parametrize("dtype", ROUNDED)
def test_rounded_blocks_are_resumed_and_checked_as_floats_are(tmp_path, dtype):
    """One block was done, another one was damaged; the recall comes with the first block."""
    vectors, part = vectors_of(ROW_COUNTS), tmp_path / "part"
    part.mkdir()
    first = writer(part, dtype=dtype)
    write_blocks(first, [1, 2], vectors)
    first.write_block(0, vectors[:4], recall=0.625)
    data = bytearray((part / VECTORS).read_bytes())
    data[-1] ^= 1  # in the last block
    (part / VECTORS).write_bytes(data)
    again = writer(part, dtype=dtype)
    assert again.missing() == [2] and again.recall == 0.625
    write_blocks(again, [2], vectors)
    content = again.finish(ids_of(ROW_COUNTS))
    whole = publish(tmp_path / "whole", dtype=dtype)
    assert (part / VECTORS).read_bytes() == (whole / VECTORS).read_bytes()
    assert content["block_xxh3"] == Embeddings(whole).manifest["content"]["block_xxh3"]


def test_the_recall_is_durable_before_its_block_is_done(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    first = writer(tmp_path, dtype="binary")
    with monkeypatch.context() as patched:
        patched.setattr(first, "_note", killed)
        with pytest.raises(KeyboardInterrupt):
            first.write_block(0, vectors_of(ROW_COUNTS)[:4], recall=0.5)
    assert writer(tmp_path, dtype="binary").missing() == [0, 1, 2]
    assert float(np.load(tmp_path / RECALL)[0]) == 0.5


def test_floats_have_no_recall(tmp_path):
    assert writer(tmp_path).recall is None
    assert not (tmp_path / RECALL).exists()


@pytest.mark.parametrize("dtype", ROUNDED)
def test_a_damaged_byte_of_rounded_vectors_is_found(tmp_path, dtype):
    folder = publish(tmp_path / "emb", dtype=dtype)
    data = bytearray((folder / VECTORS).read_bytes())
    data[-1] ^= 1
    (folder / VECTORS).write_bytes(data)
    with pytest.raises(BadInput, match=r"block 2 \(rows 10 to 14\) is damaged"):
        list(Embeddings(folder).blocks())


@pytest.mark.parametrize(
    ("dtype", "shown"),
    [("float32", r"\(14, 4\) and float32"), ("binary", r"\(14, 1\) and uint8")],
)
def test_rows_of_another_format_are_refused(tmp_path, dtype, shown):
    folder = publish(tmp_path / "emb", dtype="int8")
    other = publish(tmp_path / "other", dtype=dtype)
    (other / VECTORS).write_bytes((folder / VECTORS).read_bytes())
    expected = rf"has shape \(14,\) and dtype \[\('scale', .*expected {shown} \(the manifest\)"
    with pytest.raises(Mismatch, match=expected):
        Embeddings(other)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("dtype", "int4", "expected one of float16, float32, int8, binary, found 'int4'"),
        ("dim", -4, "-4 dimensions: the manifest was edited"),
        ("dim", 2**40, "1099511627776 dimensions: the manifest was edited"),
    ],
)
def test_an_edited_format_is_refused(tmp_path, name, value, words):
    folder = publish(tmp_path / "emb", dtype="int8")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["content"][name] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert words in refused(folder).what


# ---------------------------------------------------------------- reading


def test_published_embeddings_report_their_shape(tmp_path):
    found = Embeddings(publish(tmp_path / "emb"))
    assert (found.num_docs, found.num_rows, found.dim, found.max_segments) == (8, 14, DIM, 4)
    assert found.ids == ids_of(ROW_COUNTS)
    assert found.tower == "the tower"
    assert found.fingerprint == plan_at(tmp_path / "emb").fingerprint
    assert found.doc_of_row().tolist() == [0, 1, 1, 2, 3, 3, 3, 3, 4, 5, 6, 6, 6, 7]


def test_blocks_are_whole_documents_in_order(tmp_path):
    found = Embeddings(publish(tmp_path / "emb"))
    blocks = list(found.blocks())
    assert [(first, len(data)) for first, data in blocks] == [(0, 4), (4, 6), (10, 4)]
    assert np.array_equal(np.concatenate([data for _, data in blocks]), vectors_of(ROW_COUNTS))


def test_one_row_a_document(tmp_path):
    found = Embeddings(publish(tmp_path / "emb", np.ones(7, np.int32)))
    assert found.max_segments == 1
    assert found.doc_of_row().tolist() == list(range(7))
    assert [first for first, _ in found.blocks()] == [0, 3, 6]


def test_a_damaged_byte_is_found_in_its_block(tmp_path):
    folder = publish(tmp_path / "emb")
    data = bytearray((folder / VECTORS).read_bytes())
    data[-4 * DIM * 4 - 1] ^= 1  # the last byte of the second block
    (folder / VECTORS).write_bytes(data)
    seen = []
    with pytest.raises(BadInput) as caught:
        seen.extend(first for first, _ in Embeddings(folder).blocks())
    assert seen == [0]
    assert caught.value.what == (
        f"{folder}/embeddings.npy: block 1 (rows 4 to 10) is damaged: "
        "its hash differs from the one in the manifest"
    )
    assert caught.value.hint == "make the embeddings again with: ance encode --force"


@pytest.mark.parametrize("change", [lambda ids: ids[:-1], lambda ids: [*ids, "d8"]])
def test_ids_that_disagree_with_the_rows_are_refused(tmp_path, change):
    folder = publish(tmp_path / "emb")
    ids = change(ids_of(ROW_COUNTS))
    write_ids(folder / IDS, ids)
    assert refused(folder).what == (
        f"{folder}/ids.txt: has {len(ids)} ids, expected 8 (the manifest)"
    )


def test_offsets_that_disagree_with_the_ids_are_refused(tmp_path):
    folder = publish(tmp_path / "emb")
    np.save(folder / DOC_OFFSETS, np.arange(5))
    assert refused(folder).what == (
        f"{folder}/doc_offsets.npy: has shape (5,), expected (9,) (the manifest)"
    )


def test_ids_and_offsets_that_agree_with_each_other_alone_are_refused(tmp_path):
    folder = publish(tmp_path / "emb")
    write_ids(folder / IDS, ids_of(ROW_COUNTS)[:-1])
    np.save(folder / DOC_OFFSETS, np.delete(np.load(folder / DOC_OFFSETS), 3))
    assert refused(folder).what == (
        f"{folder}/doc_offsets.npy: has shape (8,), expected (9,) (the manifest)"
    )


def test_other_ids_of_the_same_number_are_refused(tmp_path):
    folder = publish(tmp_path / "emb")
    names = (folder / IDS).read_text().splitlines()
    (folder / IDS).write_text("".join(f"{name}\n" for name in reversed(names)))
    assert refused(folder).what == (
        f"{folder}/ids.txt: is damaged: its hash differs from the one in the manifest"
    )


@pytest.mark.parametrize("blocks", [(3, []), (0, ["0"] * 3)])
def test_blocks_that_do_not_hold_the_documents_are_refused(tmp_path, blocks):
    folder = publish(tmp_path / "emb")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["content"].update(zip(("block_docs", "block_xxh3"), blocks, strict=True))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "do not hold 8 documents: the manifest was edited" in refused(folder).what


@pytest.mark.parametrize("ends", [(0, 13), (1, 14)])
def test_offsets_that_do_not_cover_the_rows_are_refused(tmp_path, ends):
    folder = publish(tmp_path / "emb")
    offsets = np.load(folder / DOC_OFFSETS)
    offsets[[0, -1]] = ends
    np.save(folder / DOC_OFFSETS, offsets)
    assert refused(folder).what == f"{folder}/doc_offsets.npy: does not cover the 14 rows"


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        (np.zeros((13, DIM), np.float32), "shape (13, 4) and dtype float32"),
        (np.zeros((14, DIM), np.float64), "shape (14, 4) and dtype float64"),
    ],
)
def test_another_matrix_is_refused(tmp_path, matrix, shown):
    folder = publish(tmp_path / "emb")
    np.save(folder / VECTORS, matrix)
    assert refused(folder).what == (
        f"{folder}/embeddings.npy: has {shown}, expected (14, 4) and float32 (the manifest)"
    )


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    folder = publish(tmp_path / "emb")
    (folder / "manifest.json").unlink()
    problem = refused(folder)
    assert isinstance(problem, Mismatch)
    assert problem.what == (f"{folder}: has no manifest.json, so its model and data are unknown")


@pytest.mark.parametrize("name", [VECTORS, IDS, DOC_OFFSETS])
def test_a_missing_file_is_named(tmp_path, name):
    folder = publish(tmp_path / "emb")
    (folder / name).unlink()
    assert refused(folder).what == f"{folder}/{name}: no such file"


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("left", [0, 20, 200])
def test_an_array_cut_short_is_refused(tmp_path, mapped, left):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((20, DIM)))
    os.truncate(path, left)
    with pytest.raises(BadInput) as caught:
        load_array(path, mapped)
    assert caught.value.what.startswith(f"{path}: not a complete .npy array (")


class Trap:
    """An object whose unpickling leaves a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("as_array", [True, False])
def test_pickled_objects_are_refused_and_never_unpickled(tmp_path, mapped, as_array):
    path, mark = tmp_path / "a.npy", tmp_path / "unpickled"
    if as_array:
        np.save(path, np.array([Trap(mark)], object), allow_pickle=True)
    else:
        path.write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(BadInput) as caught:
        load_array(path, mapped)
    assert caught.value.what.startswith(f"{path}: not a complete .npy array (")
    assert not mark.exists()


def test_ids_are_one_a_line(tmp_path):
    ids = ["d1", "D#2", "naïve", "0", "文書"]
    write_ids(tmp_path / "ids.txt", ids)
    assert read_ids(tmp_path / "ids.txt") == ids
    write_ids(tmp_path / "ids.txt", [])
    assert read_ids(tmp_path / "ids.txt") == []


def test_ids_that_are_not_utf8_are_refused(tmp_path):
    (tmp_path / "ids.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(BadInput) as caught:
        read_ids(tmp_path / "ids.txt")
    assert caught.value.what.startswith(f"{tmp_path}/ids.txt: not valid UTF-8 (")


def test_more_documents_than_positions_are_refused(tmp_path):
    """At the beginning, not after the corpus was encoded."""
    offsets = np.broadcast_to(np.int64(0), 2**31 + 1)  # no memory
    with pytest.raises(UsageProblem, match="2,147,483,648 documents; a folder holds at most"):
        EmbeddingsWriter.begin(tmp_path, offsets, 4, "float16")
    assert not list(tmp_path.iterdir())


def test_single_rows_are_checked_by_their_blocks(tmp_path):
    folder = publish(tmp_path / "emb")
    whole = Embeddings(folder)
    rows = np.array([13, 0, 5, 5])
    assert np.array_equal(whole.rows(rows), np.asarray(whole.vectors[rows], np.float32))
    with open(folder / VECTORS, "r+b") as handle:
        handle.seek(-1, 2)
        handle.write(b"\x01")
    damaged = Embeddings(folder)
    assert len(damaged.rows(np.array([0, 1]))) == 2, "the first block is whole"
    with pytest.raises(BadInput, match=r"block \d \(rows \d+ to 14\) is damaged"):
        damaged.rows(np.array([0, 13]))
