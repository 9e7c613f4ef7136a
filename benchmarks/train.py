"""Training against a bare torch loop: the same pairs, lengths, threads and number format.

    python benchmarks/train.py [--ckpt DIR] [--data DIR] [--steps 6] [--batch-size 16]
                                        [--dropout P] [--threads N]

The bare loop is what torch and transformers reach as they come: forward of queries and passages,
NLL, backward, AdamW, on batches that were tokenised before. `ance train-segment` does more than
that (order, lookups, clipping, logs), and attends in its own way on a CPU. Each runs twice, in
turns, and its faster run is shown.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from ance_cli.config import DemoConfig
from ance_cli.formats.dataset import locate, read_corpus, read_queries
from ance_cli.formats.jsonl import read_records
from ance_cli.models.encoder import set_dropout
from ance_cli.progress import Silent
from ance_cli.setup.demo import packaged_encoder
from ance_cli.setup.docstrings import docstring_dataset

_ROUNDS = 2
_LR = 1e-5


@dataclass(frozen=True)
class Rates:
    """What a loop reaches once it is warm."""

    steps: float
    tokens: float


def ance(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "ance_cli", *map(str, arguments)], check=True)


def trainer(negatives: Path, data: Path, dtype: str, options: argparse.Namespace) -> Rates:
    """`ance train-segment`; the second of its two lines of metrics is the warm one."""
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        ance("train-segment", negatives, "--data", data, "--ckpt", options.ckpt, "-o", run, "-q",
             "--steps", 2 * options.steps, "--log-every", options.steps, "--dtype", dtype,
             "--batch-size", options.batch_size, "--query-length", options.query_length,
             "--passage-length", options.passage_length, "--optimizer", "adamw", "--lr", _LR,
             "--schedule", "constant", "--dropout", options.dropout, "--threads",
             torch.get_num_threads())  # fmt: skip
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return Rates(last["steps_per_s"], last["tokens_per_s"])


def batches(
    negatives: Path, data: Path, options: argparse.Namespace, device: torch.device
) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """Queries, and positives followed by one negative each, padded to the longest in the batch."""
    tokenizer = AutoTokenizer.from_pretrained(options.ckpt)
    dataset = locate(data, "train")
    queries = read_queries(dataset.need("queries"))
    passages = {passage.doc_id: passage.joined(" ") for passage in read_corpus(dataset.corpus)}
    pairs = [pair for _, pair in read_records(negatives) if pair["negative_ids"]]
    rng = random.Random(0)

    def padded(texts: list[str], length: int) -> dict[str, torch.Tensor]:
        found = tokenizer(
            texts, padding=True, truncation=True, max_length=length, return_tensors="pt"
        )
        return {name: found[name].to(device) for name in ("input_ids", "attention_mask")}

    while True:
        drawn = rng.choices(pairs, k=options.batch_size)
        docs = [pair["positive_id"] for pair in drawn]
        docs += [rng.choice(pair["negative_ids"]) for pair in drawn]
        yield (
            padded([queries[pair["query_id"]] for pair in drawn], options.query_length),
            padded([passages[doc] for doc in docs], options.passage_length),
        )


def bare(negatives: Path, data: Path, dtype: str, options: argparse.Namespace) -> Rates:
    """Nothing but the arithmetic; the first half of the steps warms up."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    drawn = batches(negatives, data, options, device)
    ready = [next(drawn) for _ in range(2 * options.steps)]
    model = AutoModel.from_pretrained(options.ckpt, dtype=torch.float32).to(device).train()
    set_dropout(model, options.dropout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LR, fused=True)
    started = 0.0
    for step, (queries, passages) in enumerate(ready):
        if step == options.steps:
            _finish(device)
            started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bf16"):
            q = model(**queries).last_hidden_state[:, 0]  # (B, d)
            d = model(**passages).last_hidden_state[:, 0]  # (2 B, d)
        scores = torch.einsum("bd,nbd->bn", q.float(), d.float().view(2, *q.shape))
        target = torch.zeros(len(q), dtype=torch.long, device=device)
        functional.cross_entropy(scores, target).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    _finish(device)
    seconds = time.perf_counter() - started
    tokens = sum(
        int(side["attention_mask"].sum()) for batch in ready[options.steps :] for side in batch
    )
    return Rates(options.steps / seconds, tokens / seconds)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt", type=Path, default=None)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--query-length", type=int, default=32)
    parser.add_argument("--passage-length", type=int, default=96)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"],
                        help="without bf16 instructions a CPU takes minutes for bf16")  # fmt: skip
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.ckpt = options.ckpt or packaged_encoder()
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    table = Table("loop", "format", "steps/s", "tokens/s", "of the bare loop", box=None)
    with tempfile.TemporaryDirectory() as scratch:
        data = options.data or Path(scratch) / "data"
        if options.data is None:
            docstring_dataset(data, DemoConfig(), Silent())
        negatives = Path(scratch) / "bm25.jsonl"
        ance("bm25-negatives", "--data", data, "--engine", "bm25s", "-q", "-o", negatives)
        for dtype in options.dtypes:
            found: dict[str, list[Rates]] = {"bare torch": [], "ance train-segment": []}
            for _ in range(_ROUNDS):
                found["bare torch"].append(bare(negatives, data, dtype, options))
                found["ance train-segment"].append(trainer(negatives, data, dtype, options))
            ceiling = max(rates.tokens for rates in found["bare torch"])
            for name, rounds in found.items():
                best = max(rounds, key=lambda rates: rates.tokens)
                table.add_row(name, dtype, f"{best.steps:.2f}", f"{best.tokens:,.0f}",
                              f"{best.tokens / ceiling:.0%}")  # fmt: skip
    console = Console()
    console.print(
        f"{options.ckpt}: batch {options.batch_size} with one negative each, queries of "
        f"{options.query_length} and passages of {options.passage_length} tokens at most, dropout "
        f"{options.dropout:g}, {torch.get_num_threads()} threads, "
        f"{torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'}"
    )
    console.print(table)


if __name__ == "__main__":
    main()
