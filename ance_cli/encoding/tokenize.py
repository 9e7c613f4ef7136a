"""`ance tokenize`: a corpus to token ids, once for all checkpoints that share a tokenizer.

`encode` and `train-segment` read the token cache, and make it if it does not exist.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ance_cli.call import Call, SkippedLines
from ance_cli.config.sets import Side
from ance_cli.errors import AnceError, BadInput, Mismatch
from ance_cli.formats import atomic, lease
from ance_cli.formats.dataset import Dataset, queries_of_split, read_corpus
from ance_cli.formats.embeddings import BLOCK_DOCS
from ance_cli.formats.hashing import cache_dir, hash_file, hash_lines
from ance_cli.formats.jsonl import refuse_stdio
from ance_cli.formats.plan import Plan
from ance_cli.formats.summary import Summary, planned, summary_of
from ance_cli.formats.tokens import KIND, TokenCache, TokenWriter, join_rows
from ance_cli.models.checkpoint import Checkpoint, EncodingSettings
from ance_cli.models.tokens import tokenizer_hash
from ance_cli.progress import Reporter

if TYPE_CHECKING:
    from ance_cli.models.tokens import Tokenizer, TokenRows

_CHUNK = 2_048
"""Texts that the tokenizer works on at a time, while the next ones are read."""


def tokenize(
    checkpoint: Checkpoint,
    dataset: Dataset,
    output: Path | None = None,
    call: Call = Call(),
) -> Summary:
    """Make the token cache of the dataset's corpus, in the cache folder unless `output` names one.

    Raises `BadInput` for a broken corpus.
    """
    tokens = CorpusTokens(checkpoint, dataset, output, call)
    plan = tokens.plan
    if manifest := plan.published(call.force):
        _note_skipped(manifest, call.skipped)
        return summary_of(manifest, plan.output, up_to_date=True)
    if call.dry_run:
        return planned(plan.kind, plan.output, plan.shaped_by)
    manifest = tokens.make(call.force)
    _note_skipped(manifest, call.skipped)
    return summary_of(manifest, plan.output, up_to_date=False)


def corpus_tokens(
    checkpoint: Checkpoint,
    dataset: Dataset,
    folder: Path | None = None,
    call: Call = Call(),
) -> TokenCache:
    """The token cache of the dataset's corpus; see `CorpusTokens.open`."""
    return CorpusTokens(checkpoint, dataset, folder, call).open()


# ---------------------------------------------------------------- the token caches of both sides


class Tokens(Protocol):
    """The token cache of what one side encodes, before and after it is made."""

    inputs: dict[str, str]
    """The content of the texts, as the manifest of their vectors notes it."""
    block_docs: int

    def open(self) -> TokenCache:
        """The token cache, made first if it does not exist."""

    def close(self) -> None:
        """Remove the token cache, if only the vectors need it: they are published."""


class CorpusTokens:
    """The token cache of a corpus, which outlives the vectors that are made from it."""

    def __init__(
        self, checkpoint: Checkpoint, dataset: Dataset, folder: Path | None, call: Call
    ) -> None:
        """`folder` is the cache's own folder; None: one in the cache folder."""
        self.plan = tokens_plan(checkpoint, dataset, folder, call.skipped)
        self.inputs = {"corpus": self.plan.inputs["corpus"]}
        self.block_docs = int(self.plan.shaped_by["block_docs"])
        self._checkpoint, self._corpus, self._call = checkpoint, dataset.corpus, call

    def open(self) -> TokenCache:
        """The token cache, made first if it does not exist.

        If another process is making it, waits for that process. Raises `Mismatch` or `BadInput` if
        the cache was changed since it was made, or if the folder holds the cache of other texts or
        settings.
        """
        try:
            found = self.plan.published()
        except (BadInput, Mismatch) as problem:
            problem.hint = (
                "make the token cache again with: ance tokenize --force, and the same --ckpt, "
                "--data and lengths"
            )
            raise
        manifest = found or self.make()
        _note_skipped(manifest, self._call.skipped)
        cache = TokenCache(self.plan.output)
        return _said_cut(self._checkpoint, "passage", cache, self._call.reporter)

    def close(self) -> None:
        """Keep the cache: other checkpoints use it as well."""

    def make(self, force: bool = False) -> dict[str, Any]:
        """Make the cache, by one process at a time; returns its manifest."""
        plan, corpus, say = self.plan, self._corpus, self._call.reporter.say
        name = lease.lease_name(plan.output)
        with lease.hold_in_turn(name, f"the token cache of {corpus}", say):
            if not force and (manifest := plan.published()):
                return manifest  # made by the process that this one waited for
            skipped = SkippedLines() if self._call.skipped is not None else None
            texts = _corpus_texts(corpus, self._checkpoint.settings, skipped)
            manifest = write_tokens(
                plan, self._checkpoint, texts, replace(self._call, skipped=skipped)
            )
            if hash_file(corpus) != plan.inputs["corpus"]:
                atomic.remove(plan.output)
                raise BadInput(
                    f"{corpus}: changed while it was read",
                    hint="repeat the command when no other process writes the file",
                )
            return manifest


