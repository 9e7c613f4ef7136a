"""The training loop of one segment."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ance_cli.config import SegmentConfig, TrainConfig
from ance_cli.errors import Diverged, hold_signals
from ance_cli.models.devices import torch_dtype
from ance_cli.models.encoder import Encoder
from ance_cli.models.tokens import TokenRows
from ance_cli.negatives.sampling import keyed_generator
from ance_cli.progress import Reporter
from ance_cli.training.data import Batch, PairStream, StreamPosition, rows_of_members
from ance_cli.training.loss import nll, pair_scores
from ance_cli.training.state import Standing


@dataclass
class Trainer:
    """Trains `encoder` on the stream's pairs from `step` to `last_step`.

    `queries` and `passages` hold the token rows of `stream.query_ids` and `stream.doc_ids`. The
    owner is told when to keep something through the callbacks, each called between two steps.
    """

    encoder: Encoder
    optimizer: torch.optim.Optimizer
    stream: PairStream
    queries: TokenRows
    passages: TokenRows
    pad_id: int
    config: TrainConfig
    segment: SegmentConfig
    scale: float
    dtype: str
    device: torch.device
    step: int
    at: StreamPosition
    last_step: int
    save_state: Callable[[Trainer], None]
    save_checkpoint: Callable[[Trainer], None]
    log: Callable[[dict[str, Any]], None]
    facts: dict[str, Any] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)

    @property
    def standing(self) -> Standing:
        """Where the run stands, for its resume state."""
        return Standing(self.step, self.at.epoch, self.at.position, self.losses, self.dtype)

    def run(self, reporter: Reporter, first_step: int) -> None:
        """Train to the last step; raises `Diverged` before anything of a bad step is kept.

        A signal is obeyed after the step in hand, with the state saved.
        """
        if self.step == self.last_step:  # a kill came between the last state and its checkpoint
            self.save_checkpoint(self)
        total = self.last_step - first_step
        saved = time.monotonic()
        since, tokens, first_logged = time.monotonic(), 0, self.step
        losses = self.losses
        with (
            hold_signals() as stop,
            reporter.task("training", total, "step", done=self.step - first_step) as bar,
        ):
            while self.step < self.last_step:
                loss, norm, seen = self._optimizer_step()
                losses.append(loss)
                tokens += seen
                bar.advance()
                bar.describe(f"loss {sum(losses) / len(losses):.3f}")
                if self.step % self.segment.log_every == 0 or self.step == self.last_step:
                    elapsed = time.monotonic() - since
                    self.log(
                        {
                            "step": self.step,
                            "epoch": self.at.epoch,
                            "loss": round(sum(losses) / len(losses), 6),
                            "lr": self.config.learning_rate(self.step - 1),
                            "grad_norm": round(norm, 6),
                            "tokens_per_s": round(tokens / elapsed),
                            "steps_per_s": round((self.step - first_logged) / elapsed, 3),
                            **self.facts,
                        }
                    )
                    since, tokens, first_logged = time.monotonic(), 0, self.step
                    losses.clear()
                every = self.segment.checkpoint_every
                at_checkpoint = bool(every) and self.step % every == 0
                overdue = time.monotonic() - saved > 60 * self.segment.state_minutes
                if at_checkpoint or overdue or stop or self.step == self.last_step:
                    self.save_state(self)
                    saved = time.monotonic()
                if at_checkpoint or self.step == self.last_step:
                    self.save_checkpoint(self)
                if stop:
                    reporter.warn(
                        f"stopped after step {self.step}, state saved: the same command continues"
                    )
                    return

    def _optimizer_step(self) -> tuple[float, float, int]:
        """One optimizer step over `accumulation` micro-batches: loss, gradient norm, tokens."""
        seed = keyed_generator(self.config.seed, "dropout", self.step).integers(2**62)
        torch.manual_seed(int(seed))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate(self.step)
        self.encoder.train()
        total, tokens, at = 0.0, 0, self.at
        for _ in range(self.config.accumulation):
            batch, at = self.stream.next_batch(at, self.config.batch_size)
            scores, seen = self._scores(batch)
            loss = nll(scores * self.scale) / self.config.accumulation
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
            tokens += seen
        norm = float(
            torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), self.config.max_grad_norm)
        )
        if not (torch.isfinite(torch.tensor([total, norm])).all()):
            raise Diverged(
                f"step {self.step + 1}: loss {total}, gradient norm {norm}: training diverged; "
                "nothing of this step was kept",
                hint="start a new run with a smaller --lr, or more --warmup-steps",
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.at = at
        return total, norm, tokens

    def _scores(self, batch: Batch) -> tuple[Tensor, int]:
        """(B, 1 + n) scores of a micro-batch, and the tokens it took."""
        rows, rows_of = rows_of_members(batch, self.passages)
        passage_ids, passage_mask = self.passages.padded(rows, self.pad_id)
        query_ids, query_mask = self.queries.padded(batch.queries, self.pad_id)
        with torch.autocast(
            self.device.type, dtype=torch_dtype(self.dtype), enabled=self.dtype != "fp32"
        ):
            q = self.encoder(*self._tensors(query_ids, query_mask))  # (B, d)
            d = self.encoder(*self._tensors(passage_ids, passage_mask))  # (R, d)
        scores = pair_scores(q, d, *self._tensors(rows_of))
        return scores, int(query_mask.sum() + passage_mask.sum())

    def _tensors(self, *arrays: Any) -> list[Tensor]:
        return [torch.from_numpy(array).to(self.device) for array in arrays]
