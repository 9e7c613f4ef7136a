"""FAISS indexes in pyserini's layout, built from any factory string."""

import json
import os
import re
import shutil

import faiss
import numpy as np
import pytest

from ance_cli.call import Call
from ance_cli.config import IndexConfig
from ance_cli.errors import BadInput, Mismatch, UsageProblem
from ance_cli.formats.embeddings import write_ids
from ance_cli.formats.manifest import read_manifest
from ance_cli.retrieval.exact import exact_top_docs, exact_top_k, in_order
from ance_cli.retrieval.faiss_index import FaissIndex, build_index, new_index, row_names
from ance_cli.retrieval.index import index
from tests.world import tree

DIM = 8


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def vectors(embed):
    return embed(normal(400, DIM), block_docs=150)


@pytest.fixture
def publish(tmp_path):
    def made(embeddings, factory="Flat", **config):
        folder = tmp_path / "index"
        index(embeddings.folder, folder, IndexConfig(factory=factory, **config))
        return FaissIndex(folder)

    return made


# ---------------------------------------------------------------- searching


def test_flat_finds_what_the_exact_search_finds(vectors, publish):
    xq = normal(20, DIM, seed=1)
    D, positions = in_order(*publish(vectors).search(xq, 30))
    D_exact, exact = exact_top_k(xq, vectors, 30)
    assert np.array_equal(positions, exact)
    assert np.allclose(D, D_exact, atol=1e-5)


def test_an_inverted_file_that_visits_every_list_is_exact(vectors, publish):
    built = publish(vectors, "IVF5,Flat")
    xq = normal(20, DIM, seed=1)
    exact = exact_top_k(xq, vectors, 30)[1]
    few = built.search(xq, 30)[1]
    assert not np.array_equal(few, exact), "one list of five cannot hold all"
    built.set_probes(5)
    assert np.array_equal(in_order(*built.search(xq, 30))[1], exact)


def test_a_graph_finds_most(vectors, publish):
    xq = normal(20, DIM, seed=1)
    found = publish(vectors, "HNSW32").search(xq, 10)[1]
    exact = exact_top_k(xq, vectors, 10)[1]
    shared = [len({*a} & {*b}) for a, b in zip(found.tolist(), exact.tolist(), strict=True)]
    assert np.mean(shared) > 9


def test_more_places_than_rows_stay_empty(embed, publish):
    found = publish(embed(normal(5, DIM))).search(normal(2, DIM, seed=1), 8)[1]
    assert sorted(found[0, :5].tolist()) == [0, 1, 2, 3, 4]
    assert (found[:, 5:] == -1).all()


def test_probes_of_an_index_without_lists_are_refused(vectors, publish):
    built = publish(vectors)
    built.set_probes(None)
    with pytest.raises(UsageProblem) as caught:
        built.set_probes(3)
    assert caught.value.what == (
        f"--probes does not apply to {built.folder}: it has no inverted lists"
    )


# ---------------------------------------------------------------- building


@pytest.mark.parametrize("factory", ["Nonsense", "", "IVF4", "PQ3", "IVF99999999999,Flat"])
def test_a_string_that_faiss_does_not_know_is_refused(factory):
    with pytest.raises(UsageProblem) as caught:
        new_index(DIM, factory)
    assert caught.value.what.startswith(
        f"--factory {factory!r} is not a faiss factory string for 8 dimensions ("
    )
    assert "\n" not in caught.value.what
    assert caught.value.hint.startswith("use for instance Flat, IVF1024,Flat, HNSW32")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("factory", "needed"),
    [
        ("IVF100,Flat", "100"),
        ("PQ4", "256"),
        ("OPQ4,IVF4,PQ4", "256"),
        ("OPQ4,IVF4,Flat", "256"),
        ("PCA4,IVF30,SQ8", "30"),
        ("IVF1024_HNSW8,Flat", "1,024"),
        ("IVF21,Flat,RFlat", "21"),
        ("PQ4x5", "32"),
    ],
)
def test_too_few_rows_to_train_are_refused(embed, factory, needed):
    embeddings = embed(normal(20, DIM))
    with pytest.raises(BadInput) as caught:
        build_index(embeddings, IndexConfig(factory=factory, train_rows=1000))
    assert caught.value.what == (
        f"{embeddings.folder}: 20 rows are too few to train {factory!r} "
        f"(it takes at least {needed})"
    )
    assert caught.value.hint == "use --factory Flat, or fewer centroids"


def test_after_a_refusal_another_index_can_be_built_there(vectors, publish):
    with pytest.raises(BadInput, match="400 rows are too few"):
        publish(vectors, "IVF401,Flat")
    assert publish(vectors, "Flat").index.ntotal == 400


