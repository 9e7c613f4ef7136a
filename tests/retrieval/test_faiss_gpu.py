"""FAISS indexes on GPUs: what is decided, by table; building and searching, with CPU indexes as the
copies on GPUs; and the real thing where there is a GPU."""

import faiss
import numpy as np
import pytest
import torch

from ance_cli.call import Call
from ance_cli.config import IndexConfig
from ance_cli.errors import ResourceExhausted
from ance_cli.progress import Silent
from ance_cli.retrieval import faiss_gpu
from ance_cli.retrieval.dense import DenseRetriever
from ance_cli.retrieval.exact import in_order
from ance_cli.retrieval.faiss_gpu import (
    Gpu,
    Placement,
    bytes_on_gpu,
    obstacle,
    place_build,
    place_search,
)
from ance_cli.retrieval.faiss_index import FaissIndex, new_index
from ance_cli.retrieval.index import index

DIM = 8
GIB = 1 << 30
SPARE = 3 * GIB // 2
"""What must stay free next to an index."""
NO_MEMORY = RuntimeError(
    "Error: 'err == cudaSuccess' failed: StandardGpuResources: alloc fail type IVFLists dev 0 "
    "space Device stream 0x1 size 80 bytes (cudaMalloc error out of memory [2])"
)

ONLY_A_COPY = "a flat index is only a copy of its rows"


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# ---------------------------------------------------------------- deciding


@pytest.mark.parametrize(
    "factory",
    ["Flat", "L2norm,Flat", "IVF4,Flat", "IVF4,PQ8", "IVF4,PQ8np", "OPQ8,IVF4,PQ8", "PCA4,IVF4,SQ8",
     "IVF4,SQ4", "IVF4,SQ6", "IVF4,SQfp16"],
)  # fmt: skip
def test_types_with_a_gpu_version(factory):
    assert obstacle(new_index(DIM, factory)) == ""


@pytest.mark.parametrize(
    ("factory", "dim", "reason"),
    [
        ("HNSW8", 8, "FAISS has no GPU version of IndexHNSWFlat"),
        ("SQfp16", 8, "FAISS has no GPU version of IndexScalarQuantizer"),
        ("PQ4", 8, "FAISS has no GPU version of IndexPQ"),
        ("IVF4,Flat,RFlat", 8, "FAISS has no GPU version of IndexRefineFlat"),
        ("OPQ4,HNSW8_PQ4", 8, "FAISS has no GPU version of IndexHNSWPQ"),
        ("IVF4,PQ4x4fs", 8, "FAISS has no GPU version of IndexIVFPQFastScan"),
        # FAISS's own check takes these two, and its copies would not be the same index
        ("IVF4,FlatDedup", 8, "FAISS has no GPU version of IndexIVFFlatDedup"),
        ("IVF4_HNSW8,Flat", 8, "FAISS has no GPU version of the coarse quantizer IndexHNSWFlat"),
        ("IVF4,PQ4x4", 8, "FAISS has no GPU version of PQ with 4 bits per code"),
        ("IVF4,PQ5", 10, "FAISS has no GPU version of PQ with 5 codes"),
        ("IVF4,SQbf16", 8, "FAISS has no GPU version of this scalar quantizer"),
    ],
)
def test_types_without_a_gpu_version(factory, dim, reason):
    index = new_index(dim, factory)
    assert obstacle(index) == reason
    for placement in (
        place_search(index, 10, [Gpu(0, 80 * GIB)]), place_build(index, 10, [Gpu(0, 80 * GIB)])
    ):  # fmt: skip
        assert placement == Placement(reason=reason) and placement.devices == "cpu"


def test_bytes_of_an_index():
    assert bytes_on_gpu(new_index(DIM, "Flat"), 100) == 100 * 4 * DIM
    assert bytes_on_gpu(new_index(DIM, "PCA4,Flat"), 100) == 100 * 4 * 4
    # rows and padding, with an id each, and the centroids
    assert bytes_on_gpu(new_index(DIM, "IVF4,Flat"), 100) == (100 + 4 * 31) * 40 + 4 * 4 * DIM
    assert bytes_on_gpu(new_index(DIM, "IVF4,PQ2"), 100) == (100 + 4 * 31) * 10 + 4 * 4 * DIM


