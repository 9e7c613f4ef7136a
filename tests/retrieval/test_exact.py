"""Exact search against its brute-force twin, through faiss and through torch."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ance_cli.errors import BadInput
from ance_cli.formats.embeddings import VECTORS, Embeddings
from ance_cli.retrieval import chunks, exact, top_k
from ance_cli.retrieval.exact import (
    exact_top_docs,
    exact_top_docs_by_width,
    exact_top_k,
    in_order,
    pair_scores,
    pool_to_documents,
    positive_scores,
    search_docs,
)

CPU = torch.device("cpu")
PATHS = [
    pytest.param("faiss", (), id="faiss"),
    pytest.param("torch", (CPU,), id="torch"),
    pytest.param("faiss", (CPU, CPU, CPU), id="faiss on three devices"),
    pytest.param("torch", (CPU, CPU), id="torch on two devices"),
]
paths = pytest.mark.parametrize(("engine", "devices"), PATHS)


def on_every_path(search, *arguments):
    """What the search finds on each of them."""
    for path in PATHS:
        engine, devices = path.values
        yield search(*arguments, devices, engine=engine)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def small_integers(*shape, seed=0, high=2):
    """Vectors whose inner products are exact in 32 bits, with many ties."""
    return np.random.default_rng(seed).integers(0, high, shape).astype(np.float32)


def brute_force(xq, xb, k):
    """Top k by score, ties by position: the whole matrix at once, in 64 bits."""
    scores = xq.astype(np.float64) @ xb.astype(np.float64).T
    D = np.full((len(xq), k), -np.inf)
    positions = np.full((len(xq), k), -1)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    positions[:, : best.shape[1]] = best
    D[:, : best.shape[1]] = np.take_along_axis(scores, best, 1)
    return D, positions


@pytest.fixture
def small_chunks(monkeypatch):
    """`small_chunks(rows)`: so many rows are searched at a time, if no block is larger."""
    return lambda rows: monkeypatch.setattr(chunks, "CHUNK_ROWS", rows)


# ---------------------------------------------------------------- exact_top_k


@pytest.mark.parametrize(("rows", "k", "block_docs"), [(50, 10, 7), (50, 1, 50), (300, 120, 64)])
def test_top_k_over_several_blocks(embed, small_chunks, rows, k, block_docs):
    xq, xb = normal(9, 16, seed=1), normal(rows, 16, seed=2)
    embeddings = embed(xb, block_docs=block_docs)
    D_twin, twin = brute_force(xq, xb, k)
    for chunk_rows in (1, 100, 1000):
        small_chunks(chunk_rows)
        for D, positions in on_every_path(exact_top_k, xq, embeddings, k):
            assert np.array_equal(positions, twin)
            assert np.allclose(D, D_twin, atol=1e-5)
            assert (D.dtype, positions.dtype) == (np.float32, np.int32)


@paths
@pytest.mark.parametrize("size", [1e-4, 1, 1e3])
def test_stored_halves_are_searched_with_whole_queries(embed, engine, devices, size):
    xq, xb = (normal(9, 16, seed=1) * size).astype(np.float32), normal(400, 16, seed=2)
    embeddings = embed(xb, dtype="float16", block_docs=90)
    D, positions = exact_top_k(xq, embeddings, 80, devices, engine=engine)
    D_twin, twin = brute_force(xq, xb.astype(np.float16), 80)
    assert np.array_equal(positions, twin)
    assert np.allclose(D / size, D_twin / size, atol=1e-5)


@paths
@pytest.mark.parametrize("block_docs", [1, 4, 100])
def test_more_places_than_rows_stay_empty(embed, engine, devices, block_docs):
    xq, xb = normal(3, 8, seed=1), normal(10, 8, seed=2)
    D, positions = exact_top_k(xq, embed(xb, block_docs=block_docs), 15, devices, engine=engine)
    assert np.array_equal(positions, brute_force(xq, xb, 15)[1])
    assert (positions[:, 10:] == -1).all()
    assert np.isneginf(D[:, 10:]).all()


@pytest.mark.parametrize("seed", range(8))
def test_ties_are_broken_by_position_also_at_the_cut(embed, small_chunks, seed):
    rng = np.random.default_rng(seed)
    rows, k, block_docs = (
        int(rng.integers(1, 700)),
        int(rng.integers(1, 150)),
        rng.integers(60, 300),
    )
    small_chunks(int(rng.integers(1, 400)))
    xq = small_integers(int(rng.integers(1, 40)), 3, seed=seed + 1, high=3)
    xb = small_integers(rows, 3, seed=seed + 2, high=3)
    dtype = ("float16", "float32")[seed % 2]
    embeddings = embed(xb, block_docs=int(block_docs), dtype=dtype)
    D_twin, twin = brute_force(xq, xb, k)
    for D, positions in on_every_path(exact_top_k, xq, embeddings, k):
        assert np.array_equal(positions, twin)
        assert np.array_equal(D, D_twin)


@paths
def test_equal_vectors_are_ranked_in_corpus_order(embed, small_chunks, engine, devices):
    small_chunks(64)
    xq, xb = normal(70, 8, seed=1), np.tile(normal(1, 8, seed=2), (300, 1))
    _, positions = exact_top_k(xq, embed(xb, block_docs=64), 100, devices, engine=engine)
    assert (positions == np.arange(100)).all()


@paths
def test_batches_and_groups_of_queries_change_nothing(embed, monkeypatch, engine, devices):
    xq, embeddings = normal(11, 8, seed=1), embed(normal(30, 8, seed=2))
    whole = exact_top_k(xq, embeddings, 6, devices, engine=engine)
    monkeypatch.setattr(exact, "_GROUP_BYTES", 4 * (4 * 8 + 8 * 6))
    monkeypatch.setattr(top_k, "_RESULT_BYTES", 2 * 64 * 7)
    monkeypatch.setattr(top_k, "_SCORE_BYTES", {"cpu": 2 * 4 * 30})
    heard = []
    D, positions = exact_top_k(xq, embeddings, 6, devices, heard.append, engine)
    assert np.array_equal(positions, whole[1])
    assert np.allclose(D, whole[0], atol=1e-6)
    assert sum(heard) == 30, "each row once, however often the corpus is read"


def test_progress_hears_of_every_row_once(embed, small_chunks):
    small_chunks(6)
    heard = []
    embeddings = embed(normal(13, 4), row_counts=[2, 1, 3, 1, 4, 2], block_docs=4)
    exact_top_k(normal(2, 4), embeddings, 3, on_rows=heard.append)
    assert heard == [7, 6]


def test_no_queries_find_nothing(embed):
    D, positions = exact_top_k(np.zeros((0, 4), np.float32), embed(normal(13, 4)), 3)
    assert D.shape == positions.shape == (0, 3)


def test_fewer_queries_than_devices(embed):
    xq, xb = normal(2, 4, seed=1), normal(13, 4)
    _, positions = exact_top_k(xq, embed(xb), 3, [CPU] * 5)
    assert np.array_equal(positions, brute_force(xq, xb, 3)[1])


@paths
@pytest.mark.parametrize("at", [0, -1], ids=["first block", "last block"])
def test_a_damaged_block_is_refused(embed, small_chunks, engine, devices, at):
    small_chunks(7)
    embeddings = embed(normal(40, 4), block_docs=7)
    path = embeddings.folder / VECTORS
    data = bytearray(path.read_bytes())
    data[128 if at == 0 else -1] ^= 1
    path.write_bytes(data)
    block, rows = (0, "0 to 7") if at == 0 else (5, "35 to 40")
    with pytest.raises(BadInput) as caught:
        exact_top_k(normal(2, 4), Embeddings(embeddings.folder), 3, devices, engine=engine)
    assert caught.value.what == (
        f"{path}: block {block} (rows {rows}) is damaged: "
        "its hash differs from the one in the manifest"
    )


def test_results_go_where_they_should(embed, tmp_path):
    xq, embeddings = normal(9, 8, seed=1), embed(normal(30, 8, seed=2), [1, 2] * 10)
    out = tuple(
        np.lib.format.open_memmap(tmp_path / name, "w+", dtype, (9, 5))
        for name, dtype in (("scores.npy", np.float32), ("rows.npy", np.int32))
    )
    found = exact_top_docs(xq, embeddings, 5, out=out)
    assert found[0] is out[0] and found[1] is out[1]
    D, docs = exact_top_docs(xq, embeddings, 5)
    assert np.array_equal(D, np.load(tmp_path / "scores.npy"))
    assert np.array_equal(docs, np.load(tmp_path / "rows.npy"))


# ---------------------------------------------------------------- top_k


def test_the_best_columns_are_in_the_groups_with_the_greatest_maxima():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        k, n = int(rng.integers(1, 8)), int(rng.integers(2000, 4000))
        S = torch.from_numpy(small_integers(5, n, seed=seed, high=int(rng.integers(2, 4000))))
        D, I = top_k.top_of_scores(S, k)  # noqa: E741
        assert torch.equal(D, S.topk(k, 1).values)
        assert torch.equal(S.gather(1, I), D)
        assert all(len(set(row)) == k for row in I.tolist()), "no column twice"


def test_a_large_search_goes_through_groups(embed):
    xq, xb = normal(4, 8, seed=1), small_integers(5000, 8, seed=2, high=50)
    xq = np.round(xq * 8)
    _, positions = exact_top_k(xq, embed(xb, block_docs=5000), 10, engine="torch")
    assert np.array_equal(positions, brute_force(xq, xb, 10)[1])


def test_a_query_is_the_sum_of_two_halves():
    q = (normal(50, 8) * np.logspace(-2, 2, 50)[:, None]).astype(np.float32)
    engine = top_k.TorchEngine(CPU, torch.float16)
    high, low = engine.queries(q).double().numpy().reshape(50, 2, 8).swapaxes(0, 1)
    assert torch.isfinite(engine.queries(q)).all()
    scale = engine.scale.double().numpy()
    restored = (high + low) / scale
    assert (np.abs(restored - q) <= 2.0**-20 * np.abs(q).max(1, keepdims=True)).all()
    assert (np.frexp(scale)[0] == 0.5).all(), "powers of two"


def test_queries_are_halved_in_the_memory_of_the_halves(monkeypatch):
    """All else is of one batch: a GPU that is almost full of queries has no room for more."""
    monkeypatch.setattr(top_k, "BATCH", 8)
    xq, sizes = normal(100, 8, seed=1), set()

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor):
                sizes.add(found.untyped_storage().nbytes())
            return found

    with Watched():
        q = top_k.TorchEngine(CPU, torch.float16).queries(xq)
    assert q.untyped_storage().nbytes() == xq.nbytes
    assert max(sizes - {xq.nbytes, 4 * len(xq)}) == 8 * 8 * 4


def test_a_query_is_halved_as_without_the_others():
    q = np.concatenate(
        [normal(3, 8), np.full((1, 8), 60_000.0), np.zeros((1, 8)), normal(2, 8) * 1e-38]
    )
    q = q.astype(np.float32)
    engine = top_k.TorchEngine(CPU, torch.float16)
    together, scale = engine.queries(q), engine.scale
    assert torch.isfinite(together).all() and torch.isfinite(scale).all()
    for place in range(len(q)):
        assert torch.equal(engine.queries(q[place : place + 1]), together[place : place + 1])
        assert torch.equal(engine.scale, scale[place : place + 1])


# ---------------------------------------------------------------- in_order


def test_in_order_puts_empty_places_last():
    D = np.array([[1, 9, 3, 9, 3], [0, 0, -np.inf, 0, 0]], np.float32)
    positions = np.array([[4, 8, -1, 2, -1], [3, 1, -1, 0, 2]])
    scores, ordered = in_order(D, positions)
    assert ordered.tolist() == [[2, 8, 4, -1, -1], [0, 1, 2, 3, -1]]
    assert scores[0, :3].tolist() == [9, 9, 1]


# ---------------------------------------------------------------- MaxP


def brute_force_documents(xq, xb, owners, depth):
    """(scores, documents): the maximum over each document's rows, ties by position."""
    scores = xq.astype(np.float64) @ xb.astype(np.float64).T
    pooled = np.stack([scores[:, owners == doc].max(1) for doc in range(owners.max() + 1)], 1)
    return brute_force(pooled, np.eye(pooled.shape[1]), depth)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("vectors", [normal, small_integers])
