"""`ance encode`: a corpus, or queries, to memory-mapped vectors."""

from __future__ import annotations

import glob
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ance_cli.call import Call
from ance_cli.config import EncodeConfig, shaped_by
from ance_cli.config.sets import Dtype
from ance_cli.encoding.changes import Changes, compare
from ance_cli.encoding.tokenize import CorpusTokens, QueryTokens, Tokens
from ance_cli.errors import AnceError, UsageProblem
from ance_cli.formats import atomic, lease
from ance_cli.formats.dataset import Dataset
from ance_cli.formats.embeddings import (
    DOC_HASHES,
    DONE,
    KEPT,
    RECALL_FIGURE,
    UNFINISHED_ONLY,
    Embeddings,
    EmbeddingsWriter,
    load_array,
    save_array,
)
from ance_cli.formats.jsonl import refuse_stdio
from ance_cli.formats.plan import Plan
from ance_cli.formats.summary import Summary, planned, summary_of
from ance_cli.formats.tokens import TokenCache
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.progress import Bar, Reporter

if TYPE_CHECKING:
    import torch

    from ance_cli.encoding.blocks import EncodeJob, Work
    from ance_cli.models.ray_cluster import Cluster

Shard = tuple[int, int]
"""(number, count): part `number`, from 1, of `count` parts."""


def parse_shard(text: str | None) -> Shard | None:
    """`2/8`: the second of eight parts."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
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
    append: bool = False,
    call: Call = Call(),
) -> Summary:
    """Encode the dataset's corpus (`config.side` passage) or its queries (query).

    The corpus's tokens are read from its token cache, in the folder `tokens` or else in the cache
    folder; the cache is made if it does not exist. Only missing blocks are encoded. `shard` (i, n)
    encodes every n-th block, for n such calls at the same time on one file system; the last call to
    finish publishes the output. With `config.ray` the workers are processes of a Ray cluster.

    With `append` the output may have the vectors of an earlier corpus. Those of documents whose
    tokens are still the same are copied, and the others are encoded. Raises `Mismatch` if the
    output differs in more than the corpus.

    Raises `BadInput` for a broken corpus, an incomplete checkpoint or vectors that are not finite,
    and `ResourceExhausted` if every worker process died.
    """
    refuse_stdio(output, "an embeddings folder")
    if shard and call.force:
        raise UsageProblem(
            "--force with --shard: each shard would remove the blocks of the others",
            hint=f"remove {output} and {atomic.companion(output, '.{}.partial')} first, or name "
            "another -o",
        )
    if append and call.force:
        raise UsageProblem(
            "--append with --force: one keeps vectors of the output, the other encodes all again",
            hint="leave one of them out",
        )
    checkpoint.need_head()
    texts: Tokens = (
        CorpusTokens(checkpoint, dataset, tokens, call)
        if config.side == "passage"
        else QueryTokens(checkpoint, dataset, output, call)
    )
    plan = _plan(checkpoint, dataset, texts, output, config)
    plan.append = append
    if manifest := plan.published(call.force):
        return summary_of(manifest, output, up_to_date=True)
    if call.dry_run:
        return planned(plan.kind, output, plan.shaped_by)
    if checkpoint.scales_vectors:
        call.reporter.say(
            f"{checkpoint.shown} compares by cosine and has no Normalize: its vectors are stored "
            "with length one"
        )
    with _cluster(config, call.reporter) as cluster:
        encoding = _Encoding(checkpoint, texts, plan, config, cluster, call)
        return _encode_shard(encoding, shard) if shard else _encode_all(encoding)


def _plan(
    checkpoint: Checkpoint, dataset: Dataset, texts: Tokens, output: Path, config: EncodeConfig
) -> Plan:
    shaping = {
        **shaped_by(config),
        "block_docs": texts.block_docs,
        **checkpoint.settings.shaping(config.side),
    }
    inputs = {"tower": checkpoint.tower_hash(config.side), **texts.inputs}
    ran_with = {
        "checkpoint": str(checkpoint.path),
        "similarity": "cosine" if checkpoint.is_cosine else "dot",
        "gpus": config.gpus,
    }
    reads = (checkpoint.path, *dataset.files)
    return Plan("embeddings", output, shaping, inputs, ran_with, reads, [*texts.inputs])


@contextmanager
def _cluster(config: EncodeConfig, reporter: Reporter) -> Iterator[Cluster | None]:
    """The Ray cluster that the config names, None if it names none."""
    if config.ray is None:
        yield None
        return
    from ance_cli.models.ray_cluster import joined

    with joined(config, config.cpu_workers, reporter) as cluster:
        yield cluster


# ---------------------------------------------------------------- all blocks, or a shard of them


def _encode_all(encoding: _Encoding) -> Summary:
    output = encoding.plan.output
    with lease.hold(lease.lease_name(output), str(output)):
        with _no_shard(output):
            encoding.open(alone=True)
        try:
            work, seconds = encoding.encode(encoding.writer.missing())
        except AnceError:
            encoding.drop_if_empty()
            raise
        return encoding.publish(work, seconds)


def _encode_shard(encoding: _Encoding, shard: Shard) -> Summary:
    """Encode one shard's blocks. One process at a time prepares the shared folder, or publishes
    it."""
    plan, say = encoding.plan, encoding.call.reporter.say
    output = plan.output
    main, own = lease.lease_name(output), _shard_lease(output, shard)
    with ExitStack() as holding:
        with lease.hold_in_turn(main, str(output), say):
            if manifest := plan.published():
                return summary_of(manifest, output, up_to_date=True)
            holding.enter_context(lease.hold(own, f"shard {shard[0]} of {shard[1]} of {output}"))
            encoding.open(alone=False)
        missing = encoding.writer.missing()
        blocks = [block for block in missing if block % shard[1] == shard[0] - 1]
        work, seconds = encoding.encode(blocks)
        with lease.hold_in_turn(main, str(output), say):
            if manifest := plan.published():
                return summary_of(manifest, output, up_to_date=False)
            if not (left := len(encoding.writer.missing())):
                return encoding.publish(work, seconds)
    return {
        "output": str(output),
        "kind": plan.kind,
        "up_to_date": False,
        "shard": f"{shard[0]}/{shard[1]}",
        "blocks_encoded": len(blocks),
        "blocks_left": left,
        **encoding.figures(work, seconds),
    }


def _shard_lease(output: Path, shard: Shard) -> Path:
    return atomic.companion(output, f".{{}}.shard-{shard[0]}-of-{shard[1]}.lease")


@contextmanager
def _no_shard(output: Path) -> Iterator[None]:
    """Raises `Busy` if a shard of the output is being encoded. No shard can begin while the caller
    holds the output's own lease, which a shard needs first."""
    place = atomic.place_of(output)
    with ExitStack() as held:
        for path in sorted(place.parent.glob(f".{glob.escape(place.name)}.shard-*.lease")):
            held.enter_context(lease.hold(path, f"a shard of {output}"))
        yield


