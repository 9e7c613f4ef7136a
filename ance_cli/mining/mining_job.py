"""A call of `ance mine`: what it reads and writes, its checks, and its plans."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ance_cli.call import Call
from ance_cli.config import DriverConfig, MineConfig, shaped_by
from ance_cli.errors import Mismatch, UsageProblem
from ance_cli.formats.dataset import Dataset
from ance_cli.formats.hashing import hash_file
from ance_cli.formats.jsonl import is_stream
from ance_cli.formats.manifest import read_manifest
from ance_cli.formats.negatives_file import candidates_name
from ance_cli.formats.plan import Plan
from ance_cli.mining.given import given_negatives
from ance_cli.mining.mix import ANN, BM25, GIVEN, LOOKAHEAD, PREVIOUS, RANDOM, Mix, parse_mix
from ance_cli.mining.negatives_output import NegativesFiles
from ance_cli.mining.rules import check_positive_scores, check_scores
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.retrieval.dense import VectorSource


@dataclass(frozen=True)
class MiningFiles(NegativesFiles):
    """The files of a call of `mine`, apart from its dataset, its checkpoint and its vectors."""

    candidates: Path | None = None
    """Folder for the candidates; None: next to the output."""
    previous: Path | None = None
    """Candidates of an earlier model, for the source `previous`."""
    bm25: Path | None = None
    """Folder that keeps BM25's rankings; None: the cache folder."""

    @property
    def candidates_folder(self) -> Path | None:
        """Where the candidates are written; None: nowhere, because the output is stdout."""
        if self.candidates is None and not is_stream(self.output):
            return candidates_name(self.output)
        return self.candidates


@dataclass(frozen=True)
class MiningJob:
    """Everything that the caller of `mine` asked for."""

    checkpoint: Checkpoint
    dataset: Dataset
    vectors: VectorSource
    files: MiningFiles
    config: MineConfig
    compute: DriverConfig
    call: Call

    @property
    def is_exact(self) -> bool:
        """Whether it searches embeddings, which also give scores of documents not found."""
        return self.vectors.kind == "embeddings"

    def checked_mix(self) -> Mix:
        """The mix; raises `UsageProblem` or `Mismatch` if the call cannot draw from it."""
        asked = shares_of(self.config, self.is_exact)
        if self.compute.ray and not self.is_exact:
            raise UsageProblem(
                "--ray searches embeddings, and an index is searched on one machine",
                hint="name --embeddings DIR, or drop --ray",
            )
        self.vectors.check(self.checkpoint, hash_file(self.dataset.corpus))
        previous = self.files.previous
        absent = (PREVIOUS,) if PREVIOUS in asked and previous is None else ()
        if list(absent) == list(asked):
            raise UsageProblem(
                "--mix previous: there are no earlier candidates to draw from",
                hint="name them with --previous DIR, or add another source: "
                "--mix ann:0.5,previous:0.5",
            )
        if previous is not None:
            self._check_previous(previous, asked)
        return Mix.without(asked, absent)

    def _check_previous(self, previous: Path, asked: dict[str, float]) -> None:
        if PREVIOUS not in asked:
            raise UsageProblem(
                f"--previous: --mix {self.config.mix} does not draw from it",
                hint="add the source previous: --mix ann:0.5,previous:0.5",
            )
        folder = self.files.candidates_folder
        if folder is not None and previous.resolve() == folder.resolve():
            raise UsageProblem(
                f"--previous {previous}: this call would write its own candidates there",
                hint="name another folder for this call's candidates with --candidates",
            )

    @property
    def _draws_given(self) -> bool:
        return GIVEN in shares_of(self.config, self.is_exact)

    def plans(self) -> tuple[Plan, Plan]:
        """The plans of the candidates and of the negatives."""
        config, dataset, files = self.config, self.dataset, self.files
        corpus = hash_file(dataset.corpus)
        reads = [self.checkpoint.path, self.vectors.path, *dataset.files, files.previous,
                 files.earlier, config.teacher]  # fmt: skip
        candidates = Plan(
            "candidates",
            files.candidates_folder or files.output,
            {
                "depth": config.depth,
                "dtype": self.compute.dtype,
                "probes": config.probes,
                "min_rel": config.min_rel,
            },
            {
                "vectors": self.vectors.fingerprint,
                "query_tower": self.checkpoint.tower_hash("query"),
                "corpus": corpus,
                "queries": hash_file(dataset.need("queries")),
                "qrels": hash_file(dataset.need("qrels")),
            },
            {"checkpoint": str(self.checkpoint.path)},
            reads,
        )
        previous = {"previous": _fingerprint_of(files.previous, corpus)} if files.previous else {}
        given = {"given": hash_file(given_negatives(dataset))} if self._draws_given else {}
        negatives = Plan(
            "negatives",
            files.output,
            {
                **shaped_by(config, MineConfig),
                "dtype": self.compute.dtype,
                "with_text": files.with_text,
                "checkpoint_step": self.checkpoint.settings.training_step,
            },
            {**candidates.inputs, **previous, **given, **files.inputs(config)},
            candidates.ran_with,
            reads,
        )
        return candidates, negatives


def shares_of(config: MineConfig, exact: bool) -> dict[str, float]:
    """The shares of --mix; raises `UsageProblem` if the config needs scores that its sources lack.

    Only embeddings (`exact`) give the scores of positives and of documents that the search did not
    find.
    """
    shares = parse_mix(config.mix, (ANN, BM25, PREVIOUS, LOOKAHEAD, GIVEN, RANDOM))
    if exact:
        return shares
    hint = "search the embeddings: replace --index by --embeddings DIR"
    check_positive_scores(config, hint)
    if LOOKAHEAD in shares:
        raise UsageProblem(
            "the source lookahead searches with the vectors of the positives, which cannot be read "
            "from an index",
            hint=hint,
        )
    check_scores(config, [source for source in shares if source != ANN], hint)
    return shares


def _fingerprint_of(previous: Path, corpus_hash: str) -> str:
    """The fingerprint of earlier candidates; raises `Mismatch` if their corpus is another one."""
    manifest = read_manifest(previous, "candidates")
    if manifest["inputs"].get("corpus") != corpus_hash:
        raise Mismatch(
            f"{previous}: its candidates are of another corpus than the dataset's",
            hint="name candidates that were mined from this corpus with --previous",
        )
    return str(manifest["fingerprint"])