def test_a_document_scores_as_its_best_row(embed, small_chunks, vectors, seed):
    rng = np.random.default_rng(seed)
    small_chunks(int(rng.integers(1, 200)))
    row_counts = rng.integers(1, 5, int(rng.integers(1, 120)))
    depth = int(rng.integers(1, 40))
    xq, xb = vectors(12, 4, seed=seed + 1), vectors(int(row_counts.sum()), 4, seed=seed + 2)
    embeddings = embed(xb, row_counts, block_docs=int(rng.integers(10, 60)))
    D_twin, twin = brute_force_documents(xq, xb, embeddings.doc_of_row(), depth)
    for D, docs in on_every_path(exact_top_docs, xq, embeddings, depth):
        assert np.array_equal(docs, twin)
        assert np.allclose(D, D_twin, atol=1e-5)
        assert (D.dtype, docs.dtype) == (np.float32, np.int32)


@pytest.mark.parametrize("is_cosine", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("segments", [1, 3])
def test_one_search_of_several_widths_is_several_searches_of_cut_vectors(
    embed, small_chunks, monkeypatch, is_cosine, dtype, segments
):
    small_chunks(20)
    row_counts = np.random.default_rng(0).integers(1, segments + 1, 40)
    xq, xb = normal(6, 8, seed=1), normal(int(row_counts.sum()), 8, seed=2).astype(dtype)
    whole = embed(xb, row_counts, dtype=dtype)
    narrow = {}
    for width in (8, 5, 2):
        cut = [vectors[:, :width].astype(np.float32) for vectors in (xq, xb)]
        if is_cosine and width < 8:
            cut = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in cut]
        narrow[width] = exact_top_docs(cut[0], embed(cut[1], row_counts), 10)
    read = []
    blocks = Embeddings.blocks

    def noted(self, which=None):
        read.extend(which)
        return blocks(self, which)

    monkeypatch.setattr(Embeddings, "blocks", noted)
    for engine, devices in (path.values for path in PATHS):
        read.clear()
        heard = []
        found = exact_top_docs_by_width(
            xq, whole, 10, [8, 5, 2], is_cosine, devices, heard.append, engine
        )
        assert read == list(range(6)) and sum(heard) == len(xb)  # every block once
        # the torch engine holds halves, so it rounds what was scaled to length one
        atol = 2e-3 if is_cosine and dtype == "float16" and engine == "torch" else 1e-5
        for (D, docs), (D_alone, docs_alone) in zip(found, narrow.values(), strict=True):
            assert np.allclose(D, D_alone, atol=atol)
            assert atol > 1e-5 or np.array_equal(docs, docs_alone)


