"""`ance merge`: several datasets as one, for multi-task training as in the paper's OpenQA runs.

The output is an ordinary dataset folder, so every other command works on it. Ids become `NAME/ID`,
which keeps the datasets apart: mining drops candidates from other datasets than the query's own,
because a passage of another collection can answer the query without having a label for it.
`datasets.json` has each dataset's share of the training pairs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ance_cli.call import Call, SkippedLines
from ance_cli.config import MIN_REL
from ance_cli.errors import BadInput, UsageProblem
from ance_cli.formats import lease
from ance_cli.formats.dataset import locate, read_corpus, read_qrels, read_query_records, splits_of
from ance_cli.formats.hashing import hash_file, hash_json
from ance_cli.formats.jsonl import refuse_stdio
from ance_cli.formats.labels import LABELS_HEADER
from ance_cli.formats.merged import merged_id, write_shares
from ance_cli.formats.plan import Plan
from ance_cli.formats.summary import Summary, planned, summary_of

TRAIN = "train"
"""The split whose pairs determine the shares if no shares are given."""


@dataclass(frozen=True)
class Source:
    """One dataset to merge, and its share of the training pairs (None: not given)."""

    folder: Path
    share: float | None = None

    @property
    def name(self) -> str:
        """The folder's name, also if the path is `.` or `..`."""
        return os.path.basename(os.path.abspath(self.folder))


def parse_source(text: str) -> Source:
    """`DIR` or `DIR:SHARE`; a folder whose name contains a colon is taken literally."""
    folder, colon, share = text.rpartition(":")
    if not colon or Path(text).exists():
        return Source(Path(text))
    try:
        value = float(share)
    except ValueError:
        value = math.nan
    if not 1e-9 <= value <= 1e9:
        raise UsageProblem(
            f"{text!r}: no such folder, and {share!r} is not a share",
            hint=f"give a number from 1e-9 to 1e9 as share, for instance {folder}:0.5",
        )
    return Source(Path(folder), value)


@dataclass(frozen=True)
class _Files:
    """The files of a dataset folder."""

    corpus: Path
    queries: Path
    labels: dict[str, Path]
    """split -> file"""

    @property
    def fingerprint(self) -> str:
        """Hash of the content of all files and of the names of the splits."""
        labels = {split: hash_file(path) for split, path in self.labels.items()}
        return hash_json([hash_file(self.corpus), hash_file(self.queries), labels])


def merge(
    sources: Sequence[Source],
    output: Path,
    call: Call = Call(),
) -> Summary:
    """Merge dataset folders into one.

    If no shares are given, each dataset's share is its fraction of the train pairs.
    """
    refuse_stdio(output, "a dataset folder")
    _check_shares(sources)
    _check_folders(sources, output)
    parts = {source.name: _files_in(source.folder) for source in sources}
    given = [source.share for source in sources if source.share is not None]
    plan = _plan(sources, parts, given, output)
    if manifest := plan.published(call.force):
        return summary_of(manifest, output, up_to_date=True)
    if call.dry_run:
        return planned(plan.kind, output, plan.shaped_by)
    counts: dict[str, dict[str, int]] = {}
    with lease.of_output(output):
        with (
            plan.new_partial() as folder,
            call.reporter.task("merging", len(parts), "dataset") as bar,
        ):
            for name, files in parts.items():
                counts[name] = _append(folder, name, files, call.skipped)
                bar.advance()
            shares = _shares(counts, given)
            write_shares(folder, shares)
        for name, share in shares.items():
            if share and not counts[name]["train_pairs"]:
                call.reporter.warn(f"{name} has a share of {share:g} and no {TRAIN} pairs")
        stats = {name: {"share": shares[name], **counts[name]} for name in parts}
        manifest = plan.publish_folder({}, {"datasets": stats})
    return summary_of(manifest, output, up_to_date=False)


def _plan(
    sources: Sequence[Source], parts: dict[str, _Files], given: list[float], output: Path
) -> Plan:
    shaped_by = {
        "datasets": list(parts),
        "shares": [share / sum(given) for share in given] or "train pairs",
    }
    inputs = {name: files.fingerprint for name, files in parts.items()}
    ran_with = {source.name: str(source.folder.resolve()) for source in sources}
    return Plan("dataset", output, shaped_by, inputs, ran_with)


