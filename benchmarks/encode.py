"""Encoding against other libraries on the same texts, lengths and threads, in one run.

    python benchmarks/encode.py [--ckpt DIR] [--corpus corpus.jsonl] [--passages 400]

Prints passages a second, the ratio to sentence-transformers' default, the share of the machine's
matrix-product rate measured in the same run (MFU, without padding), and the smallest cosine with
sentence-transformers' float32 vectors. Each encoder runs once to warm up, then in turns with the
others; its fastest run is shown. Texts are tokenised in every run, except where a token cache is
named. FlagEmbedding and pyserini take part where they can be imported (mean-pooled, normalised
encoders only); each has the batch size that is its own default.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer

from ance_cli.config import DemoConfig, EncodeConfig
from ance_cli.config.sets import Dtype
from ance_cli.formats.dataset import read_corpus
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.encoder import load_encoder
from ance_cli.models.flops import forward_flops, matmul_ceiling
from ance_cli.models.inference import InferenceEngine
from ance_cli.models.tokens import Tokenizer
from ance_cli.progress import Silent
from ance_cli.setup.demo import packaged_encoder
from ance_cli.setup.docstrings import docstring_dataset


def flag_embedding(
    path: str, texts: list[str], length: int, device: str, bf16: bool
) -> Callable[[], np.ndarray]:
    from FlagEmbedding import FlagModel

    model = FlagModel(
        path, pooling_method="mean", use_fp16=False, use_bf16=bf16, devices=device,
        passage_max_length=length,
    )  # fmt: skip
    return lambda: np.asarray(model.encode_corpus(texts), np.float32)


def pyserini(path: str, texts: list[str], length: int, device: str) -> Callable[[], np.ndarray]:
    from ance_cli.retrieval.bm25 import _autoclass

    # its package asks for a Java class when it is imported, and its Lucene part for this variable
    os.environ.setdefault("OPENAI_API_KEY", "none")
    _autoclass()
    from pyserini.encode import AutoDocumentEncoder

    model = AutoDocumentEncoder(path, device=device, pooling="mean", l2_norm=True)
    batches = [texts[start : start + 64] for start in range(0, len(texts), 64)]
    return lambda: np.concatenate([model.encode(batch, max_length=length) for batch in batches])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt", type=Path, default=None)
    parser.add_argument("--corpus", type=Path, default=None)
    parser.add_argument("--passages", type=int, default=400)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", action="store_true", help="FlagEmbedding and pyserini too")
    options = parser.parse_args()

    corpus = options.corpus
    if corpus is None:
        data = Path(tempfile.mkdtemp()) / "data"
        docstring_dataset(data, DemoConfig(), Silent())
        corpus = data / "corpus.jsonl"
    texts = [p.joined(" ") for p in islice(read_corpus(corpus), options.passages)]
    checkpoint = Checkpoint(options.ckpt or packaged_encoder()).with_settings(
        passage_length=options.length
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = Tokenizer(checkpoint)
    encoder = load_encoder(checkpoint)
    rows = tokenizer(texts, "passage")

    def theirs(dtype: torch.dtype) -> Callable[[], np.ndarray]:
        model = SentenceTransformer(str(checkpoint.path), device=str(device)).to(dtype)
        model.max_seq_length = options.length
        return lambda: model.encode(texts, convert_to_tensor=True).float().cpu().numpy()

    def ours(dtype: Dtype, from_cache: bool = False) -> Callable[[], np.ndarray]:
        engine = InferenceEngine(
            encoder,
            tokenizer.pad_id_of("passage"),
            [device],
            EncodeConfig(dtype=dtype),
        )
        if from_cache:
            return lambda: engine.encode(rows)
        return lambda: engine.encode(tokenizer(texts, "passage"))

    encoders = [
        ("sentence-transformers, batch 32, fp32 (default)", "fp32", theirs(torch.float32)),
        ("sentence-transformers, batch 32, bf16", "bf16", theirs(torch.bfloat16)),
        ("ance, fp32", "fp32", ours("fp32")),
        ("ance, bf16", "bf16", ours("bf16")),
        ("ance, bf16, from the token cache", "bf16", ours("bf16", from_cache=True)),
    ]
    if options.peers:
        peer = str(checkpoint.path), texts, options.length, str(device)
        encoders[2:2] = [
            ("FlagEmbedding, batch 256, fp32", "fp32", flag_embedding(*peer, bf16=False)),
            ("FlagEmbedding, batch 256, bf16", "bf16", flag_embedding(*peer, bf16=True)),
            ("pyserini, batch 64, fp32", "fp32", pyserini(*peer)),
        ]

    vectors = {name: encode() for name, _, encode in encoders}
    best = dict.fromkeys(vectors, float("inf"))
    ceiling = {"fp32": 0.0, "bf16": 0.0}
    for _ in range(options.rounds):
        for name, _, encode in encoders:
            started = time.perf_counter()
            encode()
            best[name] = min(best[name], time.perf_counter() - started)
        for dtype in ceiling:
            ceiling[dtype] = max(ceiling[dtype], matmul_ceiling(device, dtype))

    flops = forward_flops(encoder.backbone, int(rows.lengths.sum()), int((rows.lengths**2).sum()))
    reference = vectors[encoders[0][0]]
    table = Table("encoder", "passages/s", "ratio", "MFU", "min cosine", box=None)
    for name, dtype, _ in encoders:
        found = vectors[name]
        norms = np.linalg.norm(found, axis=1) * np.linalg.norm(reference, axis=1)
        table.add_row(
            name,
            f"{len(texts) / best[name]:.1f}",
            f"{best[encoders[0][0]] / best[name]:.2f}",
            f"{flops / best[name] / ceiling[dtype]:.0%}",
            f"{float(((found * reference).sum(1) / norms).min()):.5f}",
        )
    console = Console(width=120)
    console.print(
        f"{len(texts)} passages, {rows.lengths.mean():.0f} tokens on average, {device}, "
        f"{torch.get_num_threads()} threads; matrix products: "
        + ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in ceiling.items())
    )
    console.print(table)


if __name__ == "__main__":
    main()