@pytest.mark.parametrize("depth", [1, 5, 20, 30])
@pytest.mark.parametrize("vectors", [normal, small_integers])
def test_ranked_rows_are_pooled_to_documents(embed, depth, vectors):
    row_counts = np.random.default_rng(3).integers(1, 5, 20)
    xq, xb = vectors(12, 4, seed=1), vectors(int(row_counts.sum()), 4, seed=2)
    embeddings = embed(xb, row_counts, block_docs=6)
    found = exact_top_k(xq, embeddings, depth * embeddings.max_segments)
    D, docs = pool_to_documents(*found, embeddings.doc_of_row(), depth)
    D_twin, twin = brute_force_documents(xq, xb, embeddings.doc_of_row(), depth)
    assert np.array_equal(docs, twin)
    assert np.allclose(D, D_twin, atol=1e-5)
    assert (D.dtype, docs.dtype) == (np.float32, np.int32)


def test_empty_rows_are_no_documents():
    D = np.array([[0.5, 0.25, -np.inf, -np.inf]], np.float32)
    positions = np.array([[3, 2, -1, -1]])
    scores, docs = pool_to_documents(D, positions, np.array([0, 1, 1, 1], np.int32), 3)
    assert docs.tolist() == [[1, -1, -1]]
    assert scores[0].tolist() == [0.5, -np.inf, -np.inf]