# ---------------------------------------------------------------- the work on an output


class _Encoding:
    """One call's work on an output: open it, encode some blocks, publish it."""

    tokens: TokenCache
    writer: EmbeddingsWriter
    devices: list[torch.device]
    changes: Changes | None = None
    """Since the earlier vectors of which some are kept; None: none are."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        texts: Tokens,
        plan: Plan,
        config: EncodeConfig,
        cluster: Cluster | None,
        call: Call,
    ) -> None:
        self.checkpoint, self.texts, self.plan = checkpoint, texts, plan
        self.config, self.cluster, self.call = config, cluster, call

    def open(self, alone: bool) -> None:
        """Choose the devices, open the tokens, and open or begin the unfinished embeddings.

        `alone`: no other process works on them, so an interrupted update to another corpus, which
        is little work, may be given up.
        """
        self.devices, dtype = self._devices_and_dtype()
        self.config = replace(self.config, dtype=cast(Dtype, dtype))
        self.plan.shaped_by["dtype"] = dtype
        self.plan.ran_with["devices"] = [str(device) for device in self.devices]
        earlier = self._earlier() if self.plan.append else None
        self.tokens = self.texts.open()
        partial = self.plan.partial
        is_update = (partial / KEPT).exists() or not (partial / DONE).exists()
        self.plan.open_partial(self.call.force, abandon_other=bool(earlier) and alone and is_update)
        try:
            self._note_texts(partial, earlier)
        except AnceError:
            if not (partial / DONE).exists():
                atomic.remove(partial)
            raise
        self.writer = EmbeddingsWriter.begin(
            partial, self.tokens.doc_offsets, self.checkpoint.dim, self.config.output_dtype,
            self.tokens.block_docs,
        )  # fmt: skip

    def _note_texts(self, partial: Path, earlier: Embeddings | None) -> None:
        """Write the hashes of the documents, and which of the earlier rows they keep."""
        if not (partial / DOC_HASHES).exists():
            save_array(partial / DOC_HASHES, self.tokens.doc_hashes())
        if earlier:
            kept, self.changes = compare(earlier, self.tokens, load_array(partial / DOC_HASHES))
            save_array(partial / KEPT, kept)
            self.call.reporter.say(str(self.changes))

    def _earlier(self) -> Embeddings | None:
        """The output as it is, of which vectors are kept; None if there is none yet."""
        self.plan.published()  # refuses another number format, which is known now
        if not self.plan.exists:
            self.call.reporter.say(f"{self.plan.output}: is new, so every document is encoded")
            return None
        earlier = Embeddings(self.plan.output)
        earlier.need_doc_hashes()
        return earlier

    def _devices_and_dtype(self) -> tuple[list[torch.device], str]:
        """The device of each worker, and the number format with `auto` resolved on it."""
        if self.cluster:
            return self.cluster.devices, self.cluster.dtype(self.config.dtype)
        from ance_cli.models.devices import choose_devices, choose_dtype

        devices = choose_devices(self.config.gpus)
        if devices[0].type == "cpu":
            devices = devices * self.config.cpu_workers
        return devices, choose_dtype(self.config.dtype, devices[0])

    def encode(self, blocks: list[int]) -> tuple[Work, float]:
        """Encode some blocks; returns what was done, and in how many seconds."""
        from ance_cli.encoding.blocks import Work

        work = Work()
        started = time.monotonic()
        if not blocks:
            return work, 0.0
        done = self.writer.num_blocks - len(self.writer.missing())
        if done:
            self.call.reporter.say(f"{done} of {self.writer.num_blocks} blocks are done already")
        tokens = int(self.tokens.block_tokens[blocks].sum())
        with self.call.reporter.task("encoding", tokens, "token") as bar:
            work.capacity = self._run(blocks, _Progress(work, bar, self.call.reporter))
        return work, time.monotonic() - started

    def _run(self, blocks: list[int], progress: _Progress) -> float:
        """Encode in a cluster, in this process, or in one process per device; the FLOPs that the
        devices could have done in the same time."""
        jobs = self._jobs()
        if self.cluster:
            from ance_cli.encoding.ray_workers import encode_in_cluster

            return encode_in_cluster(self.cluster, jobs, blocks, progress)
        if len(jobs) == 1:
            from ance_cli.encoding.blocks import encode_here

            return encode_here(jobs[0], blocks, progress)
        from ance_cli.encoding.workers import encode_in_processes

        return encode_in_processes(jobs, blocks, progress)

    def _jobs(self) -> list[EncodeJob]:
        """One job per device."""
        from ance_cli.encoding.blocks import EncodeJob
        from ance_cli.models.tokens import Tokenizer

        job = EncodeJob(
            checkpoint=str(self.checkpoint.path),
            settings=self.checkpoint.settings,
            tokens=str(self.tokens.folder),
            folder=str(self.writer.folder),
            config=self.config,
            device="",
            pad_id=Tokenizer(self.checkpoint).pad_id_of(self.config.side),
            earlier=str(self.plan.output) if self.changes else None,
        )
        return [replace(job, device=str(device)) for device in self.devices]

    def drop_if_empty(self) -> None:
        """Remove a partial folder without a single block. A user who fixes the checkpoint comes
        back with another tower, which an unfinished folder would refuse."""
        if len(self.writer.missing()) == self.writer.num_blocks:
            atomic.remove(self.plan.partial)

    def figures(self, work: Work, seconds: float) -> dict[str, Any]:
        """What this call did, and how fast. `mfu` is a fraction of the speed of large matrix
        products."""
        figures: dict[str, Any] = {
            "tokens": work.tokens,
            "seconds": round(seconds, 2),
            "rows_per_s": round(work.rows / seconds, 1) if seconds else 0.0,
            "tokens_per_s": round(work.tokens / seconds) if seconds else 0,
            "dtype": self.config.dtype,
        }
        if any(device.type == "cuda" for device in self.devices):
            figures["batches"] = "packed" if work.packed_rows == work.rows else "padded"
        if work.tokens:
            figures["padding"] = round(work.padded_tokens / work.tokens - 1, 4)
        if work.capacity:
            figures["mfu"] = round(work.flops / work.capacity, 3)
        if self.changes:
            figures |= asdict(self.changes)
        return figures

    def publish(self, work: Work, seconds: float) -> Summary:
        content = self.writer.finish(self.tokens.doc_ids())
        stats = {
            **{name: content[name] for name in ("docs", "rows", "dim")},
            "cut": self.tokens.num_cut,
            **self.figures(work, seconds),
        }
        if (recall := self.writer.recall) is not None:
            stats[RECALL_FIGURE] = round(recall, 4)
        manifest = self.plan.publish_folder(content, stats, UNFINISHED_ONLY)
        self.texts.close()
        return summary_of(manifest, self.plan.output, up_to_date=False)


class _Progress:
    """Adds up the work and advances the bar."""

    def __init__(self, work: Work, bar: Bar, reporter: Reporter) -> None:
        self._work, self._bar = work, bar
        self.say = reporter.say

    def encoded(self, block: int, tokens: int) -> None:
        self._bar.advance(tokens)

    def finished(self, block: int, work: Work) -> None:
        self._work.add(work)