@pytest.mark.parametrize(
    "factory", ["IVF0,Flat", "HNSW0", "HNSW1", "IVF4_HNSW0,Flat", "PQ16x0", "RQ0x8", "Flat\0"]
)
def test_numbers_for_which_faiss_ends_the_process_are_refused(factory):
    with pytest.raises(UsageProblem, match="numbers must be at least 1, that of HNSW at least 2"):
        new_index(DIM, factory)


@pytest.mark.parametrize("factory", ["IDMap,Flat", "NSG32"])
def test_an_index_that_cannot_be_filled_is_refused(embed, factory):
    with pytest.raises((UsageProblem, BadInput), match=re.escape(factory)):
        build_index(embed(normal(20, DIM)), IndexConfig(factory=factory, train_rows=1000))


def test_the_training_sample_is_bounded_and_seeded(vectors):
    def built(train_rows, seed):
        config = IndexConfig(factory="IVF4,Flat", train_rows=train_rows, seed=seed)
        return bytes(faiss.serialize_index(build_index(vectors, config)))

    assert built(200, 1) == built(200, 1)
    assert built(200, 1) != built(200, 2)
    assert built(400, 1) == built(100_000, 1), "no more rows than there are"
    with pytest.raises(BadInput, match=": 3 rows are too few to train 'IVF4,Flat'") as caught:
        built(3, 1)
    assert caught.value.hint == "train on more rows with --train-rows"


def test_progress_hears_of_every_row_once(vectors):
    heard = []
    build_index(vectors, IndexConfig(train_rows=1), heard.append)
    assert heard == [150, 150, 100]


# ---------------------------------------------------------------- recall


@pytest.mark.parametrize("row_counts", [[1] * 300, [1, 3, 2] * 50], ids=["FirstP", "MaxP"])
def test_recall_against_its_twin(embed, tmp_path, row_counts):
    vectors = embed(normal(300, DIM), row_counts, block_docs=60)
    config = IndexConfig(factory="IVF8,Flat", recall_check=25, seed=3)
    stats = index(vectors.folder, tmp_path / "index", config)
    rows = np.sort(np.random.Generator(np.random.Philox(key=3)).choice(300, 25, replace=False))
    depth = 100
    exact = exact_top_docs(vectors.vectors[rows], vectors, depth)[1]
    found = FaissIndex(tmp_path / "index").top_docs(vectors.vectors[rows], depth)[1]
    assert stats["recall_queries"] == 25
    for at in (10, 100):
        shares = [
            len({*a} & {*b}) / at
            for a, b in zip(found[:, :at].tolist(), exact[:, :at].tolist(), strict=True)
        ]
        assert stats[f"recall@{at}"] == round(np.mean(shares), 4)
    assert 0 < stats["recall@100"] < 0.9


def test_recall_of_an_exact_index_is_whole(embed, tmp_path):
    vectors = embed(normal(20, DIM))
    stats = index(vectors.folder, tmp_path / "index", IndexConfig(recall_check=50))
    assert {name: stats[name] for name in stats if "recall" in name} == {
        "recall_queries": 20, "recall@10": 1.0, "recall@20": 1.0,
    }  # fmt: skip
    manifest = read_manifest(tmp_path / "index", "index")
    assert manifest["stats"]["recall@10"] == 1.0


def test_recall_of_an_index_that_is_there_is_measured_once(vectors, tmp_path):
    first = index(vectors.folder, tmp_path / "index", IndexConfig(factory="IVF5,Flat"))
    assert "recall@10" not in first
    for queries in (30, 40):
        found = index(
            vectors.folder,
            tmp_path / "index",
            IndexConfig(factory="IVF5,Flat", recall_check=queries),
        )
        assert found["up_to_date"]
        assert found["recall_queries"] == 30
    stats = read_manifest(tmp_path / "index", "index")["stats"]
    assert stats["recall@10"] == found["recall@10"] < 1
    assert stats["rows"] == 400


def test_the_command_reports_recall(vectors, ance):
    command = ("index", vectors.folder, "-o", "index", "--factory", "IVF5,Flat", "--probes", 5)
    found = json.loads(ance(*command, "--recall-check", 9, "--json").stdout)
    assert (found["recall_queries"], found["recall@10"], found["recall@100"]) == (9, 1.0, 1.0)
    refused = ance("index", vectors.folder, "-o", "other", "--recall-check", -1, code=2)
    assert "--recall-check must not be negative" in refused.stderr


def test_probes_are_the_default_of_the_index(vectors, publish):
    xq = normal(20, DIM, seed=1)
    built = publish(vectors, "OPQ4,IVF5,Flat", probes=5, recall_check=20)
    assert read_manifest(built.folder, "index")["stats"]["recall@100"] == 1
    _, exact = exact_top_docs(xq, vectors, 30)
    assert np.array_equal(built.top_docs(xq, 30)[1], exact)
    built.set_probes(1)
    assert not np.array_equal(built.top_docs(xq, 30)[1], exact)


