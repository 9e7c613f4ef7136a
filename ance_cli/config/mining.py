"""Drawing negatives from ranked candidates."""
# fmt: off

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ance_cli.config.data import MIN_REL, MinRel
from ance_cli.config.retrieval import (
    K1,
    PAIR_LENGTH,
    SEED,
    B,
    Bm25Engine,
    Depth,
    PairLength,
    Probes,
    Seed,
)
from ance_cli.config.sets import SamplerName
from ance_cli.config.setting import DATA, METHOD, Config, Setting, check

OverlapWith = Annotated[Path, Setting(
    "Earlier negatives file; the audit reports the overlap with it.", DATA, metavar="FILE")]
WithText = Annotated[bool, Setting(
    "Add the texts of queries and passages to each line, for reading.", DATA)]
Bm25Run = Annotated[Path, Setting(
    "TREC run to draw from instead of BM25's ranking.", DATA, metavar="FILE")]
CandidatesFolder = Annotated[Path, Setting(
    "Folder for the candidates (default: next to the output).", DATA, metavar="DIR",
    is_output=True)]
Previous = Annotated[Path, Setting(
    "Candidates of an earlier model, for the source previous.", DATA, metavar="DIR")]


@dataclass(frozen=True, kw_only=True)
class DrawRules(Config):
    """How negatives are drawn from ranked candidates. k1 and b are Anserini's defaults, a and b of
    SimANS those of its released code."""

    depth: Depth = 200
    negatives: Annotated[int, Setting(
        "Negatives to keep for each pair of query and positive; 0 = none.", METHOD,
        at_least=0)] = 20
    mix: Annotated[str, Setting(
        "Sources of negatives and the share of each, for instance ann:0.7,bm25:0.2,random:0.1. "
        "mine and refresh take ann, bm25, random, previous (candidates of the generation before), "
        "lookahead (neighbours of the positive) and given (negatives that came with the data); "
        "bm25-negatives takes bm25 or run, given and random.",
        METHOD)] = "ann"
    sampler: Annotated[SamplerName, Setting(
        "How negatives are drawn from a ranking. uniform: all ranks alike. top: best first. "
        "weighted: by exp(score / temperature). simans: close to the positive's score (SimANS).",
        METHOD)] = "uniform"
    sampler_temperature: Annotated[float, Setting(
        "Temperature of --sampler weighted.", METHOD, above=0)] = 1.0
    simans_a: Annotated[float, Setting(
        "a of --sampler simans: a negative's weight is exp(-a (score - positive's score - b)^2).",
        METHOD, at_least=0)] = 0.5
    simans_b: Annotated[float, Setting(
        "b of --sampler simans; a value above 0 prefers negatives that outscore the positive.",
        METHOD)] = 0.0
    range_min: Annotated[int, Setting("Best-ranked candidates to skip.", METHOD, at_least=0)] = 0
    range_max: Annotated[int, Setting(
        "Deepest rank to draw from (default: --depth).", METHOD, at_least=1)] | None = None
    min_score: Annotated[float, Setting("Lowest score of a negative.", METHOD)] | None = None
    max_score: Annotated[float, Setting("Highest score of a negative.", METHOD)] | None = None
    absolute_margin: Annotated[float, Setting(
        "Least distance of a negative's score below the lowest score of the query's positives.",
        METHOD)] | None = None
    relative_margin: Annotated[float, Setting(
        "Like --absolute-margin, as a fraction of the lowest positive's score (0.05 = 5 %).",
        METHOD)] | None = None
    answers: Annotated[bool, Setting(
        "Drop negatives that contain an answer of their query (OpenQA: the queries file has "
        "answers).", METHOD)] = False
    teacher: Annotated[str, Setting(
        "Cross-encoder folder that scores the drawn negatives, for distillation and for the "
        "audit's estimate of false negatives.", METHOD, metavar="DIR", shapes=False)] | None = None
    teacher_max: Annotated[float, Setting(
        "Replace negatives to which the teacher gives a higher probability of relevance than this.",
        METHOD, at_least=0, at_most=1)] | None = None
    teacher_pairs: Annotated[int, Setting(
        "Pairs that the teacher scores, drawn at random; 0 = all.", METHOD, at_least=0)] = 0
    pair_length: PairLength = PAIR_LENGTH
    engine: Bm25Engine = "lucene"
    k1: K1 = 0.9
    b: B = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher is not None:  # so that it names the same folder from everywhere
            object.__setattr__(self, "teacher", str(Path(self.teacher).absolute()))
        check(
            self.range_min < self.depth,
            f"--range-min {self.range_min} must be less than --depth {self.depth}",
        )
        check(
            self.range_max is None or self.range_max > self.range_min,
            f"--range-max {self.range_max} must be greater than --range-min {self.range_min}",
        )
        check(
            self.min_score is None or self.max_score is None or self.min_score <= self.max_score,
            "--min-score must not be greater than --max-score",
        )
        if self.teacher is None:
            check(
                self.teacher_max is None and not self.teacher_pairs,
                "--teacher-max and --teacher-pairs need --teacher",
            )
            check(self.pair_length == PAIR_LENGTH, "--pair-length needs --teacher")
        check(
            self.teacher_max is None or not self.teacher_pairs,
            "--teacher-max replaces negatives of every pair: it needs --teacher-pairs 0",
        )


@dataclass(frozen=True, kw_only=True)
class DrawConfig(DrawRules):
    """The rules, the seed of the draws, and which labels count as positives."""

    seed: Seed = SEED
    min_rel: MinRel = MIN_REL


_Margin = Annotated[float, Setting(
    "Not available for BM25: the positive has no score.", METHOD, is_flag=False)]


@dataclass(frozen=True, kw_only=True)
class Bm25Config(DrawConfig):
    """BM25 and the negatives drawn from it."""

    depth: Depth = 100
    mix: Annotated[str, Setting(
        "Sources of negatives and the share of each: bm25 (or run, with --run), given (negatives "
        "that came with the data) and random, for instance bm25:0.5,random:0.5.",
        METHOD)] = "bm25"
    absolute_margin: _Margin | None = None
    relative_margin: _Margin | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag, is_given in (
            ("--sampler simans", self.sampler == "simans"),
            ("--absolute-margin", self.absolute_margin is not None),
            ("--relative-margin", self.relative_margin is not None),
        ):
            check(
                not is_given,
                f"{flag} compares with the positive's score, which a BM25 ranking or a run does "
                "not have",
                hint="draw with a model: ance mine --mix bm25 --embeddings DIR",
            )


@dataclass(frozen=True, kw_only=True)
class MineRules(DrawRules):
    """The rules of mining with a model. The paper draws one negative per positive, uniformly from
    the top 200; 20 are kept for each pair, as in its released scripts, for the trainer to draw
    from."""

    probes: Probes | None = None
    audit_bm25: Annotated[bool, Setting(
        "Report in the audit how many negatives are in BM25's top 100.", METHOD)] = False


@dataclass(frozen=True, kw_only=True)
class MineConfig(MineRules, DrawConfig):
    """Negatives that the model ranks high."""