def sized(factory, num_bytes, monkeypatch):
    """An empty index that is taken for one of so many bytes."""
    monkeypatch.setattr(faiss_gpu, "bytes_on_gpu", lambda index, num_rows: num_bytes)
    return new_index(DIM, factory)


@pytest.mark.parametrize(
    ("num_bytes", "free", "expected"),
    [
        (10 * GIB, [80], Placement((0,))),
        (10 * GIB, [80, 80], Placement((0, 1))),
        (10 * GIB, [11.5, 80], Placement((0, 1))),
        (10 * GIB + 1, [11.5, 80], Placement((0, 1), is_sharded=True)),
        (78 * GIB, [80, 60], Placement((0, 1), is_sharded=True)),
        (78 * GIB, [40.5, 40.5], Placement((0, 1), is_sharded=True)),
    ],
)
def test_an_index_is_copied_to_each_gpu_or_else_divided(num_bytes, free, expected, monkeypatch):
    index = sized("IVF4,Flat", num_bytes, monkeypatch)
    gpus = [Gpu(number, int(size * GIB)) for number, size in enumerate(free)]
    assert place_search(index, 100, gpus) == expected


def test_an_index_that_fits_on_no_gpu_is_searched_on_the_cpu(monkeypatch):
    index = sized("IVF4,Flat", 20 * 10**9, monkeypatch)
    found = place_search(index, 100, [Gpu(0, 9 * 10**9), Gpu(1, 80 * 10**9)])
    assert found == Placement(reason="it needs 11.6 GB on each GPU, and 9.0 GB are free")


def test_what_no_gpu_can_select_is_searched_on_the_cpu():
    gpus, ivf = [Gpu(0, 80 * GIB)], new_index(DIM, "OPQ8,IVF4096,PQ8", 2_048)
    assert place_search(ivf, 2_048, gpus) == Placement((0,))
    assert place_search(ivf, 2_049, gpus).reason == (
        "a query finds 2,049 rows (depth x rows of a document), and FAISS finds at most 2,048 on a "
        "GPU"
    )
    deep = new_index(DIM, "OPQ8,IVF4096,PQ8", 3_000)
    for placement in (place_search(deep, 10, gpus), place_build(deep, 10, gpus)):
        assert placement.reason == (
            "a query visits 3,000 inverted lists, and FAISS visits at most 2,048 on a GPU"
        )


@pytest.mark.parametrize(
    ("factory", "num_bytes", "free", "expected"),
    [
        ("IVF4,Flat", 10, [80], Placement((0,))),
        ("IVF4,Flat", 10, [80, 80], Placement((0, 1), is_sharded=True)),
        ("OPQ8,IVF4,PQ8", 10, [22, 12], Placement((0, 1), is_sharded=True)),
        ("IVF4,Flat", 10, [21.5], Placement((0,))),  # twice its bytes, because it grows
        ("Flat", 10, [80], Placement(reason=ONLY_A_COPY)),
        ("L2norm,Flat", 10, [80, 80], Placement(reason=ONLY_A_COPY)),
    ],
)
def test_where_an_index_is_built(factory, num_bytes, free, expected, monkeypatch):
    index = sized(factory, num_bytes * GIB, monkeypatch)
    gpus = [Gpu(number, int(size * GIB)) for number, size in enumerate(free)]
    assert place_build(index, 1000, gpus) == expected


def test_an_index_that_would_not_fit_is_built_on_the_cpu(monkeypatch):
    index = sized("IVF4,Flat", 10 * GIB, monkeypatch)
    found = place_build(index, 1000, [Gpu(0, 21 * GIB)])
    assert found.reason == "it needs 23.1 GB on each GPU, and 22.5 GB are free"


# ---------------------------------------------------------------- with CPU indexes as the copies


class Resources:
    """What FAISS keeps on a GPU."""

    temp = 0

    def setTempMemory(self, num_bytes):  # noqa: N802
        self.temp = num_bytes


