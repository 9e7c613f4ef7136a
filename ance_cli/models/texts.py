"""Texts to vectors in memory: queries, and small numbers of passages."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ance_cli.config import ComputeConfig
from ance_cli.config.sets import Side
from ance_cli.errors import BadInput
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.progress import Reporter


class TextEncoder:
    """One side of a checkpoint with its tokenizer, on the devices and in the number format that the
    config asks for."""

    def __init__(self, checkpoint: Checkpoint, side: Side, config: ComputeConfig) -> None:
        from ance_cli.models.devices import choose_devices, choose_dtype, torch_dtype
        from ance_cli.models.encoder import load_encoder
        from ance_cli.models.inference import InferenceEngine
        from ance_cli.models.tokens import Tokenizer

        self.devices = choose_devices(config.gpus)
        self._checkpoint, self._side = checkpoint, side
        self._tokenizer = Tokenizer(checkpoint)
        dtype = torch_dtype(choose_dtype(config.dtype, self.devices[0]))
        self._engine = InferenceEngine(
            load_encoder(checkpoint, side, dtype),
            self._tokenizer.pad_id_of(side),
            self.devices,
            config,
        )
        self.dtype = self._engine.dtype

    def __call__(
        self, texts: Sequence[str], on_rows: Callable[[int], None] | None = None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        """(rows, d) vectors, text by text, and (texts,) how many rows each has (MaxP passages).

        Raises `BadInput` if a vector is not finite.
        """
        rows = self._tokenizer(texts, self._side)
        vectors = self._engine.encode(rows, on_rows)
        if not np.isfinite(vectors).all():
            raise BadInput(
                f"{self._checkpoint.shown}: its {self._side} vectors are not finite",
                hint="the checkpoint is damaged or training diverged; use an earlier one, or "
                "--dtype fp32",
            )
        return vectors, rows.row_counts

    def queries(self, texts: Sequence[str], reporter: Reporter) -> npt.NDArray[np.float32]:
        """(nq, d) vectors of queries, with a progress bar; tells how many were cut."""
        with reporter.task("encoding queries", len(texts), "query") as bar:
            vectors, _ = self(texts, bar.advance)
        self.say_cut(reporter)
        return vectors

    def say_cut(self, reporter: Reporter) -> None:
        """Tell how many of the texts so far were cut, if any were."""
        self._tokenizer.say_cut(self._side, reporter)