# ---------------------------------------------------------------- positives


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_positive_scores_are_the_maximum_over_the_rows(embed, dtype):
    row_counts = [1, 3, 2, 4, 1, 1, 2]
    xq, xb = normal(4, 8, seed=1), normal(14, 8, seed=2)
    embeddings = embed(xb, row_counts, block_docs=3, dtype=dtype)
    positives = {"q0": ["d3", "d0"], "q1": ["d6"], "q3": ["d1", "d3", "d5"]}
    found = positive_scores(xq, ["q0", "q1", "q2", "q3"], positives, embeddings)
    assert list(found) == ["q0", "q1", "q2", "q3"]
    assert found["q2"] == {}
    scores = xq.astype(np.float64) @ xb.astype(dtype).astype(np.float64).T
    owners = np.repeat(np.arange(7), row_counts)
    for query, query_id in enumerate(found):
        assert list(found[query_id]) == positives.get(query_id, [])
        for doc_id, score in found[query_id].items():
            assert score == pytest.approx(scores[query, owners == int(doc_id[1:])].max(), abs=2e-6)


def test_positive_scores_are_those_of_the_search(embed):
    xq, xb = normal(3, 8, seed=1), normal(10, 8, seed=2)
    embeddings = embed(xb)
    D, positions = exact_top_k(xq, embeddings, 10)
    found = positive_scores(xq[:1], ["q"], {"q": embeddings.ids}, embeddings)["q"]
    for score, place in zip(D[0], positions[0], strict=True):
        assert found[f"d{place}"] == pytest.approx(float(score), abs=2e-6)