def _check_shares(sources: Sequence[Source]) -> None:
    if len(sources) < 2:
        raise UsageProblem(
            "ance merge needs at least two datasets",
            hint="for instance: ance merge data/a data/b -o c",
        )
    if len({source.share is None for source in sources}) > 1:
        bare = next(source.folder for source in sources if source.share is None)
        raise UsageProblem(
            f"{bare} has no share, and other datasets have one",
            hint="give every dataset a share (DIR:SHARE), or none",
        )


def _check_folders(sources: Sequence[Source], output: Path) -> None:
    """Refuse folders whose names cannot be part of an id, and an output that contains a source."""
    folders: dict[str, Path] = {}
    for source in sources:
        if source.name.split() != [source.name]:
            raise UsageProblem(
                f"{source.folder}: the folder's name {source.name!r} cannot be part of an id: "
                "it is empty or contains white space",
                hint="rename the folder, or name a symbolic link to it",
            )
        if source.name in folders:
            raise UsageProblem(
                f"{folders[source.name]} and {source.folder} have the same name "
                f"{source.name!r}, so their ids would be ambiguous",
                hint="rename one of the folders, or name a symbolic link to it",
            )
        folders[source.name] = source.folder
        place = source.folder.resolve()
        if output.resolve() in (place, *place.parents):
            raise UsageProblem(
                f"{output}: contains {source.folder}, which would be merged into it",
                hint="name another folder with -o",
            )


def _files_in(folder: Path) -> _Files:
    dataset = locate(folder)
    if dataset.queries is None:
        raise BadInput(
            f"{folder}/queries.jsonl: no such file",
            hint="name folders that have a corpus.jsonl and a queries.jsonl",
        )
    labels = {split: locate(folder, split).need("qrels") for split in splits_of(folder)}
    return _Files(dataset.corpus, dataset.queries, labels)


def _append(folder: Path, name: str, files: _Files, skipped: SkippedLines | None) -> dict[str, int]:
    """Append one dataset to the folder, line by line; returns its counts.

    Only the dataset's ids are kept in memory, to check its labels.
    """
    docs: set[str] = set()
    with open(folder / "corpus.jsonl", "ab") as handle:
        for doc_id, title, text in read_corpus(files.corpus, skipped):
            docs.add(doc_id)
            record = {"_id": merged_id(name, doc_id), "title": title, "text": text}
            handle.write(orjson.dumps(record) + b"\n")
    queries: set[str] = set()
    with open(folder / "queries.jsonl", "ab") as handle:
        for query_id, text, metadata in read_query_records(files.queries, skipped):
            queries.add(query_id)
            extra: dict[str, Any] = {} if metadata is None else {"metadata": metadata}
            record = {"_id": merged_id(name, query_id), "text": text, **extra}
            handle.write(orjson.dumps(record) + b"\n")
    train_pairs = 0
    (folder / "qrels").mkdir(exist_ok=True)
    for split, path in files.labels.items():
        with open(folder / "qrels" / f"{split}.tsv", "ab") as handle:
            if not handle.tell():
                handle.write(LABELS_HEADER)
            for query_id, judged in read_qrels(path, queries, docs, skipped).items():
                for doc_id, grade in judged.items():
                    columns = merged_id(name, query_id), merged_id(name, doc_id), str(grade)
                    handle.write("\t".join(columns).encode() + b"\n")
                    train_pairs += split == TRAIN and grade >= MIN_REL
    return {"passages": len(docs), "queries": len(queries), "train_pairs": train_pairs}


def _shares(counts: dict[str, dict[str, int]], given: list[float]) -> dict[str, float]:
    """name -> share, adding up to one: the given shares, or the fractions of the train pairs."""
    weights = given or [float(found["train_pairs"]) for found in counts.values()]
    if not sum(weights):
        raise UsageProblem(
            f"no dataset has a positive in qrels/{TRAIN}.tsv, so there are no default shares",
            hint="give every dataset a share: DIR:SHARE",
        )
    return {name: weight / sum(weights) for name, weight in zip(counts, weights, strict=True)}
