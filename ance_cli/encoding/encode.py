"""`ance encode`: a corpus, or queries, to memory-mapped vectors."""

from __future__ import annotations

import glob
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ance_cli.call import Call, SkippedLines
from ance_cli.config import EncodeConfig
from ance_cli.encoding.tokenize import corpus_tokens, tokens_plan, write_tokens
from ance_cli.errors import AnceError, UsageProblem
from ance_cli.formats import atomic, lease
from ance_cli.formats.dataset import Dataset
from ance_cli.formats.embeddings import BLOCK_DOCS, UNFINISHED_ONLY, EmbeddingsWriter
from ance_cli.formats.hashing import hash_lines
from ance_cli.formats.jsonl import refuse_stdio
from ance_cli.formats.manifest import Plan
from ance_cli.formats.summary import Summary, planned, summary_of
from ance_cli.formats.tokens import KIND, TokenCache
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.tokens import tokenizer_hash
from ance_cli.progress import Bar, Reporter
from ance_cli.retrieval.search import queries_of_split

if TYPE_CHECKING:
    from ance_cli.encoding.blocks import EncodeJob, Work
    from ance_cli.encoding.ray_workers import Cluster

Shard = tuple[int, int]
"""Which of how many, from 1."""


def parse_shard(text: str | None) -> Shard | None:
    """`2/8`: the second of eight parts."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageProblem(f"--shard {text!r}: expected I/N with I from 1 to N, for instance 2/8")
    return int(match[1]), int(match[2])


def encode(
    checkpoint: Checkpoint,
    dataset: Dataset,
    output: Path,
    config: EncodeConfig = EncodeConfig(),
    tokens: Path | None = None,
    shard: Shard | None = None,
    call: Call = Call(),
) -> Summary:
    """Encode the dataset's corpus (`side="passage"`) or its queries (`side="query"`).

    The corpus's tokens come from its token cache, in the folder `tokens` if that is named, which is
    made first where there is none. Only blocks that are missing are encoded; `shard` (i, n) takes
    every n-th block, for n such calls side by side on one file system, and the last of them to end
    publishes. With `config.ray` the workers are those of a Ray cluster.

    Raises `BadInput` for a broken corpus, a checkpoint that is not whole, or vectors that are not
    finite, and `ResourceExhausted` where every worker process died.
    """
    refuse_stdio(output, "an embeddings folder")
    if shard and call.force:
        raise UsageProblem(
            "--force with --shard: each shard would drop what the others have done",
            hint=f"remove {output} and {atomic.partial_name(output)} first, or name another -o",
        )
    checkpoint.need_head()
    plan = _plan(checkpoint, dataset, output, config, call.skipped)
    if manifest := plan.published(call.force):
        return summary_of(manifest, output, up_to_date=True)
    if call.dry_run:
        return planned(plan.kind, output, plan.shaped_by)
    from ance_cli.encoding.ray_workers import joined

    with joined(config.ray, config.gpus, config.cpu_workers, call.reporter) as cluster:
        job = _Job(checkpoint, dataset, plan, config, tokens, cluster, call)
        return _encode_shard(job, shard) if shard else _encode_all(job)


def _encode_all(job: _Job) -> Summary:
    output = job.plan.output
    with lease.hold(lease.lease_name(output), str(output)):
        with _no_shard(output):
            job.open()
        try:
            work, seconds = job.encode(job.writer.missing())
        except AnceError:
            job.drop_if_empty()
            raise
        return job.publish(work, seconds)


def _encode_shard(job: _Job, shard: Shard) -> Summary:
    """One shard's blocks. What all share is prepared, and published, by one process at a time."""
    output, say = job.plan.output, job.call.reporter.say
    main, own = lease.lease_name(output), _shard_lease(output, shard)
    what = f"shard {shard[0]} of {shard[1]} of {output}"
    with ExitStack() as holding:
        with lease.hold_in_turn(main, str(output), say):
            if manifest := job.plan.published():
                return summary_of(manifest, output, up_to_date=True)
            holding.enter_context(lease.hold(own, what))
            job.open()
        blocks = [block for block in job.writer.missing() if block % shard[1] == shard[0] - 1]
        work, seconds = job.encode(blocks)
        with lease.hold_in_turn(main, str(output), say):
            if manifest := job.plan.published():
                return summary_of(manifest, output, up_to_date=False)
            if left := len(job.writer.missing()):
                return {
                    "output": str(output),
                    "kind": job.plan.kind,
                    "up_to_date": False,
                    "shard": f"{shard[0]}/{shard[1]}",
                    "blocks_encoded": len(blocks),
                    "blocks_left": left,
                    **job.figures(work, seconds),
                }
            return job.publish(work, seconds)