def test_pair_scores_do_not_depend_on_the_other_pairs(embed, monkeypatch):
    row_counts = [1, 3, 2, 4, 1, 1, 2]
    xq, embeddings = normal(4, 8, seed=1), embed(normal(14, 8, seed=2), row_counts, block_docs=3)
    rng = np.random.default_rng(5)
    query_of, doc_of = rng.integers(0, 4, 40), rng.integers(0, 7, 40)
    whole = pair_scores(xq, query_of, doc_of, embeddings)
    expected = brute_force_documents(xq, embeddings.vectors, embeddings.doc_of_row(), 7)
    for score, query, doc in zip(whole, query_of, doc_of, strict=True):
        twin = expected[0][query][expected[1][query] == doc].item()
        assert score == pytest.approx(twin, abs=1e-5)
    monkeypatch.setattr(exact, "_PAIR_BYTES", 1)
    assert np.array_equal(pair_scores(xq, query_of, doc_of, embeddings), whole)
    assert len(pair_scores(xq, query_of[:0], doc_of[:0], embeddings)) == 0


# ---------------------------------------------------------------- rounded vectors


def rounded(dtype, xb):
    """What the vectors are rounded to, component by component."""
    steps = [max(map(abs, row)) / 127 for row in xb.tolist()]
    rows = zip(steps, xb.tolist(), strict=True)
    if dtype == "binary":
        return np.array([[1.0 if value > 0 else -1.0 for value in row] for _, row in rows])
    return np.array([[round(value / step) * step for value in row] for step, row in rows])


