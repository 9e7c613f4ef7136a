"""The full state of a training run on disk: weights, optimizer, step and stream position.

Tensors go to safetensors and the rest to JSON, so that a state is never unpickled. The learning
rate is a function of the step, and dropout is seeded by (seed, step), so neither needs storing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors.torch import load_file, save_file

from ance_cli.errors import as_bad_input
from ance_cli.formats import atomic
from ance_cli.formats.records import read_record
from ance_cli.formats.state_folder import StateFolder
from ance_cli.models.dual import DualEncoder
from ance_cli.training.data import StreamPosition


@dataclass(frozen=True)
class TrainerState:
    """Where a run stands: `step` optimizer steps done, `position` pairs of `epoch` visited.

    `losses` are those since the last line of the log, so that a resumed log is the uninterrupted
    one; `dtype` is the number format that the run computes in.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    losses: list[float] = field(default_factory=list)
    dtype: str = ""

    @property
    def stream(self) -> StreamPosition:
        return StreamPosition(self.epoch, self.position)


def save_state(
    folder: Path,
    encoder: DualEncoder,
    optimizer: torch.optim.Optimizer,
    state: TrainerState,
) -> None:
    """Publish a state folder whole."""
    partial = atomic.partial_name(folder)
    files = StateFolder(partial)
    atomic.remove(partial)
    with atomic.disk_errors(folder):
        partial.mkdir(parents=True)
        weights = {name: value.contiguous() for name, value in encoder.state_dict().items()}
        save_file(weights, files.weights)
        tensors = {
            f"{index}/{name}": value.contiguous()
            for index, slots in optimizer.state_dict()["state"].items()
            for name, value in slots.items()
        }
        save_file(tensors, files.optimizer)
        files.progress.write_bytes(orjson.dumps(asdict(state)))
    atomic.publish_folder(partial, folder)


def load_state(
    folder: Path, encoder: DualEncoder, optimizer: torch.optim.Optimizer
) -> TrainerState:
    """Put a state's tensors into the encoder and the optimizer; returns where the run stands."""
    with as_bad_input(
        f"{folder}: this resume state does not load",
        hint="bring the folder back, or remove it to go on from the state before it, if there is "
        "one",
    ):
        files = StateFolder(folder)
        encoder.load_state_dict(load_file(files.weights))
        slots: dict[int, dict[str, Any]] = {}
        for key, value in load_file(files.optimizer).items():
            index, name = key.split("/", 1)
            slots.setdefault(int(index), {})[name] = value
        state = read_record(files.progress, TrainerState)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
    return state
