"""Which retrieved passages contain an answer to their query: labels for Top-k coverage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from ance_cli.errors import BadInput
from ance_cli.formats.dataset import Passage, Qrels
from ance_cli.formats.trec import Run, in_trec_order


def passages_with_answers(
    runs: Iterable[Run],
    depth: int,
    has_answer: Mapping[str, Callable[[str], bool]],
    prepare: Callable[[str], str],
    passages: Iterable[Passage],
) -> Qrels:
    """query_id -> doc_id -> 1 for each passage in a run's top `depth` that contains an answer.

    Reads only the queries of `has_answer`, and the text of a passage without its title, as DPR
    does. Each text is prepared once, even if several queries retrieved it. Only ids are kept in
    memory, so `passages` may be a stream. Raises `BadInput` if a retrieved document is not in
    `passages`.
    """
    wanted: dict[str, dict[str, None]] = {}  # doc_id -> the queries that retrieved it
    for run in runs:
        for query_id in has_answer.keys() & run.keys():
            for doc_id, _ in in_trec_order(run[query_id])[:depth]:
                wanted.setdefault(doc_id, {})[query_id] = None
    found: Qrels = {}
    for passage in passages:
        if queries := wanted.pop(passage.doc_id, None):
            text = prepare(passage.text)
            for query_id in queries:
                if has_answer[query_id](text):
                    found.setdefault(query_id, {})[passage.doc_id] = 1
    if wanted:
        doc_id, queries = next(iter(wanted.items()))
        raise BadInput(
            f"document {doc_id!r}, retrieved for query {next(iter(queries))!r}, is not in the "
            "corpus",
            hint="name the dataset that the run was made from with --data",
        )
    return found