@pytest.mark.parametrize("dtype", ["int8", "binary"])
@paths
def test_rounded_vectors_are_searched_exactly(embed, dtype, engine, devices):
    """The query is not rounded. 13 components leave bits over in the last byte of a row."""
    row_counts = [1, 3, 2, 4, 1, 1, 2] * 5
    xq, xb = normal(6, 13, seed=1), normal(sum(row_counts), 13, seed=2)
    embeddings = embed(xb, row_counts, block_docs=4, dtype=dtype)
    D, docs = exact_top_docs(xq, embeddings, 9, devices, engine=engine)
    expected = brute_force_documents(xq, rounded(dtype, xb), embeddings.doc_of_row(), 9)
    assert np.array_equal(docs, expected[1])
    assert np.allclose(D, expected[0], rtol=1e-5)
    query_of, place = np.nonzero(docs >= 0)
    scores = pair_scores(xq, query_of, docs[query_of, place], embeddings)
    assert np.allclose(scores, D[query_of, place], rtol=1e-5)


# ---------------------------------------------------------------- in slices


@pytest.mark.parametrize(
    ("device", "room", "query_bytes"),
    [
        pytest.param(None, 256 << 20, lambda rows, k: 64 * (k + 1), id="faiss"),
        pytest.param("cpu", 128 << 20, lambda rows, k: 4 * rows, id="torch"),
        pytest.param("cuda", 1 << 30, lambda rows, k: 4 * rows, id="torch on a GPU"),
    ],
)
@pytest.mark.parametrize("rows", [1, 700, 16_384, 87_381, 131_072, 300_000, 1 << 30])
@pytest.mark.parametrize("k", [1, 200, 4_000, 1 << 20])
def test_batches_fill_their_room_and_divide_the_largest(device, room, query_bytes, rows, k):
    engine = top_k.engine_of("torch", torch.device(device), torch.float16) if device else None
    batch = (engine or top_k.FaissEngine()).batch(rows, k)
    assert 1 <= batch <= top_k.BATCH and top_k.BATCH % batch == 0
    assert batch == 1 or batch * query_bytes(rows, k) <= room
    assert batch == top_k.BATCH or 2 * batch * query_bytes(rows, k) > room