class Machine:
    """A machine whose GPUs keep indexes as the CPU does: they train, grow, find and come back, and
    are replicas or shards of each other, as FAISS makes them."""

    def __init__(self, free):
        self.free, self.copies, self.fails = free, [], None

    def copy(self, resources, index, options, gpus):
        assert [each.temp for each in resources] == [GIB] * len(gpus)
        if self.fails:
            raise self.fails
        self.copies.append((tuple(gpus), bool(options.shard), bool(options.useFloat16)))
        return self._copied(faiss.downcast_index(index), len(gpus), options.shard)

    def _copied(self, index, count, shard):
        if isinstance(index, faiss.IndexPreTransform):
            copied = faiss.clone_index(index)
            inner = self._copied(faiss.downcast_index(index.index), count, shard)
            inner.this.disown()  # the copy owns it, as it owned the one before
            copied.index = inner
            return copied
        if count == 1:
            return faiss.clone_index(index)
        is_flat = isinstance(index, faiss.IndexFlat)
        joined = faiss.IndexShards(index.d, True, is_flat) if shard else faiss.IndexReplicas()
        for nth in range(count):
            # a clone of a mapped file is a view of the file
            part = faiss.deserialize_index(faiss.serialize_index(index))
            if shard and is_flat:
                part.reset()
                cuts = [index.ntotal * (nth + more) // count for more in (0, 1)]
                part.add(index.reconstruct_n(cuts[0], cuts[1] - cuts[0]))
            elif shard:
                part.reset()
                index.copy_subset_to(part, faiss.InvertedLists.SUBSET_TYPE_ID_MOD, count, nth)
            joined.add_shard(part) if shard else joined.addIndex(part)
            part.this.disown()
        joined.own_indices = True
        return joined


@pytest.fixture
def machine(monkeypatch):
    """A function that makes the machine have GPUs with so much free memory."""

    def made(*free):
        here = Machine(free)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (free[number], 2**40))
        monkeypatch.setattr(faiss, "get_num_gpus", lambda: len(free))
        monkeypatch.setattr(faiss, "StandardGpuResources", Resources, raising=False)
        monkeypatch.setattr(faiss, "index_cpu_to_gpu_multiple_py", here.copy, raising=False)
        return here

    return made


needs_gpu_build = pytest.mark.skipif(
    not hasattr(faiss, "GpuMultipleClonerOptions"), reason="needs FAISS built with GPU support"
)


class Heard(Silent):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


@pytest.fixture
def vectors(embed):
    return embed(normal(600, DIM), block_docs=150)


def built(vectors, folder, factory, gpus, **config):
    """The summary, what was said, and the index, opened."""
    heard = Heard()
    config = IndexConfig(factory=factory, gpus=gpus, train_rows=300, **config)
    summary = index(vectors.folder, folder, config, call=Call(heard))
    return summary, heard.said, FaissIndex(folder)


def on_gpus(opened, count):
    """A retriever over an index, without a checkpoint to encode with."""
    made = DenseRetriever.__new__(DenseRetriever)
    made.devices = [torch.device("cuda", number) for number in range(count)]
    made.embeddings, made._index, made.doc_ids = None, opened, opened.ids
    return made


def same_up_to_ties(found, expected):
    """Equal scores; other positions only where scores are equal."""
    (D, positions), (D_expected, expected_positions) = found, expected
    assert np.allclose(D, D_expected, atol=1e-5)
    other = positions != expected_positions
    tied = np.isclose(D[:, :, None], D[:, None, :], atol=1e-5).sum(2) > 1
    assert not (other & ~tied).any()


@needs_gpu_build
@pytest.mark.parametrize("factory", ["IVF6,Flat", "IVF6,PQ4np", "OPQ4,IVF6,PQ4np", "IVF6,SQ8"])
def test_one_gpu_builds_the_index_that_the_cpu_builds(vectors, tmp_path, machine, factory):
    cpu, said, expected = built(vectors, tmp_path / "cpu", factory, "none")
    assert (cpu["device"], said) == ("cpu", [])
    here = machine(80 * GIB)
    gpu, said, found = built(vectors, tmp_path / "gpu", factory, "0")
    assert (gpu["device"], said) == ("cuda:0", [])
    # trained on a copy, and filled on another
    assert here.copies == [((0,), False, False)] * 2
    assert bytes(faiss.serialize_index(found.index)) == bytes(faiss.serialize_index(expected.index))
    assert found.manifest["fingerprint"] == expected.manifest["fingerprint"]
    assert found.manifest["shaped_by"] == expected.manifest["shaped_by"]
    assert built(vectors, tmp_path / "gpu", factory, "none")[0]["up_to_date"]


