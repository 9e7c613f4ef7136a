"""Searching vectors and corpora, and what is made of runs."""
# fmt: off

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from ance_cli.config.encoding import Gpus
from ance_cli.config.sets import Engine, FusionMethod, Norm, SearchEngine
from ance_cli.config.setting import DATA, METHOD, RUNTIME, Config, Setting, check

SEED = 42
PAIR_LENGTH = 512
MEASURES = "RR@10 nDCG@10 R@100"

Seed = Annotated[int, Setting(
    "Seed of every random draw.", METHOD, at_least=0, at_most=2**63 - 1)]
Depth = Annotated[int, Setting("Documents ranked per query.", METHOD, at_least=1)]
Bm25Engine = Annotated[Engine, Setting(
    "BM25 implementation: lucene is the reference (pyserini), bm25s the fast one.", METHOD)]
K1 = Annotated[float, Setting("k1 of BM25.", METHOD, at_least=0)]
B = Annotated[float, Setting("b of BM25.", METHOD, at_least=0, at_most=1)]
Probes = Annotated[int, Setting(
    "Inverted lists that a query visits (IVF indexes; default: the index's own).", METHOD,
    at_least=1)]
_PAIR_LENGTH = Setting(
    "Tokens of query and passage together that a cross-encoder reads.", METHOD, at_least=8)
PairLength = Annotated[int, _PAIR_LENGTH]
Measures = Annotated[str, Setting(
    "Measures in the grammar of ir_measures, separated by spaces.", METHOD)]
Tag = Annotated[str, Setting("Text of the run's last column, one word.", METHOD)]
CrossEncoder = Annotated[Path, Setting(
    "Cross-encoder folder that scores each query with each passage.", DATA, metavar="DIR")]
IndexedFolder = Annotated[Path, Setting(
    "Embeddings folder written by `ance encode`.", DATA, positional=True)]
Questions = Annotated[list[str], Setting(
    "Questions to search for, instead of those of --queries or of a split.", DATA,
    positional=True)]
SearchedFolders = Annotated[list[Path], Setting(
    "Embeddings folders (searched exactly) and index folders.", DATA, positional=True)]
Refill = Annotated[bool, Setting(
    "Bring an index up to date with changed embeddings: keep its training (centroids, codes), fill "
    "in their present vectors.", RUNTIME)]
Trials = Annotated[int, Setting("Most queries to time.", RUNTIME, at_least=1)]


def parse_widths(flag: str, text: str) -> list[int]:
    """The widths in the text of a flag; `UsageProblem` if it has something else."""
    try:
        widths = [int(part) for part in text.split(",")]
    except ValueError:
        widths = [0]
    check(
        min(widths) > 0 and len(set(widths)) == len(widths),
        f"{flag} {text!r}: expected different numbers of dimensions, for instance 256,128,64",
    )
    return widths


def widths_of(flag: str, text: str, dim: int) -> list[int]:
    """The full width `dim` of some vectors, then the smaller ones in the text, largest first."""
    widths = parse_widths(flag, text)
    check(max(widths) <= dim, f"{flag} {text}: the vectors have only {dim} dimensions")
    check(min(widths) < dim, f"{flag} {text}: the vectors have {dim} dimensions as they are")
    return sorted({dim, *widths}, reverse=True)


@dataclass(frozen=True, kw_only=True)
class IndexConfig(Config):
    """A FAISS index over embeddings."""

    factory: Annotated[str, Setting(
        "faiss factory string, for instance Flat, HNSW32, IVF1024,Flat or OPQ16,IVF1024,PQ16.",
        METHOD)] = "Flat"
    train_rows: Annotated[int, Setting(
        "Most rows that a trainable index learns from.", METHOD, at_least=1)] = 262_144
    seed: Seed = SEED
    probes: Probes | None = None
    gpus: Gpus = "all"
    recall_check: Annotated[int, Setting(
        "Sampled passages to search with, to report recall against exact search; 0 = none.", METHOD,
        at_least=0, shapes=False)] = 0


