"""Measuring runs, reading passages, and looking at a run or a model."""
# fmt: off

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ance_cli.config.data import MIN_REL, MinRel
from ance_cli.config.mining import DrawConfig
from ance_cli.config.retrieval import (
    K1,
    SEED,
    B,
    Bm25Engine,
    Depth,
    Probes,
    Seed,
)
from ance_cli.config.setting import DATA, METHOD, RUNTIME, Config, Setting
from ance_cli.config.training import Loss, Margin, Scale

PerQuery = Annotated[Path, Setting("TSV file for each query's values.", METHOD, metavar="FILE",
    is_output=True)]
IgnoreIdenticalIds = Annotated[bool, Setting(
    "Leave a document with the query's own id out of each run, as BEIR does: in ArguAna and Quora "
    "the queries are documents.", METHOD)]
EvalCases = Annotated[int, Setting(
    "Queries to show that win most, and as many that lose most, against the first run by the "
    "first of --measures, with the texts of --data; 0 = none.", METHOD, at_least=0)]
Mteb = Annotated[list[str], Setting(
    "Task or benchmark of the package mteb, such as NanoBEIR, on which --ckpt is measured instead "
    "of runs (repeatable).", METHOD, metavar="TASK")]
ReportCases = Annotated[int, Setting(
    "Queries to show that win most, and as many that lose most, in the best generation against "
    "the first; 0 = none.", METHOD, flags=("--cases",), at_least=0)]
REPORT_CASES = 5
Reader = Annotated[Path, Setting(
    "Reader folder: DPR's reader, another extractive model, or a generative model.", DATA,
    metavar="DIR")]
History = Annotated[Path, Setting(
    "Run folder whose training curve and changes of negatives are added.", DATA, flags=("--run",),
    metavar="DIR")]
Figures = Annotated[Path, Setting("Folder for figures, as PNG and SVG.", DATA, metavar="DIR",
    is_output=True)]
Against = Annotated[list[Path], Setting(
    "Run folder, or TREC run of the dev queries, to compare the run with (repeatable).", METHOD,
    metavar="PATH")]
Watch = Annotated[bool, Setting(
    "Refresh the view until the loop has finished or Ctrl-C.", RUNTIME, flags=("--watch", "-w"))]
Interval = Annotated[float, Setting("Seconds between two views of --watch.", RUNTIME, above=0,
    at_most=86_400)]


@dataclass(frozen=True, kw_only=True)
class ReadConfig(Config):
    """Answers from the top of a run."""

    depth: Depth = 20
    answer_tokens: Annotated[int, Setting(
        "Longest answer in tokens; 0 = the reader's own: 10 (DPR), 30 (other extractive readers), "
        "32 (generative readers).", METHOD, at_least=0)] = 0


@dataclass(frozen=True, kw_only=True)
class DiagnoseConfig(Config):
    """What `ance diagnose` analyses. The paper's test negatives are the top 100 (ICLR Sec. 6.3)."""

    sample: Annotated[int, Setting(
        "Queries to analyse, each with one of its positives.", METHOD, at_least=1)] = 32
    draws: Annotated[int, Setting(
        "Negatives that each sampler draws per pair, whose gradients are computed.", METHOD,
        at_least=2, at_most=10_000)] = 8
    depth: Depth = 100
    batch_size: Annotated[int, Setting(
        "Queries per batch, for the batch-level figures.", METHOD, at_least=2,
        at_most=65_536)] = 32
    suspects: Annotated[int, Setting(
        "Unlabelled documents to show, most similar to positives first.", METHOD, at_least=0)] = 10
    loss: Loss = "nll"
    margin: Margin = 1.0
    scale: Scale | None = None
    engine: Bm25Engine = "lucene"
    k1: K1 = 0.9
    b: B = 0.4
    seed: Seed = SEED
    min_rel: MinRel = MIN_REL
    probes: Probes | None = None

    @property
    def ranking(self) -> DrawConfig:
        """The part that BM25 and the labels need."""
        return DrawConfig(
            depth=self.depth, engine=self.engine, k1=self.k1, b=self.b, min_rel=self.min_rel
        )