@needs_gpu_build
@pytest.mark.parametrize("factory", ["IVF6,Flat", "OPQ4,IVF6,PQ4np", "IVF6,SQ8"])
def test_several_gpus_fill_a_part_each(vectors, tmp_path, machine, factory):
    _, _, expected = built(vectors, tmp_path / "cpu", factory, "none", probes=3)
    here = machine(80 * GIB, 70 * GIB)
    summary, _, found = built(vectors, tmp_path / "gpu", factory, "0-1", probes=3)
    assert summary["device"] == "cuda:0, cuda:1"
    assert here.copies == [((0,), False, False), ((0, 1), True, False)]
    assert type(found.index) is type(expected.index) and found.index.ntotal == 600
    xq = normal(30, DIM, seed=1)
    same_up_to_ties(found.top_docs(xq, 20), expected.top_docs(xq, 20))


@pytest.mark.parametrize(
    ("factory", "free", "reason"),
    [
        ("HNSW8", 80 * GIB, "FAISS has no GPU version of IndexHNSWFlat"),
        ("Flat", 80 * GIB, ONLY_A_COPY),
        ("IVF6,Flat", GIB, "it needs 1.6 GB on each GPU, and 1.1 GB are free"),
    ],
)
def test_an_index_that_no_gpu_takes_is_built_on_the_cpu(
    vectors, tmp_path, machine, factory, free, reason
):
    here = machine(free)
    summary, said, found = built(vectors, tmp_path / "index", factory, "0")
    assert said == [f"building the index on the CPU: {reason}"]
    assert summary["device"] == "cpu" and here.copies == [] and found.index.ntotal == 600


def test_a_faiss_that_sees_no_gpu_builds_on_the_cpu(vectors, tmp_path, machine, monkeypatch):
    machine(80 * GIB)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    summary, said, _ = built(vectors, tmp_path / "index", "Flat", "0")
    assert summary["device"] == "cpu"
    assert said == [
        "building the index on the CPU: FAISS does not see the GPU (ance doctor says why)"
    ]
    assert built(vectors, tmp_path / "other", "Flat", "all")[1] == []


@needs_gpu_build
def test_memory_that_runs_out_while_building_is_not_the_datas_fault(vectors, tmp_path, machine):
    machine(80 * GIB).fails = NO_MEMORY
    with pytest.raises(ResourceExhausted) as caught:
        built(vectors, tmp_path / "index", "IVF6,Flat", "0")
    assert caught.value.what == "memory ran out on cuda:0 while the index was built"
    assert caught.value.hint == "free the GPU, or build the index on the CPU with --gpus none"
    assert not (tmp_path / "index").exists()


def test_gpus_that_are_not_there_are_refused_before_any_work(vectors, ance):
    found = ance("index", vectors.folder, "-o", "index", "--gpus", 99, code=2)
    assert "--gpus 99: there is no GPU 99: this machine has" in found.stderr
    assert not list(ance.cwd.glob("*index*"))


@needs_gpu_build
@pytest.mark.parametrize("row_counts", [[1] * 600, [1, 3, 2] * 100], ids=["FirstP", "MaxP"])
@pytest.mark.parametrize("factory", ["Flat", "IVF6,Flat", "OPQ4,IVF6,PQ4np", "IVF6,SQ8"])
def test_gpus_find_what_the_cpu_finds(embed, tmp_path, machine, factory, row_counts):
    vectors = embed(normal(600, DIM), row_counts, block_docs=150)
    probes = 2 if "IVF" in factory else None
    opened = built(vectors, tmp_path / "index", factory, "none", probes=probes)[2]
    xq, heard = normal(30, DIM, seed=1), Heard()
    expected = opened.top_docs(xq, 20)
    half = SPARE + bytes_on_gpu(opened.index, 600) // 2
    for free, placement, words in (
        ((80 * GIB,), ((0,), False, False), "on cuda:0"),
        ((80 * GIB, 2 * GIB), ((0, 1), False, False), "on cuda:0, cuda:1"),
        ((half, half), ((0, 1), True, False), "in parts on cuda:0, cuda:1"),
    ):
        here, retriever = machine(*free), on_gpus(FaissIndex(opened.folder), len(free))
        for _ in range(2):
            same_up_to_ties(retriever.search(xq, 20, heard), expected)
        assert here.copies == [placement], "copied once"
        assert heard.said.pop() == f"searching the index {words}" and not heard.said


