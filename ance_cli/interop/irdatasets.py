"""Datasets of the library ir_datasets, which downloads and unpacks them, by their ids."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from ance_cli.call import SkippedLines
from ance_cli.errors import BadInput, UsageProblem
from ance_cli.formats import atomic
from ance_cli.formats.dataset import Passage, Query, checked_id
from ance_cli.formats.hashing import hash_json
from ance_cli.formats.jsonl import refuse
from ance_cli.formats.labels import Label
from ance_cli.interop import IR_DATASETS
from ance_cli.interop.msmarco import SEPARATOR
from ance_cli.interop.records import Part, Record, Role, answers_metadata, split_in


def parts_of(dataset_id: str, with_url: bool = False) -> list[Part]:
    """The documents, queries and labels of a dataset id, if it has them.

    Documents are named after the id that owns them, so that the documents of
    `msmarco-passage/train` and `msmarco-passage/dev` are read once.
    """
    try:
        import ir_datasets
    except ImportError:
        raise UsageProblem(
            f"{IR_DATASETS}:{dataset_id} needs the library ir_datasets, which is not installed",
            hint="pip install 'ance-cli[datasets]'",
        ) from None
    try:
        dataset = ir_datasets.load(dataset_id)
    except KeyError:
        raise BadInput(
            f"{IR_DATASETS}:{dataset_id}: ir_datasets has no such dataset",
            hint="choose one of the ids at https://ir-datasets.com",
        ) from None
    parts = []
    for kind, role, read in (
        ("docs", Role.DOCUMENTS, partial(_documents, with_url=with_url)),
        ("queries", Role.QUERIES, _queries),
        ("qrels", Role.LABELS, _labels),
    ):
        if not getattr(dataset, f"has_{kind}")():
            continue
        owner = dataset_id
        if kind == "docs":
            owner = ir_datasets.docs_parent_id(dataset_id) or dataset_id
        name = f"{IR_DATASETS}:{owner} {kind}"
        identity = {"id": owner, "kind": kind, "ir_datasets": ir_datasets.__version__}
        parts.append(
            Part(
                name,
                role,
                f"ir_datasets' {kind}",
                partial(_guarded, name, partial(read, dataset, name)),
                partial(hash_json, identity),
                split_in(dataset_id.replace("/", ".")),
                by_row=True,
            )
        )
    return parts


def _guarded(name: str, read: Any, skipped: SkippedLines | None) -> Iterator[tuple[int, Record]]:
    with _fetching(name):
        yield from read(skipped)


@contextmanager
def _fetching(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # the exceptions of requests are OSErrors
        if atomic.is_full_disk(error):
            raise
        raise BadInput(
            f"{name}: cannot be downloaded or read ({error})",
            hint="see the dataset's page at https://ir-datasets.com for how to obtain it",
        ) from error


def _documents(
    dataset: Any, name: str, skipped: SkippedLines | None, with_url: bool
) -> Iterator[tuple[int, Record]]:
    for number, document in enumerate(dataset.docs_iter(), start=1):
        where = f"{name}: row {number}"
        try:
            passage = _passage(document, where, with_url)
        except BadInput as problem:
            refuse(problem, skipped)
            continue
        yield number, passage


def _passage(document: Any, where: str, with_url: bool) -> Passage:
    doc_id = checked_id(document.doc_id, where)
    title = getattr(document, "title", None) or ""
    for field in ("text", "body"):
        if isinstance(text := getattr(document, field, None), str):
            break
    else:
        title, text = "", document.default_text()
    if with_url:
        if not isinstance(url := getattr(document, "url", None), str):
            raise BadInput(f"{where}: the document has no url", hint="import without --with-url")
        return Passage(doc_id, "", SEPARATOR.join((url, title, text)))
    return Passage(doc_id, title, text)


def _queries(dataset: Any, name: str, skipped: SkippedLines | None) -> Iterator[tuple[int, Record]]:
    for number, query in enumerate(dataset.queries_iter(), start=1):
        where = f"{name}: row {number}"
        try:
            metadata = answers_metadata(getattr(query, "answers", None), where)
            text = query.default_text()
            if not text.strip():
                raise BadInput(f"{where}: query {query.query_id!r} is empty")
            found = Query(checked_id(query.query_id, where), text, metadata)
        except BadInput as problem:
            refuse(problem, skipped)
            continue
        yield number, found


def _labels(dataset: Any, name: str, skipped: SkippedLines | None) -> Iterator[tuple[int, Record]]:
    for number, label in enumerate(dataset.qrels_iter(), start=1):
        yield number, Label(label.query_id, label.doc_id, int(label.relevance))
