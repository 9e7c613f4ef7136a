"""The training loop of one segment, on one rank."""

from __future__ import annotations

import math
import signal
import time
from dataclasses import InitVar, dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from ance_cli.config import SegmentConfig, TrainConfig
from ance_cli.errors import Diverged, Stopped, hold_signals
from ance_cli.formats.tokens import TokenRows
from ance_cli.mining.sampling import keyed_generator
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.dual import DualEncoder
from ance_cli.models.flops import training_flops
from ance_cli.models.tokens import Tokenizer
from ance_cli.progress import Reporter
from ance_cli.training.data import Batch, Ints, NegativesSnapshot
from ance_cli.training.distributed import World
from ance_cli.training.generation_watcher import GenerationWatcher
from ance_cli.training.grad_cache import GradCacheStep
from ance_cli.training.gradients import group_norms, layer_groups
from ance_cli.training.live import LiveNegatives
from ance_cli.training.loss import LossInputs, batch_loss, likely_positives, scores_by_width
from ance_cli.training.lr_schedule import learning_rate
from ance_cli.training.optim import set_learning_rate
from ance_cli.training.sharding import is_sharded, own_part, whole
from ance_cli.training.state import TrainerState

_POLL_SECONDS = 0.2
"""Between two looks for a new generation, while training waits for one."""
_TRY = "start a new run with a smaller --lr, or with more --warmup-steps"


@dataclass(frozen=True)
class TrainedModel:
    """An encoder in training, and the checkpoint that it was loaded from.

    `outline` is that of a sharded encoder.
    """

    start: Checkpoint
    tokenizer: Tokenizer
    encoder: DualEncoder
    optimizer: torch.optim.Optimizer
    outline: DualEncoder | None = None


class _Step(NamedTuple):
    """A step that was done, and its numbers () on the device."""

    number: int
    loss: Tensor
    norm: Tensor


class TrainerOutput(Protocol):
    """Writes what a trainer made. Every method is called between two steps: those that save on all
    ranks, because a sharded model is gathered from all, and the others on the main rank."""

    def save_state(self, trainer: Trainer) -> None: ...

    def save_checkpoint(self, trainer: Trainer) -> None: ...

    def log(self, line: dict[str, Any]) -> None: ...

    def log_switch(self, trainer: Trainer) -> None:
        """The next batch is the first one on the trainer's `snapshot`."""


