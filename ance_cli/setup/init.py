"""`ance init`: checks a dataset folder and writes a settings file for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ance_cli.call import Call
from ance_cli.config import MIN_REL, RefreshConfig
from ance_cli.config.toml_file import FILE, SHARED
from ance_cli.errors import Mismatch
from ance_cli.formats import atomic
from ance_cli.formats.dataset import (
    locate,
    read_corpus,
    read_qrels,
    read_queries,
    splits_of,
)
from ance_cli.formats.summary import Summary
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.hub import origin
from ance_cli.setup.proposal import SEGMENTS, WORDS, Proposal, minutes_for, propose
from ance_cli.training.sizing import DataSample, shown_cut, warn_of_cut

TRAIN_SPLIT = "train"

_NEGATIVES, _VECTORS = "bm25.jsonl", "emb"
_WARMUP, _RUN = "runs/warmup", "runs/ance"


@dataclass(frozen=True)
class Table:
    """A table of the settings file."""

    name: str
    about: str
    """The comment above the table."""
    settings: Mapping[str, Any]
    flags: str
    """The names of further flags; those that are not among the settings, the file shows with their
    defaults as comments."""

    @property
    def offered(self) -> list[str]:
        return [name for name in self.flags.split() if name not in self.settings]


def tables(checkpoint: Checkpoint | None, proposal: Proposal | None) -> list[Table]:
    """The tables of a settings file with which the commands of the cycle need few flags.

    The loop starts from a checkpoint with a retrieval head; the warm-up starts from any other.
    Without a proposal, because there is nothing to train on, the flags keep their defaults.
    """
    is_warm = checkpoint is not None and checkpoint.has_head
    start = {} if checkpoint is None else {"ckpt": str(_place(checkpoint))}
    newest = {"ckpt": f"{_RUN}/latest"}
    recipe = "preset batch_size lr negatives_per_positive in_batch"
    drawing = "depth negatives mix sampler"
    recipe_of = warmup = loop = bm25 = mine = {}
    if proposal is not None:
        recipe_of = proposal.recipe
        warmup = {"steps": proposal.warmup}
        loop = {"refresh_every": proposal.refresh_every, "segments": SEGMENTS}
        bm25, mine = {"depth": proposal.bm25_depth}, {"depth": proposal.depth}
    return [
        Table(SHARED, "Settings of all commands.", {"data": "."}, "gpus threads min_rel seed"),
        Table(
            "bm25-negatives",
            "Negatives for the warm-up: ance bm25-negatives",
            {"output": _NEGATIVES, **bm25},
            f"{drawing} engine k1 b",
        ),
        Table(
            "train-segment",
            f"The warm-up: ance train-segment {_NEGATIVES} --ckpt ENCODER",
            {**({} if is_warm else start), "output": _WARMUP, **recipe_of, **warmup},
            f"{recipe} warmup_steps steps",
        ),
        Table(
            "loop",
            "Refreshes and training, alternating or at the same time: ance loop",
            {
                **(start if is_warm else {"ckpt": f"{_WARMUP}/latest"}),
                "output": _RUN,
                **recipe_of,
                **loop,
                **mine,
            },
            f"refresh_every segments {recipe} {drawing} mode keep patience dev_split measures",
        ),
        Table(
            "encode",
            "Vectors of the corpus from the run's newest checkpoint: ance encode",
            {**newest, "output": _VECTORS},
            "output_dtype cpu_workers",
        ),
        Table(
            "mine",
            "Negatives mined with these vectors: ance mine -o FILE",
            {**newest, "embeddings": _VECTORS, **mine},
            f"{drawing} range_min",
        ),
        Table(
            "search",
            "Rankings for a split, or hits for a question: ance search --split dev -o dev.trec",
            {**newest, "embeddings": _VECTORS},
            "depth",
        ),
    ]


def _place(checkpoint: Checkpoint) -> Path:
    """The path of a checkpoint for the settings; for a model of the hub, that of its local copy."""
    return checkpoint.path if origin(checkpoint.path) else checkpoint.shown.absolute()


_MARK = b"# Settings of the ance commands in this folder."
"""How a file begins that `ance init` wrote."""


def init(
    folder: Path,
    text_of: Callable[[Sequence[Table]], str],
    ckpt: Path | None = None,
    call: Call = Call(),
) -> Summary:
    """Write `ance.toml` into a dataset folder, with settings that fit its size and its texts, and
    count its documents, queries and labels.

    `text_of` renders the tables. The minutes of the summary are measured with the encoder; in a dry
    run they are reckoned. Raises `Mismatch` if the file exists and `call.force` is not set,
    or if `ance init` did not write it, and `BadInput` if the data is broken or `ckpt` is not a
    checkpoint.
    """
    checkpoint = None if ckpt is None else Checkpoint(ckpt)
    output = atomic.place_of(folder / FILE)
    if output.exists():
        if not output.read_bytes().startswith(_MARK):
            raise Mismatch(
                f"{output}: exists and was not written by ance init",
                hint="edit the file, or remove it first if you do not need it; --force does not",
            )
        if not call.force:
            raise Mismatch(f"{output}: exists", hint="edit the file, or replace it with --force")
    counted = survey(folder, call)
    proposal, plan = _proposed(folder, checkpoint, call) if _trains(counted) else (None, {})
    text = text_of(tables(checkpoint, proposal)).encode()
    if not call.dry_run:
        atomic.write_bytes(output, text)
    return {
        "output": str(output),
        "kind": "settings",
        **({"dry_run": True} if call.dry_run else {}),
        **counted,
        **({"plan": plan} if plan else {}),
        "next": _next_steps(folder, checkpoint),
    }


def _trains(counted: Mapping[str, Any]) -> bool:
    """Whether the dataset has something to train on."""
    return bool(counted["splits"].get(TRAIN_SPLIT, {}).get("positives"))


def _proposed(
    folder: Path, checkpoint: Checkpoint | None, call: Call
) -> tuple[Proposal, dict[str, Any]]:
    """The settings that fit the dataset, and what they come to."""
    sample = DataSample(locate(folder, TRAIN_SPLIT), MIN_REL, call.skipped)
    proposal, cut = propose(sample, checkpoint)
    warn_of_cut(cut, proposal.lengths, checkpoint, call.reporter)
    plan = {**proposal.facts, "cut": shown_cut(cut)}
    if checkpoint is None:
        return proposal, {**plan, "based_on": WORDS}
    if checkpoint.has_head:
        del plan["warm_up"]  # it is not among the next commands
    return proposal, {**plan, **minutes_for(proposal, sample, checkpoint, not call.dry_run)}


def survey(folder: Path, call: Call) -> dict[str, Any]:
    """Read all of a dataset; how many documents, queries and, for each split, labels it has."""
    dataset = locate(folder)
    doc_ids = {passage.doc_id for passage in read_corpus(dataset.corpus, call.skipped)}
    queries = read_queries(dataset.need("queries"), call.skipped)
    splits: dict[str, dict[str, int]] = {}
    for split in splits_of(folder):
        qrels = read_qrels(locate(folder, split).need("qrels"), queries, doc_ids, call.skipped)
        splits[split] = {
            "queries": len(qrels),
            "labels": sum(map(len, qrels.values())),
            "positives": sum(
                grade >= MIN_REL for judged in qrels.values() for grade in judged.values()
            ),
        }
    for split, what in (
        (TRAIN_SPLIT, "mining and training need --split, or --qrels FILE"),
        (RefreshConfig.dev_split, "refreshes measure nothing without --dev-split"),
    ):
        if split not in splits:
            call.reporter.warn(f"{folder}/qrels has no {split}.tsv: {what}")
    return {"documents": len(doc_ids), "queries": len(queries), "splits": splits}


def _next_steps(folder: Path, checkpoint: Checkpoint | None) -> list[str]:
    """The next commands to run."""
    encoder = " --ckpt ENCODER" if checkpoint is None else ""
    warmup = [
        "ance bm25-negatives",
        f"ance train-segment {_NEGATIVES}{encoder}",
    ]
    is_warm = checkpoint is not None and checkpoint.has_head
    return [f"cd {folder}", *([] if is_warm else warmup), "ance loop"]