@dataclass(frozen=True, kw_only=True)
class TaggedConfig(Config):
    """A config with a `tag`, which is one column of a run."""

    tag: Tag = "ance"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.tag.split() == [self.tag], "--tag must be one word: it is a column of the run")


@dataclass(frozen=True, kw_only=True)
class SearchConfig(TaggedConfig):
    """Retrieval to a run."""

    engine: Annotated[SearchEngine, Setting(
        "dense searches with the checkpoint; lucene and bm25s search with BM25.", METHOD)] = "dense"
    depth: Depth = 100
    k1: K1 = 0.9
    b: B = 0.4
    probes: Probes | None = None
    rescore: Annotated[Path, Setting(
        "Embeddings folder whose vectors give the found documents their scores and order: exact "
        "ones, where those that are searched were rounded or are in a lossy index.", DATA,
        metavar="DIR", shapes=False)] | None = None
    rescore_depth: Annotated[int, Setting(
        "Documents per query that --rescore takes from the first search (default: 4 times "
        "--depth).", METHOD, at_least=1)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.rescore is None or self.engine == "dense",
              f"--engine {self.engine} has no vectors that --rescore could give other scores")
        check(self.rescore is not None or self.rescore_depth is None,
              "--rescore-depth needs --rescore")
        check(self.searched_depth >= self.depth,
              f"--rescore-depth {self.rescore_depth} is less than --depth {self.depth}")

    @property
    def searched_depth(self) -> int:
        """Documents per query that the search itself has to find."""
        if self.rescore is None:
            return self.depth
        return self.rescore_depth or 4 * self.depth


@dataclass(frozen=True, kw_only=True)
class BenchSearchConfig(Config):
    """Latencies of searches, and measures of cut vectors."""

    depth: Depth = 100
    trials: Trials = 200
    widths: Annotated[str, Setting(
        "Also measure the embeddings cut to their first dimensions: at these widths, for instance "
        "256,128,64, and the full one.", METHOD, metavar="N,N")] | None = None
    measures: Measures = MEASURES

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.widths is not None:
            parse_widths("--widths", self.widths)
        check(self.widths is not None or self.measures == MEASURES, "--measures needs --widths")


@dataclass(frozen=True, kw_only=True)
class RerankConfig(TaggedConfig):
    """New scores for the top of a run."""

    depth: Depth = 100
    pair_length: Annotated[int, replace(_PAIR_LENGTH, shapes=False)] = PAIR_LENGTH
    """Among the inputs: it is part of the cross-encoder's fingerprint."""


@dataclass(frozen=True, kw_only=True)
class FuseConfig(TaggedConfig):
    """One run out of several. k = 60 is Cormack et al.'s."""

    method: Annotated[FusionMethod, Setting(
        "rrf sums reciprocal ranks, sum adds up scores.", METHOD)] = "rrf"
    rrf_k: Annotated[int, Setting(
        "k of --method rrf: a document gets 1 / (k + rank).", METHOD, at_least=0)] = 60
    norm: Annotated[Norm, Setting(
        "How --method sum normalises each list's scores first.", METHOD)] = "minmax"
    weights: Annotated[str, Setting(
        "Weight of each run, in their order (default: 1 each).", METHOD,
        metavar="A,B")] | None = None
    depth: Depth = 1000

    def weights_of(self, num_runs: int) -> list[float]:
        """One finite weight for each run; `UsageProblem` if --weights gives something else."""
        if self.weights is None:
            return [1.0] * num_runs
        try:
            weights = [float(part) for part in self.weights.split(",")]
        except ValueError:
            weights = []
        check(
            len(weights) == num_runs and all(map(math.isfinite, weights)) and any(weights),
            f"--weights {self.weights!r}: expected {num_runs} numbers, one for each run and not "
            f"all 0, for instance {','.join(['1'] * num_runs)}",
        )
        return weights