def test_probes_without_lists_are_refused_before_any_work(vectors, publish, tmp_path):
    there = sorted(tmp_path.iterdir())
    with pytest.raises(UsageProblem) as caught:
        publish(vectors, "HNSW8", probes=4)
    assert sorted(tmp_path.iterdir()) == there
    assert caught.value.what == (
        "--probes does not apply to --factory 'HNSW8': it has no inverted lists"
    )


# ---------------------------------------------------------------- names of rows


def test_an_index_folder_is_laid_out_as_pyserini_reads_it(vectors, publish):
    folder = publish(vectors).folder
    opened = faiss.read_index(str(folder / "index"))
    names = (folder / "docid").read_text().splitlines()
    assert opened.ntotal == len(names) == 400
    assert opened.metric_type == faiss.METRIC_INNER_PRODUCT
    assert names == vectors.ids
    assert sorted(path.name for path in folder.iterdir()) == ["docid", "index", "manifest.json"]


def test_rows_of_a_document_are_numbered(embed, publish):
    ids = ["a", "b#1", "c#", "#d"]
    embeddings = embed(normal(8, DIM), [1, 3, 2, 2], ids=ids)
    names = ["a#0", "b#1#0", "b#1#1", "b#1#2", "c##0", "c##1", "#d#0", "#d#1"]
    assert row_names(embeddings) == names
    built = publish(embeddings)
    assert (built.folder / "docid").read_text().splitlines() == names
    assert built.max_segments == 3
    assert built.ids == ids
    assert built.doc_of_row.tolist() == embeddings.doc_of_row().tolist()


def test_the_only_row_of_a_document_has_its_name(embed, publish):
    embeddings = embed(normal(3, DIM), ids=["a#0", "b", "c#1"])
    built = publish(embeddings)
    assert built.ids == ["a#0", "b", "c#1"]
    assert built.doc_of_row.tolist() == [0, 1, 2]


def test_an_index_tells_where_its_vectors_are_from(vectors, publish):
    built = publish(vectors)
    assert built.tower == vectors.tower == "t"
    assert built.manifest["inputs"]["embeddings"] == vectors.fingerprint
    assert built.fingerprint == built.manifest["fingerprint"]


# ---------------------------------------------------------------- refusing


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "HNSW8"])
@pytest.mark.parametrize("left", [0, 50, 0.9])
def test_an_index_cut_short_is_refused(vectors, publish, factory, left):
    folder = publish(vectors, factory).folder
    path = folder / "index"
    os.truncate(path, left if isinstance(left, int) else int(left * path.stat().st_size))
    with pytest.raises(BadInput) as caught:
        FaissIndex(folder)
    assert caught.value.what == f"{path}: is damaged: its hash differs from the one in the manifest"
    assert caught.value.hint == "build it again with: ance index --force"


def test_names_that_disagree_with_the_rows_are_refused(vectors, publish):
    folder = publish(vectors).folder
    write_ids(folder / "docid", vectors.ids[:-1])
    with pytest.raises(BadInput) as caught:
        FaissIndex(folder)
    assert caught.value.what == (f"{folder}/docid: 399 ids for 400 vectors: rows and ids disagree")


def test_an_index_without_a_manifest_is_refused(vectors, publish):
    folder = publish(vectors).folder
    (folder / "manifest.json").unlink()
    with pytest.raises(Mismatch, match=r"index: has no manifest\.json"):
        FaissIndex(folder)
    shutil.rmtree(folder)
    with pytest.raises(BadInput, match="index: no such index"):
        FaissIndex(folder)


# ---------------------------------------------------------------- other embeddings


@pytest.fixture
def corpora(embed):
    """Three embeddings of one tower, of 400, 350 and 300 documents."""
    return [
        embed(normal(rows, DIM, seed=rows), block_docs=90, corpus=f"corpus of {rows}",
              ids=[f"d{place}" for place in range(400 - rows, 400)])
        for rows in (400, 350, 300)
    ]  # fmt: skip


def update(embeddings, folder, factory, **options):
    return index(embeddings.folder, folder, IndexConfig(factory=factory), append=True, **options)


def centroids(folder):
    opened = FaissIndex(folder)  # owns what is extracted
    lists = faiss.extract_index_ivf(opened.index)
    return lists.quantizer.reconstruct_n(0, lists.nlist)


