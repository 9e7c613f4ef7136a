"""One encoder as an ONNX graph, checked with onnxruntime, in a folder that
`SentenceTransformer(folder, backend="onnx")` loads."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import warnings
from pathlib import Path

import numpy as np
import orjson
import torch

from ance_cli.config.sets import Side
from ance_cli.errors import UsageProblem
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.encoder import Encoder, load_encoder
from ance_cli.models.tokens import Tokenizer, load_tokenizer

GRAPH = Path("onnx", "model.onnx")
INPUTS = ("input_ids", "attention_mask")
OUTPUT, TOKENS = "sentence_embedding", "last_hidden_state"
_PROMPTS, _MODULES = "config_sentence_transformers.json", "modules.json"
_LIMITS = "sentence_bert_config.json"

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

    The graph returns the vectors of the whole chain and, for a Transformer, those of its tokens,
    from which sentence-transformers computes the rest of the chain. Encodes a few texts with
    onnxruntime, together and one by one, and returns the largest difference of a component to
    torch's vectors.
    """
    import onnxruntime

    encoder = load_encoder(checkpoint, side)
    tokenizer = Tokenizer(checkpoint)
    rows = tokenizer(_TEXTS, side)
    token_ids, mask = rows.padded(range(rows.num_rows), tokenizer.pad_id_of(side))
    inputs = torch.from_numpy(token_ids), torch.from_numpy(mask)
    (folder / GRAPH).parent.mkdir(exist_ok=True)
    _export(_Graph(encoder).eval(), inputs, folder / GRAPH)
    load_tokenizer(checkpoint.tower(side)).save_pretrained(str(folder))
    if not checkpoint.tower(side).is_static:
        _write_modules(checkpoint, side, folder)

    session = onnxruntime.InferenceSession(folder / GRAPH, providers=["CPUExecutionProvider"])
    difference = 0.0
    for batch in (range(rows.num_rows), *([row] for row in range(rows.num_rows))):
        token_ids, mask = rows.padded(batch, tokenizer.pad_id_of(side))
        (found,) = session.run([OUTPUT], dict(zip(INPUTS, (token_ids, mask), strict=True)))
        with torch.inference_mode():
            expected = encoder(torch.from_numpy(token_ids), torch.from_numpy(mask)).numpy()
        difference = max(difference, float(np.abs(found - expected).max()))
    return difference


class _Graph(torch.nn.Module):
    """An encoder that also returns the vectors of the tokens, if it has a Transformer."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, token_ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = self.encoder.token_features(token_ids, mask)
        tokens = features.get("token_embeddings")
        vectors = self.encoder.pooled(features, token_ids.device.type)
        return (vectors,) if tokens is None else (vectors, tokens)


def _write_modules(checkpoint: Checkpoint, side: Side, folder: Path) -> None:
    """Write the chain without the weights of its Transformer, which the graph replaces."""
    first, *head = checkpoint.tower(side).modules
    shutil.copyfile(checkpoint.tower(side).config, folder / "config.json")
    for path in (first.folder / _LIMITS, checkpoint.path / _PROMPTS):
        if path.exists():
            shutil.copyfile(path, folder / path.name)
    modules = [{"idx": 0, "name": "0", "path": "", "type": first.type}]
    for number, module in enumerate(head, start=1):
        place = f"{number}_{module.kind}"
        (folder / place).mkdir()
        if module.folder.is_dir():
            shutil.copytree(
                module.folder, folder / place, dirs_exist_ok=True, copy_function=shutil.copyfile
            )
        modules.append({"idx": number, "name": str(number), "path": place, "type": module.type})
    (folder / _MODULES).write_bytes(orjson.dumps(modules, option=orjson.OPT_INDENT_2))


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
                output_names=[OUTPUT, TOKENS],
                dynamic_shapes=(axes, axes),
                dynamo=True,
                verbose=False,
            )
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