@needs_gpu_build
def test_a_search_that_is_too_deep_for_a_gpu_runs_on_the_cpu(embed, tmp_path, machine):
    vectors = embed(normal(2_400, DIM), [4] * 600, block_docs=150)
    opened = built(vectors, tmp_path / "index", "Flat", "none")[2]
    here, heard, xq = machine(80 * GIB), Heard(), normal(3, DIM, seed=1)
    retriever = on_gpus(opened, 1)
    assert retriever.search(xq, 513, heard)[1].shape == (3, 513)
    assert here.copies == []
    assert heard.said == [
        "searching the index on the CPU: a query finds 2,052 rows (depth x rows of a document), "
        "and FAISS finds at most 2,048 on a GPU"
    ]
    retriever.search(xq, 512, heard)
    retriever.search(xq, 513, heard)
    assert here.copies == [((0,), False, False)]
    assert heard.said[1:] == ["searching the index on cuda:0"]


def test_an_index_that_no_gpu_takes_is_searched_on_the_cpu(vectors, tmp_path, machine):
    opened = built(vectors, tmp_path / "index", "HNSW8", "none")[2]
    here, heard, xq = machine(80 * GIB), Heard(), normal(3, DIM, seed=1)
    assert np.array_equal(on_gpus(opened, 1).search(xq, 9, heard)[1], opened.top_docs(xq, 9)[1])
    assert here.copies == []
    assert heard.said == [
        "searching the index on the CPU: FAISS has no GPU version of IndexHNSWFlat"
    ]


def test_without_a_gpu_nothing_is_said(vectors, tmp_path):
    opened = built(vectors, tmp_path / "index", "HNSW8", "none")[2]
    retriever, heard = on_gpus(opened, 0), Heard()
    retriever.devices = [torch.device("cpu")]
    retriever.search(normal(3, DIM, seed=1), 9, heard)
    assert heard.said == []


@needs_gpu_build
def test_memory_that_runs_out_while_copying_leaves_the_search_to_the_cpu(
    vectors, tmp_path, machine
):
    opened = built(vectors, tmp_path / "index", "IVF6,Flat", "none")[2]
    machine(80 * GIB).fails = NO_MEMORY
    heard, xq = Heard(), normal(3, DIM, seed=1)
    assert np.array_equal(on_gpus(opened, 1).search(xq, 9, heard)[1], opened.top_docs(xq, 9)[1])
    assert heard.said == ["searching the index on the CPU: GPU memory ran out while it was copied"]


@needs_gpu_build
def test_memory_that_runs_out_while_searching_halves_the_queries(
    vectors, tmp_path, machine, monkeypatch
):
    opened = built(vectors, tmp_path / "index", "IVF6,Flat", "none")[2]
    xq, heard, tried = normal(30, DIM, seed=1), Heard(), []
    expected = opened.top_docs(xq, 20)
    here = machine(80 * GIB)

    class Narrow:
        """A copy that has memory for four queries."""

        def __init__(self, copied):
            self.copied, self.ntotal = copied, copied.ntotal

        def search(self, xq, k):
            tried.append(len(xq))
            if len(xq) > 4:
                raise NO_MEMORY
            return self.copied.search(xq, k)

    monkeypatch.setattr(
        faiss, "index_cpu_to_gpu_multiple_py", lambda *given: Narrow(here.copy(*given))
    )
    found = on_gpus(opened, 1).search(xq, 20, heard)
    assert np.array_equal(found[0], expected[0]) and np.array_equal(found[1], expected[1])
    assert tried[:5] == [30, 15, 8, 4, 4]
    assert heard.said == [
        "searching the index on cuda:0", "memory ran out: searching smaller batches of queries"
    ]  # fmt: skip