@pytest.mark.parametrize("max_segments", [1, 3])
@pytest.mark.parametrize("engine", ["faiss", "torch"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_slices_of_the_queries_get_the_bits_of_the_whole(
    embed, small_chunks, monkeypatch, max_segments, engine, dtype
):
    """In groups of one batch too. Queries of all sizes: what one is scaled by must not depend on
    the others. In batches of 32 queries, BLAS would give each the same bits in any batch."""
    monkeypatch.setattr(top_k, "BATCH", 1024)
    small_chunks(100)
    rng = np.random.default_rng(max_segments)
    counts = rng.integers(1, max_segments + 1, 200)
    xb = normal(int(counts.sum()), 384, seed=1)
    embeddings = embed(xb, row_counts=counts, block_docs=40, dtype=dtype)
    xq = normal(2500, 384, seed=2) * np.logspace(-3, 3, 2500, dtype=np.float32)[:, None]
    whole = exact_top_docs(xq, embeddings, 25, engine=engine)
    for group in (4 << 30, 1400 * (4 * 384 + 8 * 25)):
        monkeypatch.setattr(exact, "_GROUP_BYTES", group)
        for a, b in ((0, 2500), (0, 1024), (1024, 2048), (1024, 2500)):
            D, docs = exact_top_docs(xq[a:b], embeddings, 25, engine=engine)
            assert D.tobytes() == whole[0][a:b].tobytes()
            assert docs.tobytes() == whole[1][a:b].tobytes()


def test_a_search_in_steps_is_the_search(embed, small_chunks):
    small_chunks(7)
    xq, embeddings = normal(9, 8, seed=1), embed(normal(30, 8, seed=2), [1, 2] * 10, block_docs=4)
    out = np.empty((9, 5), np.float32), np.empty((9, 5), np.int32)
    steps = list(search_docs(xq, embeddings, out))
    assert len(steps) > 3 and sum(steps) == 30
    for found, expected in zip(out, exact_top_docs(xq, embeddings, 5), strict=True):
        assert np.array_equal(found, expected)


# ---------------------------------------------------------------- memory


def test_a_copy_waits_for_who_had_its_memory_before(embed, small_chunks, monkeypatch):
    """torch gives freed memory to another stream's tensor while kernels that use it are waiting: a
    stream that copies to a new buffer first waits for the search's."""
    done, empty = [], torch.empty

    class Stream:
        def __init__(self, device):
            self.device = device

        def wait_stream(self, other):
            done.append(f"waits for {other}")

        def synchronize(self):
            done.append("synchronized")

    class Copied(torch.Tensor):
        def copy_(self, source, non_blocking=False):
            done.append("copy")
            return super().copy_(source)

    def buffer(shape, dtype, device):
        done.append("new buffer")
        return empty(shape, dtype=dtype).as_subclass(Copied)

    monkeypatch.setattr(chunks, "_empty", buffer)
    monkeypatch.setattr(torch, "empty", lambda shape, dtype, pin_memory: empty(shape, dtype=dtype))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"that of {device}")
    small_chunks(10)
    embeddings = embed(normal(40, 8), block_docs=10)
    assert len(list(chunks.read_ahead(embeddings, [torch.device("cuda", 0)], torch.float16))) == 4
    first = ["new buffer", "waits for that of cuda:0", "copy", "synchronized"]
    assert done == [*first, *first, "copy", "synchronized", "copy", "synchronized"]


@pytest.mark.parametrize("row_counts", [[1] * 60, [1, 3, 2] * 10], ids=["FirstP", "MaxP"])
def test_where_memory_runs_out_queries_are_halved(embed, small_chunks, monkeypatch, row_counts):
    xq = small_integers(20, 8, seed=1)
    embeddings = embed(small_integers(60, 8, seed=2), row_counts)
    small_chunks(10)
    expected = exact_top_docs(xq, embeddings, 7, [CPU, CPU], engine="torch")
    best, tried, said = top_k.TorchEngine.best, [], []

    def fails_above_three(self, q, *rest):
        tried.append(len(q))
        if len(q) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return best(self, q, *rest)

    monkeypatch.setattr(top_k.TorchEngine, "best", fails_above_three)
    found = exact_top_docs(xq, embeddings, 7, [CPU, CPU], engine="torch", say=said.append)
    assert np.array_equal(found[0], expected[0]) and np.array_equal(found[1], expected[1])
    assert said == ["memory ran out: searching smaller batches of queries"]
    assert sum(size > 3 for size in tried) <= 6, "the next chunks are searched in small batches"


def test_memory_that_runs_out_while_results_are_merged_changes_none(
    embed, small_chunks, monkeypatch
):
    """The scores are not stored before there is memory for the positions."""
    xq, embeddings = normal(8, 8, seed=1), embed(normal(60, 8, seed=2))
    small_chunks(10)
    expected = exact_top_k(xq, embeddings, 5, [CPU], engine="torch")
    gather, failed = torch.Tensor.gather, []

    def fails_above_three(self, dim, places):
        if self.dtype == torch.int32 and len(self) > 3:
            failed.append(len(self))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return gather(self, dim, places)

    monkeypatch.setattr(torch.Tensor, "gather", fails_above_three)
    found = exact_top_k(xq, embeddings, 5, [CPU], engine="torch")
    assert failed == [8, 4, 4]
    assert np.array_equal(found[0], expected[0]) and np.array_equal(found[1], expected[1])
