"""`ance merge`: several datasets as one, for multi-task training as in the paper's OpenQA runs.

The output is an ordinary dataset folder, so every later stage works on it unchanged. Ids become
`NAME/ID`, which keeps the datasets apart: mining drops candidates of other datasets than the
query's own, since a passage of another collection may well answer it and no label would say so.
`datasets.json` holds the share of the training pairs that each dataset has.
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
from ance_cli.formats import atomic, lease
from ance_cli.formats.dataset import locate, read_corpus, read_qrels, read_query_records, splits_of
from ance_cli.formats.hashing import hash_file, hash_json
from ance_cli.formats.jsonl import refuse_stdio
from ance_cli.formats.labels import LABELS_HEADER
from ance_cli.formats.manifest import Plan
from ance_cli.formats.merged import merged_id, write_shares
from ance_cli.formats.summary import Summary, planned, summary_of

TRAIN = "train"
"""The split whose pairs give the shares where none are named."""


@dataclass(frozen=True)
class Source:
    """One dataset to merge, and the share of the training pairs that it was given."""

    folder: Path
    share: float | None = None

    @property
    def name(self) -> str:
        """The folder's name, also where it is given as `.` or `..`."""
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
    if not 0 < value < math.inf:
        raise UsageProblem(
            f"{text!r}: there is no such folder, and {share!r} is no share",
            hint=f"a share is a number greater than 0, for instance {folder}:0.5",
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
        """Hash over the content of all of them, and the names of the splits."""
        labels = {split: hash_file(path) for split, path in self.labels.items()}
        return hash_json([hash_file(self.corpus), hash_file(self.queries), labels])


def merge(
    sources: Sequence[Source],
    output: Path,
    call: Call = Call(),
) -> Summary:
    """Merge dataset folders into one; shares default to each one's part of the train pairs."""
    refuse_stdio(output, "a dataset folder")
    _check(sources, output)
    parts = {source.name: _files_in(source.folder) for source in sources}
    given = [source.share for source in sources if source.share is not None]
    shaped_by = {
        "datasets": list(parts),
        "shares": [share / sum(given) for share in given] or "train pairs",
    }
    inputs = {name: files.fingerprint for name, files in parts.items()}
    ran_with = {source.name: str(source.folder.resolve()) for source in sources}
    plan = Plan("dataset", output, shaped_by, inputs, ran_with)
    if manifest := plan.published(call.force):
        return summary_of(manifest, output, up_to_date=True)
    if call.dry_run:
        return planned(plan.kind, output, plan.shaped_by)
    with lease.hold(lease.lease_name(output), str(output)):
        folder = plan.open_partial(force=True)
        counts: dict[str, dict[str, int]] = {}
        try:
            with (
                atomic.disk_errors(output),
                call.reporter.task("merging", len(parts), "dataset") as bar,
            ):
                for name, files in parts.items():
                    counts[name] = _append(folder, name, files, call.skipped)
                    bar.advance()
            shares = _shares(counts, given)
            write_shares(folder, shares)
        except BaseException:  # it cannot be continued
            atomic.remove(folder)
            raise
        for name, share in shares.items():
            if share and not counts[name]["train_pairs"]:
                call.reporter.warn(
                    f"{name} has a share of {share:g}, and no pair in its {TRAIN} labels"
                )
        stats = {name: {"share": shares[name], **counts[name]} for name in parts}
        manifest = plan.publish_folder({}, {"datasets": stats})
    return summary_of(manifest, output, up_to_date=False)


def _check(sources: Sequence[Source], output: Path) -> None:
    """What can be refused without reading a file."""
    if len(sources) < 2:
        raise UsageProblem(
            "merging takes two datasets or more", hint="for instance: ance merge data/a data/b -o c"
        )
    if len({source.share is None for source in sources}) > 1:
        bare = next(source.folder for source in sources if source.share is None)
        raise UsageProblem(
            f"{bare} has no share, and others have one",
            hint="give each a share (DIR:SHARE), or none",
        )
    folders: dict[str, Path] = {}
    for source in sources:
        if source.name.split() != [source.name]:
            raise UsageProblem(
                f"{source.folder}: the folder's name {source.name!r} cannot begin an id: "
                "it is empty or holds white space",
                hint="rename the folder, or name a symbolic link to it",
            )
        if source.name in folders:
            raise UsageProblem(
                f"{folders[source.name]} and {source.folder} are both called {source.name!r}: "
                "their ids could not be distinguished",
                hint="rename one of the folders, or name a symbolic link to it",
            )
        folders[source.name] = source.folder
        place = source.folder.resolve()
        if output.resolve() in (place, *place.parents):
            raise UsageProblem(
                f"{output}: holds {source.folder}, which is to be merged into it",
                hint="name another folder with -o",
            )


def _files_in(folder: Path) -> _Files:
    dataset = locate(folder)
    if dataset.queries is None:
        raise BadInput(
            f"{folder}/queries.jsonl: no such file",
            hint="each dataset needs a corpus.jsonl and a queries.jsonl",
        )
    labels = {split: locate(folder, split).need("qrels") for split in splits_of(folder)}
    return _Files(dataset.corpus, dataset.queries, labels)


def _append(folder: Path, name: str, files: _Files, skipped: SkippedLines | None) -> dict[str, int]:
    """Append one dataset to the folder, line by line; returns what was counted.

    Only its ids are held in memory, to check the labels against them.
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
    """name -> share, adding up to one: those that were given, else each one's part of the pairs."""
    weights = given or [float(found["train_pairs"]) for found in counts.values()]
    if not sum(weights):
        raise UsageProblem(
            f"no dataset has a positive in qrels/{TRAIN}.tsv to take its share from",
            hint="give each dataset its share: DIR:SHARE",
        )
    return {name: weight / sum(weights) for name, weight in zip(counts, weights, strict=True)}