@pytest.mark.parametrize("factory", ["IVF5,Flat", "PCA4,IVF5,SQ8", "IVF5,PQ2x4"])
def test_an_index_that_has_learned_is_filled_again(corpora, publish, factory):
    """Its twin: an index that learns from the first embeddings, and gets the rows of the others."""
    first, second, third = corpora
    folder = publish(first, factory).folder
    learned = centroids(folder)
    for other in (second, third):
        assert not update(other, folder, factory)["up_to_date"]
        twin = build_index(first, IndexConfig(factory=factory))
        twin.reset()
        twin.add(other.rows(np.arange(other.num_rows)))
        assert (folder / "index").read_bytes() == bytes(faiss.serialize_index(twin))
        assert np.array_equal(centroids(folder), learned)
        found = FaissIndex(folder)
        assert found.ids == other.ids
        assert found.manifest["inputs"] == {
            "tower": "t", "corpus": f"corpus of {other.num_rows}",
            "embeddings": other.fingerprint, "trained_on": first.fingerprint,
        }  # fmt: skip
        assert update(other, folder, factory)["up_to_date"]


def test_a_filled_index_finds_the_rows_that_there_are_now(corpora, publish):
    folder = publish(corpora[0], "IVF5,Flat").folder
    update(corpora[1], folder, "IVF5,Flat")
    found, xq = FaissIndex(folder), normal(20, DIM, seed=1)
    found.set_probes(5)
    exact = exact_top_k(xq, corpora[1], 30)[1]
    assert np.array_equal(in_order(*found.search(xq, 30))[1], exact)


def test_an_index_that_learned_elsewhere_is_not_what_a_new_one_would_be(corpora, publish, tmp_path):
    first, second, _ = corpora
    folder = publish(first, "IVF5,Flat").folder
    new = (folder / "index").read_bytes()
    update(second, folder, "IVF5,Flat")
    with pytest.raises(Mismatch, match='trained_on ".*" -> null'):
        publish(second, "IVF5,Flat")
    update(first, folder, "IVF5,Flat")
    assert (folder / "index").read_bytes() == new
    assert index(first.folder, folder, IndexConfig(factory="IVF5,Flat"))["up_to_date"]


@pytest.mark.parametrize("factory", ["Flat", "HNSW8"])
def test_an_index_that_learns_nothing_is_built_as_a_new_one(corpora, publish, tmp_path, factory):
    folder = publish(corpora[0], factory).folder
    update(corpora[1], folder, factory)
    assert index(corpora[1].folder, folder, IndexConfig(factory=factory))["up_to_date"]
    found, xq = FaissIndex(folder), normal(20, DIM, seed=1)
    assert found.ids == corpora[1].ids
    built = build_index(corpora[1], IndexConfig(factory=factory))
    assert np.array_equal(found.search(xq, 5)[1], built.search(xq, 5)[1])


def test_without_an_index_append_builds_one(corpora, publish, tmp_path):
    update(corpora[0], tmp_path / "other", "IVF5,Flat")
    folder = publish(corpora[0], "IVF5,Flat").folder
    for name in ("index", "docid"):
        assert (folder / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    assert update(corpora[0], folder, "IVF5,Flat")["up_to_date"]


def test_an_index_of_other_settings_is_not_filled(corpora, publish):
    folder = publish(corpora[0], "IVF5,Flat").folder
    before = tree(folder)
    with pytest.raises(Mismatch, match='factory "IVF5,Flat" -> "IVF6,Flat"') as caught:
        update(corpora[1], folder, "IVF6,Flat")
    assert "--force instead of --append" in caught.value.hint
    with pytest.raises(UsageProblem, match="--append with --force"):
        update(corpora[1], folder, "IVF5,Flat", call=Call(force=True))
    assert tree(folder) == before


def test_a_damaged_index_is_not_filled(corpora, publish):
    folder = publish(corpora[0], "IVF5,Flat").folder
    data = bytearray((folder / "index").read_bytes())
    data[-9] ^= 1
    (folder / "index").write_bytes(data)
    before = tree(folder)
    with pytest.raises(BadInput, match="index: is damaged"):
        update(corpora[1], folder, "IVF5,Flat")
    assert tree(folder) == before and not list(folder.parent.glob(".*"))


# ---------------------------------------------------------------- neighbours


@pytest.mark.java
@pytest.mark.slow
def test_pyserini_opens_the_folder(vectors, publish, monkeypatch):
    """Its searcher finds what we find; it asks for an API key and a running JVM on import."""
    from ance_cli.retrieval import bm25

    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    bm25.start_java()
    from pyserini.search.faiss import FaissSearcher

    class Fixed:
        def encode(self, text, **_):
            return query[0]

    query = normal(1, DIM, seed=9)
    ours = publish(vectors)
    _, positions = ours.search(query, 5)
    hits = FaissSearcher(str(ours.folder), Fixed()).search("a question", k=5)
    assert [hit.docid for hit in hits] == [vectors.ids[place] for place in positions[0]]
