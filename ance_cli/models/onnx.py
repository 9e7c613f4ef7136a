"""One encoder as an ONNX graph, checked with onnxruntime."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from pathlib import Path

import numpy as np
import torch

from ance_cli.config.sets import Side
from ance_cli.errors import UsageProblem
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.encoder import load_encoder
from ance_cli.models.tokens import Tokenizer, load_tokenizer

GRAPH = "model.onnx"
INPUTS = ("input_ids", "attention_mask")
OUTPUT = "sentence_embedding"

_TEXTS = ("what causes gout", "A longer text " * 30, "granite", "")
"""Texts of different lengths, which check padding, widths and batches of several sizes."""


def need_onnx() -> None:
    """Raises `UsageProblem` if one of the packages is not installed."""
    packages = ("onnx", "onnxscript", "onnxruntime")
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise UsageProblem(
            f"the export to ONNX needs {' and '.join(missing)}, which is not installed",
            hint="pip install 'ance-cli[onnx]'",
        )


def write_onnx(checkpoint: Checkpoint, side: Side, folder: Path) -> float:
    """Write the encoder and the tokenizer of one side into `folder`.

    Encodes a few texts with onnxruntime, together and one by one, and returns the largest
    difference of a component to torch's vectors.
    """
    import onnxruntime

    encoder = load_encoder(checkpoint, side)
    tokenizer = Tokenizer(checkpoint)
    rows = tokenizer(_TEXTS, side)
    token_ids, mask = rows.padded(range(rows.num_rows), tokenizer.pad_id_of(side))
    inputs = torch.from_numpy(token_ids), torch.from_numpy(mask)
    _export(encoder, inputs, folder / GRAPH)
    load_tokenizer(checkpoint.tower(side)).save_pretrained(str(folder))

    session = onnxruntime.InferenceSession(folder / GRAPH, providers=["CPUExecutionProvider"])
    difference = 0.0
    for batch in (range(rows.num_rows), *([row] for row in range(rows.num_rows))):
        token_ids, mask = rows.padded(batch, tokenizer.pad_id_of(side))
        (found,) = session.run([OUTPUT], dict(zip(INPUTS, (token_ids, mask), strict=True)))
        with torch.inference_mode():
            expected = encoder(torch.from_numpy(token_ids), torch.from_numpy(mask)).numpy()
        difference = max(difference, float(np.abs(found - expected).max()))
    return difference


def _export(
    encoder: torch.nn.Module, inputs: tuple[torch.Tensor, torch.Tensor], path: Path
) -> None:
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's warnings about itself, which no user can act on
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            torch.onnx.export(
                encoder,
                inputs,
                path,
                input_names=INPUTS,
                output_names=[OUTPUT],
                dynamic_shapes=(axes, axes),
                dynamo=True,
                verbose=False,
            )
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