class QueryTokens:
    """The token cache of queries: next to their vectors until these are published.

    Queries are few, so every call makes it again.
    """

    block_docs = BLOCK_DOCS

    def __init__(self, checkpoint: Checkpoint, dataset: Dataset, output: Path, call: Call) -> None:
        """`output` is the folder of the vectors."""
        self._queries = queries_of_split(dataset, call.skipped)
        self.inputs = {
            "queries": hash_lines(f"{name}\t{text}" for name, text in self._queries.items())
        }
        self._folder = atomic.companion(output, ".{}.tokens")
        self._checkpoint, self._call = checkpoint, call

    def open(self) -> TokenCache:
        """The token cache, made again."""
        shaped_by = {
            "block_docs": self.block_docs, **self._checkpoint.settings.shaping("query"),
        }  # fmt: skip
        inputs = {**self.inputs, "tokenizer": tokenizer_hash(self._checkpoint.tower("query"))}
        atomic.remove(self._folder)
        write_tokens(
            Plan(KIND, self._folder, shaped_by, inputs), self._checkpoint,
            _query_texts(self._queries), replace(self._call, skipped=None),
        )  # fmt: skip
        cache = TokenCache(self._folder)
        return _said_cut(self._checkpoint, "query", cache, self._call.reporter)

    def close(self) -> None:
        """Remove the cache."""
        atomic.remove(self._folder)


def _said_cut(
    checkpoint: Checkpoint, side: Side, cache: TokenCache, reporter: Reporter
) -> TokenCache:
    """The cache, after telling how many of its texts were cut."""
    from ance_cli.models.tokens import say_cut

    say_cut(checkpoint.settings, side, cache.num_cut, cache.num_docs, reporter)
    return cache


def _note_skipped(manifest: dict[str, Any], skipped: SkippedLines | None) -> None:
    """Note the lines that were skipped when the cache was made, as reading the corpus would."""
    if skipped is not None:
        skipped.reasons.update(dict.fromkeys(manifest["content"]["skipped"]))


def tokens_plan(
    checkpoint: Checkpoint, dataset: Dataset, output: Path | None, skipped: SkippedLines | None
) -> Plan:
    """What the token cache of the corpus is, and its folder.

    A cache that skipped broken lines (`--skip-bad`) is another artifact: a command that should stop
    at broken lines must not read it.
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


# ---------------------------------------------------------------- tokenising


@dataclass(frozen=True)
class Texts:
    """The texts of one side, and the size of the work for the progress bar."""

    side: Side
    total: int
    unit: str
    read: Callable[[Callable[[int], None]], Iterable[tuple[str, str]]]
    """Takes the bar's `advance`; the (id, text) in order."""


def _corpus_texts(corpus: Path, settings: EncodingSettings, skipped: SkippedLines | None) -> Texts:
    """The passages of a corpus. The bar counts bytes: the number of passages is not known before
    the corpus has been read."""
    return Texts(
        "passage", corpus.stat().st_size, "byte",
        lambda advance: (
            (passage.doc_id, settings.text_of(passage))
            for passage in read_corpus(corpus, skipped, advance)
        ),
    )  # fmt: skip


def _query_texts(queries: dict[str, str]) -> Texts:
    def read(advance: Callable[[int], None]) -> Iterator[tuple[str, str]]:
        for query in queries.items():
            yield query
            advance(1)

    return Texts("query", len(queries), "query", read)


def write_tokens(plan: Plan, checkpoint: Checkpoint, texts: Texts, call: Call) -> dict[str, Any]:
    """Tokenise the texts in one pass and publish them as `plan` says; returns the manifest.

    `call.skipped` collects the lines that are skipped while the texts are read. The partial folder
    of a killed call is made again from the start.
    """
    from ance_cli.models.tokens import Tokenizer

    started = time.monotonic()
    tokenizer = Tokenizer(checkpoint)
    folder = plan.open_partial(force=True)
    block_docs = plan.shaped_by["block_docs"]
    with (
        atomic.disk_errors(folder),
        call.reporter.task("tokenising", texts.total, texts.unit) as bar,
    ):
        try:
            writer = TokenWriter(folder, tokenizer.vocabulary_of(texts.side), block_docs)
            pairs = texts.read(bar.advance)
            for doc_ids, rows in _blocks(tokenizer, pairs, texts.side, block_docs):
                writer.write_block(doc_ids, rows)
            content = writer.finish()
        except AnceError:  # tokenising is one pass: it cannot be continued
            atomic.remove(folder)
            raise
    seconds = time.monotonic() - started
    stats = {
        **{name: content[name] for name in ("docs", "rows", "tokens")},
        "cut": tokenizer.num_cut[texts.side],
        "seconds": round(seconds, 2),
        "docs_per_s": round(content["docs"] / seconds, 1),
    }
    content["skipped"] = list(call.skipped.reasons) if call.skipped else []
    return plan.publish_folder(content, stats)


def _blocks(
    tokenizer: Tokenizer, texts: Iterable[tuple[str, str]], side: Side, block_docs: int
) -> Iterator[tuple[list[str], TokenRows]]:
    """(ids, rows) of each block."""
    size = math.gcd(_CHUNK, block_docs)
    chunks = _chunks(tokenizer, texts, side, size)
    while parts := list(islice(chunks, block_docs // size)):
        doc_ids = [doc_id for names, _ in parts for doc_id in names]
        yield doc_ids, join_rows([rows for _, rows in parts])


def _chunks(
    tokenizer: Tokenizer, texts: Iterable[tuple[str, str]], side: Side, size: int
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