def _shard_lease(output: Path, shard: Shard) -> Path:
    return lease.lease_name(output.with_name(f"{output.name}.shard-{shard[0]}-of-{shard[1]}"))


@contextmanager
def _no_shard(output: Path) -> Iterator[None]:
    """Raises `Busy` where a shard of the output is being encoded. None can begin meanwhile: it
    needs the output's own lease first."""
    pattern = lease.lease_name(output.with_name(f"{glob.escape(output.name)}.shard-*")).name
    with ExitStack() as held:
        for path in sorted(output.parent.glob(pattern)):
            held.enter_context(lease.hold(path, f"a shard of {output}"))
        yield


def _plan(
    checkpoint: Checkpoint,
    dataset: Dataset,
    output: Path,
    config: EncodeConfig,
    skipped: SkippedLines | None,
) -> Plan:
    side = config.side
    inputs = {"tower": checkpoint.tower_hash(side)}
    block_docs = BLOCK_DOCS
    if side == "passage":
        read = tokens_plan(checkpoint, dataset, None, skipped)
        inputs["corpus"], block_docs = read.inputs["corpus"], read.shaped_by["block_docs"]
    else:
        queries = queries_of_split(dataset, skipped)
        inputs["queries"] = hash_lines(f"{name}\t{text}" for name, text in queries.items())
    shaped_by = {
        "side": side,
        "dtype": config.dtype,
        "output_dtype": config.output_dtype,
        "block_docs": block_docs,
        **checkpoint.settings.shaping(side),
    }
    ran_with = {"checkpoint": str(checkpoint.path), "gpus": config.gpus}
    reads = (checkpoint.path, *dataset.files)
    return Plan("embeddings", output, shaped_by, inputs, ran_with, reads)