@dataclass
class Trainer:
    """Trains `model` on the pairs of `snapshot`, from the step of `state` to `last_step`.

    `queries` holds the token rows of `TrainingSet.query_ids`. With `watcher`, the snapshot of a
    newer generation replaces `snapshot` between two steps. With `live`, negatives are retrieved at
    each step instead, and passages are not encoded. `ceiling` is the device's measured FLOP/s, 0 if
    unknown. `facts` are added to each line of the log.
    """

    model: TrainedModel
    snapshot: NegativesSnapshot
    queries: TokenRows
    config: TrainConfig
    segment: SegmentConfig
    dtype: str
    world: World
    state: InitVar[TrainerState]
    last_step: int
    output: TrainerOutput
    watcher: GenerationWatcher | None = None
    live: LiveNegatives | None = None
    ceiling: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self, state: TrainerState) -> None:
        self.step, self.at, self.losses = state.step, state.stream, state.losses
        self.encoder, self.optimizer = self.model.encoder, self.model.optimizer
        self.global_batch = self.config.batch_size * self.config.devices
        """Pairs in a micro-batch of all ranks together."""
        self._left_out: Tensor = torch.zeros((), device=self.world.device)
        """Documents that `in_batch_margin` left out of the last step, over its queries."""
        self._unread: list[_Step] = []
        """Steps whose numbers the host has not read: a GPU works on while they are there."""
        self._reads_each_step = self.world.device.type == "cpu"
        self._widths = self.config.widths(self.encoder.dim)
        self._is_cosine = self.model.start.is_cosine
        self._trained = [p for p in self.encoder.parameters() if p.requires_grad]
        self._groups = layer_groups(
            (name, p) for name, p in self.encoder.named_parameters() if p.requires_grad
        )
        self._model: nn.Module = self.world.wrap(self.encoder)
        pad_id = self.model.tokenizer.pad_id_of
        self._grad_cache_step = GradCacheStep(
            self._model, self.world, self.queries, self.snapshot.passages,
            (pad_id("query"), pad_id("passage")),
            "fp32" if is_sharded(self.encoder) else self.dtype,  # it casts its weights itself
            self.segment.grad_cache,
            all(tower.packs for tower in (self.encoder.query, self.encoder.passage)),
        )  # fmt: skip

    @property
    def trainer_state(self) -> TrainerState:
        """The progress of the run, for its resume state."""
        return TrainerState(self.step, self.at.epoch, self.at.position, self.losses, self.dtype)

    def run(self, reporter: Reporter, first_step: int) -> None:
        """Train to the last step; raises `Diverged` before anything of a bad step is written.

        On a GPU the losses are read only where something is written: the host would wait for the
        GPU, which would then wait for the next step.

        After a signal to any rank, all ranks finish their step and stop, with the state saved.
        """
        main = self.world.is_main
        if self.step > first_step and self._is_checkpoint:
            self.output.save_checkpoint(self)  # a kill may have come right after the state
        total = self.last_step - first_step
        saved = time.monotonic()
        speed = _Speed(
            self.step, self._grad_cache_step, self.encoder, self.ceiling, self.config.freeze_layers
        )
        with (
            hold_signals() as stop,
            reporter.task("training", total, "step", done=self.step - first_step) as bar,
        ):
            while self.step < self.last_step:
                if self.watcher is not None:
                    self._follow(self.watcher, stop, reporter)
                every = self.segment.log_every
                logged = (self.step + 1) % every == 0 or self.step + 1 == self.last_step
                norms = self._optimizer_step(with_groups=logged)
                bar.advance()
                overdue = main and time.monotonic() - saved > 60 * self.segment.state_minutes
                stopping, saving = self.world.all_reduce_sum(bool(stop), overdue)
                written = self._is_checkpoint or saving or stopping
                if logged or written or self._reads_each_step:
                    norms["grad_norm"] = round(self._read(), 6)
                    bar.describe(f"loss {sum(self.losses) / len(self.losses):.3f}")
                if logged:
                    rates = speed.since_last(self.step, self.world)
                    if main:
                        self.output.log(self._line(norms, rates))
                    self.losses.clear()
                if written:
                    self._save_state()
                    saved = time.monotonic()
                if self._is_checkpoint:
                    self.output.save_checkpoint(self)
                if written:  # for the main rank; in a collective of NCCL at most ten minutes
                    self.world.wait()
                if stopping:
                    reporter.warn(self._stopped)
                    return

    @property
    def _stopped(self) -> str:
        return f"the state after step {self.step} is saved"

    @property
    def _is_checkpoint(self) -> bool:
        """Whether a checkpoint is due after the steps done."""
        every = self.segment.checkpoint_every
        return self.step == self.last_step or bool(every and self.step % every == 0)

    def _save_state(self) -> None:
        """Save the state; raises `Diverged` if one of the steps since the last look went wrong."""
        if self._unread:
            self._read()
        self._check_weights()
        self.output.save_state(self)

    def _check_weights(self) -> None:
        """Raise `Diverged` if the last step made a weight that is not finite.

        A finite gradient does not rule that out, and no loss has shown it yet.
        """
        finite = all(bool(torch.isfinite(own_part(weights)).all()) for weights in self._trained)
        if not self.world.all_reduce_min(finite):
            raise Diverged(
                f"step {self.step}: a weight is not finite: training diverged; nothing of this "
                "step was written",
                hint=_TRY,
            )

    def _follow(self, watcher: GenerationWatcher, stop: list[int], reporter: Reporter) -> None:
        """Take the newest generation that every rank has read; wait for one if the negatives in use
        are too old.

        A signal ends the wait without another step: raises `Stopped`, with the state saved.
        """
        waiting = False
        while True:
            ready = self.world.all_reduce_min(watcher.ready(self.step))
            is_new = ready > (self.snapshot.generation or 0)
            if is_new and self.world.all_reduce_min(int(watcher.has(ready, self.step))):
                self.snapshot = watcher.take(ready)
                self._grad_cache_step.passages = self.snapshot.passages
                if self.world.is_main:
                    self.output.log_switch(self)
                    age = self.step - (self.snapshot.checkpoint_step or 0)
                    reporter.say(
                        f"step {self.step}: switched to generation {ready}, {age} steps old"
                    )
            limit = self.segment.max_staleness
            age = self.step - (self.snapshot.checkpoint_step or 0)
            if not limit or age < limit or watcher.is_replaying(self.step):
                return
            if self.world.all_reduce_sum(bool(stop))[0]:
                self._save_state()
                self.world.wait()  # no rank ends before the state is saved
                reporter.warn(self._stopped)
                raise Stopped(stop[0] if stop else signal.SIGTERM)
            if not waiting and self.world.is_main:
                reporter.say(
                    f"step {self.step}: waiting for a new generation, the negatives are {age} "
                    "steps old"
                )
            waiting = True
            time.sleep(_POLL_SECONDS)

    def _line(self, norms: dict[str, float], rates: dict[str, float]) -> dict[str, Any]:
        """One line of the log: the mean loss since the line before, the last step's norms, and the
        rates."""
        line = {
            "step": self.step,
            "epoch": self.at.epoch,
            "loss": round(sum(self.losses) / len(self.losses), 6),
            "lr": learning_rate(self.config, self.step - 1),
            **norms,
            **rates,
            **self.facts,
            "generation": self.snapshot.generation,
            "negatives_step": self.snapshot.checkpoint_step,
        }
        if self.snapshot.generation is not None and self.snapshot.checkpoint_step is not None:
            line["negatives_age"] = self.step - self.snapshot.checkpoint_step
        if self.config.in_batch_margin is not None:
            queries = self.global_batch * self.config.accumulation
            line["in_batch_left_out"] = round(float(self._left_out) / queries, 6)
        return line

    def _optimizer_step(self, with_groups: bool) -> dict[str, float]:
        """One optimizer step over `accumulation` micro-batches; the norms of the groups of layers,
        after a first entry for that of all gradients.

        Without them, nothing here waits for a GPU if batches are packed; transformers looks at the
        masks of padded ones.
        """
        set_learning_rate(self.optimizer, learning_rate(self.config, self.step))
        self.encoder.train()
        total, at = torch.zeros((), device=self.world.device), self.at
        self._left_out = torch.zeros_like(total)
        for micro in range(self.config.accumulation):
            batch, at = self.snapshot.stream.next_batch(at, self.global_batch)
            total += self._backward(batch, micro)
        total, self._left_out = self.world.summed(total / self.world.size, self._left_out)
        norms = {"grad_norm": 0.0}
        if with_groups:
            found = group_norms(self._groups)
            norms |= {f"grad_norm_{name}": round(norm, 6) for name, norm in found.items()}
        norm = whole(clip_grad_norm_(self._trained, self.config.max_grad_norm))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.at = at
        self._unread.append(_Step(self.step, total, norm))
        return norms

    def _read(self) -> float:
        """Read the losses of the steps since the last call; the last step's gradient norm.

        Raises `Diverged` if a loss or a norm is not finite.
        """
        read = torch.stack([torch.stack([step.loss, step.norm]) for step in self._unread]).cpu()
        for step, (loss, norm) in zip(self._unread, read.tolist(), strict=True):
            if not math.isfinite(loss) or not math.isfinite(norm):
                self.step = step.number - 1
                raise Diverged(
                    f"step {step.number}: loss {loss}, gradient norm {norm}: training diverged; "
                    "nothing of this step was written",
                    hint=_TRY,
                )
            self.losses.append(loss)
        self._unread.clear()
        return float(read[-1, 1])

    def _backward(self, batch: Batch, micro: int) -> Tensor:
        """Add the gradients of this rank's part of a micro-batch; returns its loss."""
        mine = self.world.part_of(len(batch.queries))
        last = micro == self.config.accumulation - 1
        key: list[str | int] = ["dropout", self.step]
        if micro or not self.world.is_main:
            key += [micro, self.world.rank]
        seed = int(keyed_generator(self.config.seed, *key).integers(2**62))
        most_queries = -(-len(batch.queries) // self.world.size)
        if self.live is not None:
            nothing = np.zeros(0, np.int64)
            return self._grad_cache_step.backward(
                batch.queries[mine], nothing, (most_queries, 0),
                lambda q, _: self._live_loss(q, batch, mine), last, seed,
            )  # fmt: skip
        rows, rows_of = self.snapshot.rows_of(batch.docs)
        counts = self.world.part_sums((rows_of >= 0).sum(1))
        first = sum(counts[: self.world.rank])
        own = rows[first : first + counts[self.world.rank]]
        places = self.world.to_device(rows_of)  # copied before the GPU is busy with the encoder
        inputs = self._loss_inputs(batch, mine)

        def loss_of(q: Tensor, d: Tensor | None) -> Tensor:
            assert d is not None
            gathered = self.world.gather(d[: len(own)], counts)
            by_width = scores_by_width(q, gathered, places, self._widths, self._is_cosine)
            kept = self._without_likely_positives(inputs, by_width[0])
            return torch.stack([self._loss(scores, kept) for scores in by_width]).mean()

        # a rank whose part has no document encodes one anyway: averaging the gradients waits for
        # every parameter
        return self._grad_cache_step.backward(
            batch.queries[mine], own if len(own) else rows[:1], (most_queries, max(counts)),
            loss_of, last, seed,
        )  # fmt: skip

    def _loss(self, scores: Tensor, loss_inputs: LossInputs) -> Tensor:
        scale = self.model.start.settings.scale
        return batch_loss(scores, loss_inputs, self.config, scale) / self.config.accumulation

    def _loss_inputs(self, batch: Batch, mine: Ints) -> LossInputs:
        """What the loss of this rank's queries takes at every width besides scores."""
        parts = (batch.members, batch.teacher, batch.banned, batch.picks)
        return LossInputs(*(self.world.to_device(part[mine]) for part in parts))

    def _without_likely_positives(self, inputs: LossInputs, scores: Tensor) -> LossInputs:
        """The inputs with the documents banned that `in_batch_margin` leaves out; `scores` (b, D)
        are those at the full width."""
        margin, banned = self.config.in_batch_margin, inputs.banned
        if margin is None or banned is None:
            return inputs
        left_out = likely_positives(scores, inputs.members, margin) & ~banned
        self._left_out += left_out.sum()
        return replace(inputs, banned=banned | left_out)

    def _live_loss(self, q: Tensor, batch: Batch, mine: Ints) -> Tensor:
        """The loss of the queries, with negatives retrieved from the frozen vectors."""
        assert self.live is not None
        positives = batch.docs[batch.members[mine, 0]]
        scores, members = self.live.scores(q, batch.queries[mine], positives, self.step)
        return self._loss(scores, LossInputs(members))


class _Speed:
    """Tokens and steps per second between two lines of the log, and MFU: the fraction of the
    device's measured FLOP/s."""

    def __init__(self, step: int, grad_cache_step: GradCacheStep, encoder: DualEncoder,
                 ceiling: float, frozen_layers: int) -> None:  # fmt: skip
        self._grad_cache_step, self._ceiling = grad_cache_step, ceiling
        self._frozen_layers = frozen_layers
        self._backbone = encoder.query.backbone
        self._begin(step)

    def _begin(self, step: int) -> None:
        self._since, self._step = time.monotonic(), step
        done = self._grad_cache_step
        done.tokens = done.computed = done.squares = 0

    def since_last(self, step: int, world: World) -> dict[str, float]:
        """The rates of all ranks together since the last call."""
        elapsed = time.monotonic() - self._since
        done = self._grad_cache_step
        flops = training_flops(self._backbone, done.computed, done.squares, self._frozen_layers)
        tokens, all_flops = world.all_reduce_sum(done.tokens, flops)
        found = {
            "tokens_per_s": round(tokens / elapsed),
            "steps_per_s": round((step - self._step) / elapsed, 3),
        }
        if self._ceiling:
            found["mfu"] = round(all_flops / elapsed / (self._ceiling * world.size), 4)
        self._begin(step)
        return found
