"""`ance tokenize`: a corpus to token ids, once for all checkpoints that share a tokenizer.

`encode` and `train-segment` read the cache by themselves and make it where there is none.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ance_cli.call import Call, SkippedLines
from ance_cli.config.sets import Side
from ance_cli.errors import AnceError, BadInput, Mismatch
from ance_cli.formats import atomic, lease
from ance_cli.formats.dataset import Dataset, read_corpus
from ance_cli.formats.embeddings import BLOCK_DOCS
from ance_cli.formats.hashing import cache_dir, hash_file
from ance_cli.formats.jsonl import read_lines, refuse_stdio
from ance_cli.formats.manifest import Plan
from ance_cli.formats.summary import Summary, planned, summary_of
from ance_cli.formats.tokens import KIND, TokenCache, TokenWriter, join_rows
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.tokens import tokenizer_hash
from ance_cli.progress import Bar

if TYPE_CHECKING:
    from ance_cli.models.tokens import Tokenizer, TokenRows

_CHUNK = 2_048
"""Texts that the tokenizer works on at a time, while the next ones are read."""

Texts = Iterable[tuple[str, str]]
"""(id, text), in order."""


def tokenize(
    checkpoint: Checkpoint,
    dataset: Dataset,
    output: Path | None = None,
    call: Call = Call(),
) -> Summary:
    """Make the token cache of the dataset's corpus, in the cache folder unless `output` names one.

    Raises `BadInput` for a broken corpus.
    """
    plan = tokens_plan(checkpoint, dataset, output, call.skipped)
    if manifest := plan.published(call.force):
        _note(manifest, call.skipped)
        return summary_of(manifest, plan.output, up_to_date=True)
    if call.dry_run:
        return planned(plan.kind, plan.output, plan.shaped_by)
    made = _make_in_turn(plan, checkpoint, dataset, call)
    _note(made, call.skipped)
    return summary_of(made, plan.output, up_to_date=False)


def corpus_tokens(
    checkpoint: Checkpoint,
    dataset: Dataset,
    folder: Path | None = None,
    call: Call = Call(),
) -> TokenCache:
    """The token cache of the dataset's corpus, made first where there is none.

    `folder` is where it lies, the cache folder where None. Of two processes that need the same one
    the second waits for the first. Raises `Mismatch` where it was changed since it was made, or
    `folder` holds that of other texts or settings.
    """
    plan = tokens_plan(checkpoint, dataset, folder, call.skipped)
    try:
        manifest = plan.published() or _make_in_turn(
            plan, checkpoint, dataset, replace(call, force=False)
        )
    except Mismatch as problem:
        raise Mismatch(
            problem.what,
            hint="make the token cache anew with: ance tokenize --force, and the same --ckpt, "
            "--data and lengths",
        ) from None
    _note(manifest, call.skipped)
    return TokenCache(plan.output)


def _note(manifest: dict[str, Any], skipped: SkippedLines | None) -> None:
    """Tell whoever takes the cache what he would have been told had he read the corpus."""
    if skipped is not None:
        skipped.reasons.update(dict.fromkeys(manifest["content"]["skipped"]))


def tokens_plan(
    checkpoint: Checkpoint, dataset: Dataset, output: Path | None, skipped: SkippedLines | None
) -> Plan:
    """What the token cache of the corpus is, and where it lies.

    One that passed over broken lines (`--skip-bad`) is another one: it must never be taken by a
    command that is to stop at them.
    """
    shaped_by = {**checkpoint.settings.shaping("passage"), "block_docs": BLOCK_DOCS}
    if skipped is not None:
        shaped_by["skip_bad"] = True
    inputs = {
        "corpus": hash_file(dataset.corpus),
        "tokenizer": tokenizer_hash(checkpoint.tower("passage")),
    }
    plan = Plan(
        KIND, output or Path(), shaped_by, inputs, {"checkpoint": str(checkpoint.path)},
        (checkpoint.path, *dataset.files),
    )  # fmt: skip
    if output is None:
        plan.output = cache_dir() / "tokens" / plan.fingerprint
    refuse_stdio(plan.output, "a token cache")
    return plan


def _make_in_turn(
    plan: Plan,
    checkpoint: Checkpoint,
    dataset: Dataset,
    call: Call,
) -> dict[str, Any]:
    name = lease.lease_name(plan.output)
    with lease.hold_in_turn(name, f"the token cache of {dataset.corpus}", call.reporter.say):
        if not call.force and (manifest := plan.published()):
            return manifest  # by the one that was waited for
        broken = SkippedLines() if call.skipped is not None else None
        separator = checkpoint.settings.separator
        texts = (
            (passage.doc_id, passage.joined(separator))
            for passage in read_corpus(dataset.corpus, broken)
        )
        total = sum(1 for _ in read_lines(dataset.corpus))
        found = write_tokens(
            plan, checkpoint, texts, "passage", total, replace(call, skipped=broken)
        )
        if hash_file(dataset.corpus) != plan.inputs["corpus"]:
            atomic.remove(plan.output)
            raise BadInput(
                f"{dataset.corpus}: changed while it was read",
                hint="repeat the command, once nobody writes to it",
            )
        return found


def write_tokens(
    plan: Plan,
    checkpoint: Checkpoint,
    texts: Texts,
    side: Side,
    total: int,
    call: Call,
) -> dict[str, Any]:
    """Tokenise the texts in one pass and publish them under the plan's name; the manifest.

    `total` of them are expected, for the progress bar; `call.skipped` collects what is passed over
    while they are read. What a killed call left is made again.
    """
    from ance_cli.models.tokens import Tokenizer

    started = time.monotonic()
    tokenizer = Tokenizer(checkpoint)
    folder = plan.open_partial(force=True)
    block_docs = plan.shaped_by["block_docs"]
    with (
        atomic.disk_errors(folder),
        call.reporter.task("tokenising", total, side) as bar,
    ):
        try:
            writer = TokenWriter(folder, tokenizer.vocabulary_of(side), block_docs)
            for doc_ids, rows in _blocks(tokenizer, texts, side, block_docs, bar):
                writer.write_block(doc_ids, rows)
            content = writer.finish()
        except AnceError:  # one pass: nothing of it can be continued
            atomic.remove(folder)
            raise
    seconds = time.monotonic() - started
    stats = {
        **{name: content[name] for name in ("docs", "rows", "tokens")},
        "seconds": round(seconds, 2),
        "docs_per_s": round(content["docs"] / seconds, 1),
    }
    content["skipped"] = list(call.skipped.reasons) if call.skipped else []
    return plan.publish_folder(content, stats)


def _blocks(
    tokenizer: Tokenizer, texts: Texts, side: Side, block_docs: int, bar: Bar
) -> Iterator[tuple[list[str], TokenRows]]:
    """(ids, rows) of each block."""
    size = math.gcd(_CHUNK, block_docs)
    chunks = _chunks(tokenizer, texts, side, size)
    while parts := list(islice(chunks, block_docs // size)):
        doc_ids = [doc_id for names, _ in parts for doc_id in names]
        yield doc_ids, join_rows([rows for _, rows in parts])
        bar.advance(len(doc_ids))


def _chunks(
    tokenizer: Tokenizer, texts: Texts, side: Side, size: int
) -> Iterator[tuple[list[str], TokenRows]]:
    """(ids, rows) of `size` texts at a time; the next ones are read while the tokenizer works."""
    remaining = iter(texts)
    under_way: tuple[list[str], Future[TokenRows]] | None = None
    with ThreadPoolExecutor(1) as background:
        while chunk := list(islice(remaining, size)):
            rows = background.submit(tokenizer, [text for _, text in chunk], side)
            if under_way:
                yield under_way[0], under_way[1].result()
            under_way = [doc_id for doc_id, _ in chunk], rows
        if under_way:
            yield under_way[0], under_way[1].result()