@needs_gpu_build
def test_many_codes_need_tables_of_16_bits(machine):
    here, said = machine(80 * GIB), []
    for codes in (48, 64):
        made = new_index(192, f"OPQ{codes},IVF4,PQ{codes}")
        faiss_gpu.searched(made, 10, [torch.device("cuda", 0)], said.append)
    assert here.copies == [((0,), False, False), ((0,), False, True)]
    assert said == [
        "searching the index on cuda:0",
        "searching the index on cuda:0, with scores from 16-bit floats",
    ]


@needs_gpu_build
def test_an_index_can_be_copied_before_the_first_search(vectors, tmp_path, machine):
    opened = built(vectors, tmp_path / "index", "IVF6,Flat", "none")[2]
    here, heard, retriever = machine(80 * GIB), Heard(), on_gpus(opened, 1)
    retriever.place(9, heard)
    assert here.copies == [((0,), False, False)]
    assert heard.said == ["searching the index on cuda:0"]
    retriever.search(normal(3, DIM, seed=1), 9, heard)
    assert len(here.copies) == len(heard.said) == 1


@needs_gpu_build
def test_other_probes_reach_the_copies(vectors, tmp_path, machine):
    opened = built(vectors, tmp_path / "index", "IVF6,Flat", "none")[2]
    machine(80 * GIB)
    retriever, xq = on_gpus(opened, 1), normal(30, DIM, seed=1)
    few = retriever.search(xq, 20)[1]
    opened.set_probes(6)
    all_lists = retriever.search(xq, 20)[1]
    assert not np.array_equal(few, all_lists)
    assert np.array_equal(all_lists, opened.top_docs(xq, 20)[1])


# ---------------------------------------------------------------- on a GPU


def gpu_count():
    return faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0


@pytest.mark.gpu
@pytest.mark.skipif(gpu_count() == 0, reason="needs a GPU that FAISS sees")
@pytest.mark.parametrize(
    "factory", ["Flat", "IVF16,Flat", "IVF16,PQ8", "OPQ8,IVF16,PQ8", "IVF16,SQ8", "IVF16,PQ64"]
)
def test_a_gpu_builds_and_searches(embed, tmp_path, factory):
    """An index that a GPU built opens on a CPU, and both find the same in it."""
    vectors = embed(normal(20_000, 64), block_docs=4_096)
    config = IndexConfig(factory=factory, gpus="0", probes=8 if "IVF" in factory else None)
    summary = index(vectors.folder, tmp_path / "index", config)
    assert summary["device"] == ("cpu" if factory == "Flat" else "cuda:0")
    opened, xq = FaissIndex(tmp_path / "index"), normal(500, 64, seed=1)
    D, positions = in_order(*opened.index.search(xq, 100))
    D_gpu, docs = on_gpus(opened, 1).search(xq, 100)
    close = 0.05 if "PQ64" in factory else 1e-3  # tables of 16 bits
    assert np.allclose(D_gpu, D, atol=close)
    assert (positions == docs).mean() > (0.9 if "PQ64" in factory else 0.99)


@pytest.mark.gpu
@pytest.mark.skipif(gpu_count() < 2, reason="needs two GPUs that FAISS sees")
@pytest.mark.parametrize("factory", ["Flat", "IVF16,Flat", "OPQ8,IVF16,PQ8"])
@pytest.mark.parametrize("is_sharded", [False, True])
def test_two_gpus_build_and_search(embed, tmp_path, factory, is_sharded, monkeypatch):
    vectors = embed(normal(20_000, 64), block_docs=4_096)
    index(vectors.folder, tmp_path / "index", IndexConfig(factory=factory, gpus="0-1"))
    opened, xq = FaissIndex(tmp_path / "index"), normal(500, 64, seed=1)
    expected = opened.top_docs(xq, 100)
    both = Placement((0, 1), is_sharded)
    monkeypatch.setattr(faiss_gpu, "place_search", lambda *facts: both)
    D, docs = on_gpus(opened, 2).search(xq, 100)
    assert np.allclose(D, expected[0], atol=1e-3)
    assert (docs == expected[1]).mean() > 0.99