class _Job:
    """One call's work on an output: open, encode some blocks, publish."""

    tokens: TokenCache
    writer: EmbeddingsWriter

    def __init__(
        self,
        checkpoint: Checkpoint,
        dataset: Dataset,
        plan: Plan,
        config: EncodeConfig,
        tokens_folder: Path | None,
        cluster: Cluster | None,
        call: Call,
    ) -> None:
        self.checkpoint = checkpoint
        self.dataset = dataset
        self.plan = plan
        self.config = config
        self.tokens_folder = tokens_folder
        self.cluster = cluster
        self.call = call

    def open(self) -> None:
        """Find the tokens and the unfinished embeddings, or begin them."""
        from ance_cli.models.devices import choose_devices, choose_dtype

        if self.cluster:
            self.devices, dtype = self.cluster.devices, self.cluster.dtype(self.config.dtype)
        else:
            self.devices = choose_devices(self.config.gpus)
            if self.devices[0].type == "cpu":
                self.devices = self.devices * self.config.cpu_workers
            dtype = choose_dtype(self.config.dtype, self.devices[0])
        self.plan.shaped_by["dtype"] = dtype
        self.plan.ran_with["devices"] = [str(device) for device in self.devices]
        self.tokens = self._find_tokens()
        folder = self.plan.open_partial(self.call.force)
        self.writer = EmbeddingsWriter.begin(
            folder, self.tokens.doc_offsets, self.checkpoint.dim, self.config.output_dtype,
            self.tokens.block_docs,
        )  # fmt: skip

    def _find_tokens(self) -> TokenCache:
        """The corpus's from the cache; queries are few, and theirs lie beside the output."""
        if self.config.side == "passage":
            return corpus_tokens(self.checkpoint, self.dataset, self.tokens_folder, self.call)
        plan = Plan(
            KIND,
            self._query_tokens,
            {name: self.plan.shaped_by[name]
             for name in ("block_docs", *self.checkpoint.settings.shaping("query"))},
            {"queries": self.plan.inputs["queries"],
             "tokenizer": tokenizer_hash(self.checkpoint.tower("query"))},
        )  # fmt: skip
        atomic.remove(plan.output)
        queries = queries_of_split(self.dataset, self.call.skipped)
        whole = replace(self.call, skipped=None)
        write_tokens(plan, self.checkpoint, queries.items(), "query", len(queries), whole)
        return TokenCache(plan.output)

    @property
    def _query_tokens(self) -> Path:
        return self.plan.output.with_name(f".{self.plan.output.name}.tokens")

    def encode(self, blocks: list[int]) -> tuple[Work, float]:
        """Encode some blocks, here or in worker processes; what was done, in how many seconds."""
        from ance_cli.encoding.blocks import BlockEncoder, Work

        work = Work()
        started = time.monotonic()
        if not blocks:
            return work, 0.0
        done = self.writer.num_blocks - len(self.writer.missing())
        if done:
            self.call.reporter.say(f"{done} of {self.writer.num_blocks} blocks are done already")
        sizes = self.tokens.block_tokens
        with self.call.reporter.task("encoding", int(sizes[blocks].sum()), "token") as bar:
            listener = _Listener(work, bar, self.call.reporter)
            jobs = self._jobs()
            if self.cluster:
                work.capacity = self.cluster.encode(jobs, blocks, listener)
            elif len(jobs) == 1:
                remaining = iter(blocks)
                encoder = BlockEncoder(jobs[0], listener)
                work.capacity = encoder.run(lambda: next(remaining, None))
            else:
                from ance_cli.encoding.workers import run_workers

                threads = int(os.environ.get("OMP_NUM_THREADS", 0)) or os.cpu_count() or 1
                share = max(1, threads // len(jobs))
                work.capacity = run_workers(jobs, share, blocks, listener)
        return work, time.monotonic() - started

    def drop_if_empty(self) -> None:
        """Remove a partial folder in which nothing was done: whoever mends what was wrong with the
        checkpoint comes with another tower, which would be refused for its sake."""
        if len(self.writer.missing()) == self.writer.num_blocks:
            atomic.remove(self.plan.partial)

    def _jobs(self) -> list[EncodeJob]:
        from ance_cli.encoding.blocks import EncodeJob
        from ance_cli.models.tokens import Tokenizer

        side = self.config.side
        pad_id = Tokenizer(self.checkpoint).pad_id_of(side)
        return [
            EncodeJob(
                checkpoint=str(self.checkpoint.path),
                settings=asdict(self.checkpoint.settings),
                side=side,
                tokens=str(self.tokens.folder),
                folder=str(self.writer.folder),
                output_dtype=self.config.output_dtype,
                block_docs=self.writer.block_docs,
                device=str(device),
                dtype=self.plan.shaped_by["dtype"],
                batch_tokens=self.config.tokens_for(device.type),
                pad_id=pad_id,
            )
            for device in self.devices
        ]

    def figures(self, work: Work, seconds: float) -> dict[str, Any]:
        """What this call did, and how fast. `mfu` is the share of what matrix products reach."""
        figures: dict[str, Any] = {
            "tokens": work.tokens,
            "seconds": round(seconds, 2),
            "rows_per_s": round(work.rows / seconds, 1) if seconds else 0.0,
            "tokens_per_s": round(work.tokens / seconds) if seconds else 0,
            "dtype": self.plan.shaped_by["dtype"],
        }
        if work.tokens:
            figures["padding"] = round(work.padded_tokens / work.tokens - 1, 4)
        if work.capacity:
            figures["mfu"] = round(work.flops / work.capacity, 3)
        return figures

    def publish(self, work: Work, seconds: float) -> Summary:
        content = self.writer.finish(self.tokens.doc_ids())
        stats = {
            **{name: content[name] for name in ("docs", "rows", "dim")},
            **self.figures(work, seconds),
        }
        manifest = self.plan.publish_folder(content, stats, UNFINISHED_ONLY)
        if self.config.side == "query":
            atomic.remove(self._query_tokens)
        return summary_of(manifest, self.plan.output, up_to_date=False)


class _Listener:
    """Adds up the work and moves the bar."""

    def __init__(self, work: Work, bar: Bar, reporter: Reporter) -> None:
        self._work, self._bar = work, bar
        self.say = reporter.say

    def encoded(self, block: int, tokens: int) -> None:
        self._bar.advance(tokens)

    def finished(self, block: int, work: Work) -> None:
        self._work.add(work)
