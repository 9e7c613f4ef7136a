"""The full state of a training run on disk: weights, optimizer, step and stream position.

Tensors are stored as safetensors and the rest as JSON, so a state is never unpickled. The learning
rate is a function of the step, and dropout is seeded by (seed, step), so neither is stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ance_cli.errors import BadInput, as_bad_input
from ance_cli.formats import atomic
from ance_cli.formats.hashing import hash_file, hash_new_file
from ance_cli.formats.records import check_hash, read_record, with_hash
from ance_cli.formats.state_folder import StateFolder
from ance_cli.models.dual import DualEncoder
from ance_cli.training.data import StreamPosition
from ance_cli.training.sharding import divided, whole_tensors


@dataclass(frozen=True)
class TrainerState:
    """The progress of a run: `step` optimizer steps done, `position` pairs of `epoch` visited.

    `losses` holds the losses since the last line of the log, so that a resumed run logs the same
    means as an uninterrupted one; `dtype` is the number format of the computation.
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
    is_main: bool = True,
) -> None:
    """Write a state folder; it appears under its name only when it is complete.

    Every rank must call this; only the main one writes.
    """
    partial = atomic.partial_name(folder)
    files = StateFolder(partial)
    tensors_of = {
        files.weights: _own_weights(encoder),
        files.optimizer: {
            f"{index}/{name}": value
            for index, slots in optimizer.state_dict()["state"].items()
            for slot, moment in slots.items()
            for name, value in _plain(slot, moment)
        },
    }
    if is_main:
        atomic.remove(partial)
    with atomic.disk_errors(folder):
        if is_main:
            partial.mkdir(parents=True)
        for path, tensors in tensors_of.items():
            found = whole_tensors(tensors, keep=is_main)
            if is_main:
                save_file({name: value.contiguous() for name, value in found.items()}, path)
        if not is_main:
            return
        hashes = {path.name: hash_new_file(path) for path in (files.weights, files.optimizer)}
        record = with_hash({**asdict(state), "files_xxh3": hashes})
        files.progress.write_bytes(orjson.dumps(record))
    atomic.publish_folder(partial, folder)


def _own_weights(encoder: DualEncoder) -> dict[str, Tensor]:
    """What training can change: the trained weights once, though two modules may share them, and
    the buffers. The others are those of the run's checkpoints."""
    trained = {name for name, weights in encoder.named_parameters() if weights.requires_grad}
    frozen = {name for name, weights in encoder.named_parameters(remove_duplicate=False)} - trained
    return {name: each for name, each in encoder.state_dict().items() if name not in frozen}


def load_state(
    folder: Path, encoder: DualEncoder, optimizer: torch.optim.Optimizer
) -> TrainerState:
    """Put a state's tensors into the encoder and the optimizer; returns the progress of the run.

    Raises `BadInput` if a file does not load or differs from its hash in `state.json`.
    """
    hint = "restore the folder, or remove it to continue from the state before it"
    with as_bad_input(f"{folder}: this resume state does not load", hint=hint):
        files = StateFolder(folder)
        like = _own_weights(encoder)
        weights = load_file(files.weights)
        if weights.keys() != like.keys():
            raise BadInput(f"{files.weights}: holds the weights of another encoder", hint=hint)
        whole = {name: divided(each, like[name]) for name, each in weights.items()}
        encoder.load_state_dict(whole, strict=False)
        slots = _slots(load_file(files.optimizer))
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        for index, slot in slots.items():
            slots[index] = {name: divided(each, trained[index]) for name, each in slot.items()}
        state = read_record(files.progress, TrainerState)
        record = read_record(files.progress, dict[str, Any])
        check_hash(files.progress, record, hint)
        for name, noted in record.get("files_xxh3", {}).items():
            if hash_file(folder / name) != noted:
                raise BadInput(
                    f"{folder / name}: is damaged: its hash differs from the one in "
                    f"{files.progress.name}",
                    hint=hint,
                )
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
    return state


_PARTS = ("codes", "scale", "qmap")
"""Of an 8-bit moment of torchao: a code for each number, a scale for each block, and the number
that each code stands for."""


def _plain(slot: str, moment: Tensor) -> list[tuple[str, Tensor]]:
    """The plain tensors of a slot of an optimizer, by name."""
    if not hasattr(moment, "qmap"):
        return [(slot, moment)]
    return [(f"{slot}/{part}", getattr(moment, part)) for part in _PARTS]


def _slots(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """The slots of each parameter, by its index, from what `_plain` made of them."""
    slots: dict[int, dict[str, Tensor]] = {}
    parts: dict[tuple[int, str], dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, slot, *part = key.split("/")
        if part:
            parts.setdefault((int(index), slot), {})[part[0]] = tensor
        else:
            slots.setdefault(int(index), {})[slot] = tensor
    for (place, slot), found in parts.items():
        slots.setdefault(place, {})[slot] = _moment_of(**found)
    return slots


def _moment_of(codes: Tensor, scale: Tensor, qmap: Tensor) -> Tensor:
    """An 8-bit moment of torchao."""
    from torchao.optim.subclass_8bit import OptimState8bit

    signed = bool((qmap < 0).any())
    moment: Tensor = OptimState8bit(codes, scale, qmap, signed, dtype=torch.float32)
    return moment
