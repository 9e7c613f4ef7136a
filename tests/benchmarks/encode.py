"""Encoding against sentence-transformers on the same texts, lengths and threads, in one run.

    python tests/benchmarks/encode.py [--ckpt DIR] [--corpus corpus.jsonl] [--passages 400]

Prints passages a second, the ratio to sentence-transformers' default, the share of the machine's
matrix-product rate measured in the same run, and the smallest cosine with the float32 vectors.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer

from ance_cli.config import EncodeConfig
from ance_cli.formats.dataset import read_corpus
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.encoder import load_encoder
from ance_cli.models.inference import InferenceEngine
from ance_cli.models.tokens import Tokenizer
from ance_cli.progress import Silent
from ance_cli.stages.demo import packaged_encoder
from ance_cli.stages.docstrings import docstring_dataset

_SIZE = 2048


def product_rate(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a square matrix product, the best of five."""
    a, b = (torch.randn(_SIZE, _SIZE, dtype=dtype, device=device) for _ in range(2))
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        (a @ b).sum().item()
        best = max(best, 2 * _SIZE**3 / (time.perf_counter() - started))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt", type=Path, default=None)
    parser.add_argument("--corpus", type=Path, default=None)
    parser.add_argument("--passages", type=int, default=400)
    parser.add_argument("--length", type=int, default=256)
    options = parser.parse_args()

    corpus = options.corpus
    if corpus is None:
        data = Path(tempfile.mkdtemp()) / "data"
        docstring_dataset(data, Silent())
        corpus = data / "corpus.jsonl"
    texts = [p.joined(" ") for p in islice(read_corpus(corpus), options.passages)]
    checkpoint = Checkpoint(options.ckpt or packaged_encoder()).with_pins(
        passage_length=options.length
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = Tokenizer(checkpoint)
    encoder = load_encoder(checkpoint)
    rows = tokenizer(texts, "passage")
    weights = sum(
        p.numel() for name, p in encoder.backbone.named_parameters()
        if p.ndim == 2 and "embeddings" not in name
    )  # fmt: skip
    flops = 2 * weights * int(rows.lengths.sum())  # without attention
    ceiling = {name: product_rate(dtype, device)
               for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))}  # fmt: skip

    def theirs(dtype: str) -> np.ndarray:
        model = SentenceTransformer(str(checkpoint.path), device=str(device))
        model.max_seq_length = options.length
        if dtype == "bf16":
            model = model.to(torch.bfloat16)
        return time_of(lambda: model.encode(texts, convert_to_tensor=True).float().cpu().numpy())

    def ours(dtype: str) -> np.ndarray:
        engine = InferenceEngine(
            encoder,
            tokenizer.pad_id_of("passage"),
            [device],
            dtype,
            EncodeConfig().tokens_for(device.type),
        )
        return time_of(lambda: engine.encode(tokenizer(texts, "passage")))

    seconds: list[float] = []

    def time_of(encode) -> np.ndarray:  # type: ignore[no-untyped-def]
        encode()
        started = time.perf_counter()
        vectors = encode()
        seconds.append(time.perf_counter() - started)
        return vectors

    table = Table("encoder", "passages/s", "ratio", "of the ceiling", "min cosine", box=None)
    reference = None
    for name, encode, dtype in (
        ("sentence-transformers, batch 32, fp32 (default)", theirs, "fp32"),
        ("sentence-transformers, batch 32, bf16", theirs, "bf16"),
        ("ance, fp32", ours, "fp32"),
        ("ance, bf16", ours, "bf16"),
    ):
        vectors = encode(dtype)
        reference = vectors if reference is None else reference
        norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(reference, axis=1)
        cosine = float(((vectors * reference).sum(1) / norms).min())
        table.add_row(
            name,
            f"{len(texts) / seconds[-1]:.1f}",
            f"{seconds[0] / seconds[-1]:.2f}",
            f"{flops / seconds[-1] / ceiling[dtype]:.0%}",
            f"{cosine:.5f}",
        )
    console = Console()
    console.print(
        f"{len(texts)} passages, {rows.lengths.mean():.0f} tokens on average, {device}, "
        f"{torch.get_num_threads()} threads; matrix products: "
        + ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in ceiling.items())
    )
    console.print(table)


if __name__ == "__main__":
    main()
