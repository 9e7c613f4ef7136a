"""The names of the files in a resume state."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StateFolder:
    """The files of one resume state."""

    path: Path

    @property
    def weights(self) -> Path:
        return self.path / "weights.safetensors"

    @property
    def optimizer(self) -> Path:
        """The optimizer's moments."""
        return self.path / "optimizer.safetensors"

    @property
    def progress(self) -> Path:
        """The step and the position in the data (`TrainerState`)."""
        return self.path / "state.json"
