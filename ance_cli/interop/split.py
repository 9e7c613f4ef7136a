"""`ance split`: divides the judged queries of a dataset into train, dev and test.

Queries that share a positive, or whose texts or positives are near-duplicates, form a group, and a
group is never divided: otherwise a test would ask what training showed. Passages that were cut out
of one document count as that document.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

from ance_cli.call import Call
from ance_cli.config import MIN_REL
from ance_cli.config.interop import SplitConfig
from ance_cli.errors import BadInput, UsageProblem
from ance_cli.formats import lease
from ance_cli.formats.dataset import (
    Dataset,
    Qrels,
    locate,
    read_corpus,
    read_qrels,
    read_queries,
    splits_of,
)
from ance_cli.formats.jsonl import parse_object, read_lines, read_records, refuse_stdio
from ance_cli.formats.labels import LABELS_HEADER
from ance_cli.formats.plan import Plan
from ance_cli.formats.summary import Summary, planned, summary_of

NAMES = {2: ("train", "dev"), 3: ("train", "dev", "test")}
"""The splits by the number of shares."""
_SHARES = re.compile(r"\d{1,3}(?:/\d{1,3}){1,2}")
_PERMUTATIONS = 64


def is_shares(text: str) -> bool:
    """Whether a text has the form `80/10/10` or `90/10`."""
    return _SHARES.fullmatch(text) is not None


def parse_shares(text: str) -> dict[str, float]:
    """`80/10/10` -> the share of train, dev and test; `90/10` -> that of train and dev."""
    parts = [int(part) for part in text.split("/")] if is_shares(text) else []
    if sum(parts) != 100 or 0 in parts:
        raise UsageProblem(
            f"{text!r}: expected two or three percentages that add up to 100",
            hint="for instance 80/10/10 (train, dev, test) or 90/10 (train, dev)",
        )
    return {name: part / 100 for name, part in zip(NAMES[len(parts)], parts, strict=True)}


def split(data: Path, output: Path, config: SplitConfig, call: Call = Call()) -> Summary:
    """Write the dataset with the labels of one split divided; its other splits stay as they are.

    Raises `UsageProblem` if the split is unclear or a new split has the name of another one.
    """
    refuse_stdio(output, "a dataset folder")
    shares = parse_shares(config.shares)
    name = _split_to_divide(data, config.split)
    others = [each for each in splits_of(data) if each != name]
    if taken := sorted({*others} & {*shares}):
        raise UsageProblem(
            f"{data}: has the split {taken[0]!r} already",
            hint="divide into fewer splits, for instance --shares 90/10 (train, dev)",
        )
    dataset = locate(data, name)
    plan = Plan(
        "dataset", output,
        shaped_by={"shares": shares, "seed": config.seed, "near": config.near, "split": name},
        inputs={"data": dataset.fingerprint("corpus", "queries", "qrels")},
        ran_with={"sources": [str(data)]},
        reads=[data],
    )  # fmt: skip
    if manifest := plan.published(call.force):
        return summary_of(manifest, output, up_to_date=True)
    if call.dry_run:
        return planned(plan.kind, output, plan.shaped_by)
    with lease.of_output(output):
        with plan.new_partial() as folder:
            for path in (dataset.corpus, dataset.need("queries")):
                shutil.copyfile(path, folder / path.name)
            for each in others:
                _copy_split(data, folder, each)
            stats = divide(dataset, data, folder, name, shares, config, call)
        manifest = plan.publish_folder({}, stats)
    return summary_of(manifest, output, up_to_date=False)


def _split_to_divide(data: Path, asked: str | None) -> str:
    found = splits_of(data)
    if asked is not None:
        return asked
    if len(found) != 1:
        raise UsageProblem(
            f"{data}: has {len(found)} splits: {', '.join(found) or 'none'}",
            hint="name the one to divide with --split"
            if found
            else "import labels, or make queries with `ance generate-queries`",
        )
    return found[0]


def _copy_split(data: Path, folder: Path, name: str) -> None:
    for kind in ("qrels", "negatives", "runs"):
        for path in sorted((data / kind).glob(f"{name}.*")):
            (folder / kind).mkdir(exist_ok=True)
            shutil.copyfile(path, folder / kind / path.name)


def divide(
    dataset: Dataset,
    source: Path,
    folder: Path,
    name: str,
    shares: Mapping[str, float],
    config: SplitConfig,
    call: Call,
) -> dict[str, Any]:
    """Write the labels, negatives and runs of the split `name` of `source` into `folder`, divided.

    Returns what is known of the division: queries by split, groups, and what kept them together.
    """
    queries = read_queries(dataset.need("queries"), call.skipped)
    qrels = read_qrels(dataset.need("qrels"), queries, skipped=call.skipped)
    call.reporter.say(f"comparing {len(qrels):,} queries and their positives")
    groups, why = groups_of(qrels, queries, dataset, config.near)
    split_of = assigned(groups, shares, config.seed)
    if empty := [each for each in shares if each not in split_of.values()]:
        raise BadInput(
            f"{source}: {len(groups):,} groups of queries that belong together are too few: "
            f"nothing is left for {empty[0]}",
            hint="add queries, or lower the number of groups that are alike with --near 1",
        )
    largest = max(map(len, groups))
    if largest > max(shares.values()) * len(qrels):
        call.reporter.warn(
            f"one group has {largest:,} of {len(qrels):,} queries, so the shares differ from "
            f"{config.shares}: these queries share positives or are near-duplicates"
        )
    _write_labels(folder, qrels, split_of)
    for kind, ending in (("negatives", ".jsonl"), ("runs", ".trec")):
        if (path := source / kind / f"{name}{ending}").exists():
            _write_lines(path, folder / kind, ending, split_of)
    return {
        "queries": {each: [*split_of.values()].count(each) for each in shares},
        "groups": len(groups),
        "largest_group": largest,
        "kept_together": why,
    }


def groups_of(
    qrels: Qrels, queries: Mapping[str, str], dataset: Dataset, near: float
) -> tuple[list[list[str]], dict[str, int]]:
    """(groups of query_ids that belong together, how many pairs of each reason joined them).

    Texts are near-duplicates if the Jaccard similarity of their shingles is estimated to be at
    least `near` (MinHash, Broder 1997); 1 compares no texts. Queries are compared by single words
    and pairs of words, documents by triples of words.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    judged_docs = {doc_id for judged in qrels.values() for doc_id in judged}
    parent_of = _parents(dataset.corpus, judged_docs)
    place = {query_id: number for number, query_id in enumerate(qrels)}
    documents: dict[str, list[int]] = {}
    for query_id, judged in qrels.items():
        for doc_id, grade in judged.items():
            if grade >= MIN_REL:
                documents.setdefault(parent_of.get(doc_id, doc_id), []).append(place[query_id])
    edges = [pair for members in documents.values() for pair in pairwise(members)]
    why = {"same_positive": len(edges), "similar_queries": 0, "similar_positives": 0}
    if near < 1:
        texts = ((str(place[query_id]), _shingles(queries[query_id], 1, 2)) for query_id in qrels)
        alike = [(int(one), int(other)) for one, other in _near_duplicates(texts, near)]
        why["similar_queries"] = len(alike)
        edges += alike
        texts = (
            (passage.doc_id, _shingles(passage.joined(" "), 3, 3))
            for passage in read_corpus(dataset.corpus)
            if parent_of.get(passage.doc_id, passage.doc_id) in documents
        )
        for one, other in _near_duplicates(texts, near):
            first, second = parent_of.get(one, one), parent_of.get(other, other)
            if first != second:
                why["similar_positives"] += 1
                edges.append((documents[first][0], documents[second][0]))
    ends = np.array(edges, np.int64).reshape(-1, 2)
    joined = coo_array(
        (np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), shape=(len(place), len(place))
    )
    _, group_of = connected_components(joined, directed=False)
    groups: dict[int, list[str]] = {}
    for query_id, number in zip(qrels, group_of.tolist(), strict=True):
        groups.setdefault(number, []).append(query_id)
    return list(groups.values()), why


def _parents(corpus: Path, doc_ids: Collection[str]) -> dict[str, str]:
    """Of the given passages those that were cut out of a document: doc_id -> the document's id."""
    return {
        str(record.get("_id")): str(record["parent_id"])
        for _, record in read_records(corpus)
        if record.get("parent_id") is not None and record.get("_id") in doc_ids
    }


def _shingles(text: str, shortest: int, longest: int) -> set[bytes]:
    """Runs of words, without case and punctuation; the whole text if it has fewer words."""
    words = re.findall(r"\w+", text.lower())
    runs = {
        " ".join(words[start : start + length]).encode()
        for length in range(shortest, longest + 1)
        for start in range(len(words) - length + 1)
    }
    return runs or {" ".join(words).encode()}


def _near_duplicates(
    texts: Iterable[tuple[str, set[bytes]]], near: float
) -> Iterator[tuple[str, str]]:
    """Pairs of names whose shingles are alike; of many copies, each is paired with an earlier."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=near, num_perm=_PERMUTATIONS)
    kept: dict[str, Any] = {}
    for name, shingles in texts:
        sketch = MinHash(num_perm=_PERMUTATIONS)
        sketch.update_batch(list(shingles))
        alike = [
            other for other in sorted(index.query(sketch)) if kept[other].jaccard(sketch) >= near
        ]
        yield from ((other, name) for other in alike)
        if not alike:  # a copy is found by what it copies
            index.insert(name, sketch)
            kept[name] = sketch


def assigned(
    groups: Sequence[Sequence[str]], shares: Mapping[str, float], seed: int
) -> dict[str, str]:
    """query_id -> split: the largest groups first, each to the split that lacks most queries."""
    order = np.random.default_rng(seed).permutation(len(groups)).tolist()
    total = sum(map(len, groups))
    lacks = {name: share * total for name, share in shares.items()}
    split_of: dict[str, str] = {}
    for number in sorted(order, key=lambda number: -len(groups[number])):
        name = max(lacks, key=lacks.__getitem__)
        lacks[name] -= len(groups[number])
        split_of |= dict.fromkeys(groups[number], name)
    return split_of


def _write_labels(folder: Path, qrels: Qrels, split_of: Mapping[str, str]) -> None:
    (folder / "qrels").mkdir(exist_ok=True)
    with _Outputs(folder / "qrels", ".tsv", LABELS_HEADER) as outputs:
        for query_id, judged in qrels.items():
            for doc_id, grade in judged.items():
                line = f"{query_id}\t{doc_id}\t{grade}\n".encode()
                outputs.to(split_of[query_id]).write(line)


def _write_lines(path: Path, folder: Path, ending: str, split_of: Mapping[str, str]) -> None:
    """Divide the lines of a negatives file or a run by their queries."""
    folder.mkdir(exist_ok=True)
    with _Outputs(folder, ending) as outputs:
        for number, line in read_lines(path):
            if ending == ".jsonl":
                query_id = str(parse_object(line, f"{path}:{number}").get("query_id"))
            else:
                query_id = line.split(maxsplit=1)[0].decode()
            if query_id in split_of:
                outputs.to(split_of[query_id]).write(line + b"\n")


@dataclass
class _Outputs:
    """One file for each split, opened when it is first written to."""

    folder: Path
    ending: str
    header: bytes = b""

    def __enter__(self) -> _Outputs:
        self._open: dict[str, IO[bytes]] = {}
        return self

    def to(self, name: str) -> IO[bytes]:
        if name not in self._open:
            self._open[name] = open(self.folder / f"{name}{self.ending}", "wb")
            self._open[name].write(self.header)
        return self._open[name]

    def __exit__(self, *_: object) -> None:
        for handle in self._open.values():
            handle.close()
