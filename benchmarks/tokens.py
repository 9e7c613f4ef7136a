"""A token cache against tokenising again, on the same texts, in one run.

    python benchmarks/tokens.py [--ckpt DIR] [--corpus corpus.jsonl] [--length 256]

The cache is made once; each later encoding, and each segment of training, reads it instead.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ance_cli.config import DemoConfig
from ance_cli.encoding.tokenize import corpus_tokens
from ance_cli.formats.dataset import Dataset, read_corpus
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.tokens import Tokenizer
from ance_cli.progress import Silent
from ance_cli.setup.demo import packaged_encoder
from ance_cli.setup.docstrings import docstring_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt", type=Path, default=None)
    parser.add_argument("--corpus", type=Path, default=None)
    parser.add_argument("--length", type=int, default=256)
    options = parser.parse_args()

    scratch = Path(tempfile.mkdtemp())
    os.environ["ANCE_CACHE_DIR"] = str(scratch / "cache")
    corpus = options.corpus
    if corpus is None:
        docstring_dataset(scratch / "data", DemoConfig(), Silent())
        corpus = scratch / "data" / "corpus.jsonl"
    checkpoint = Checkpoint(options.ckpt or packaged_encoder()).with_settings(
        passage_length=options.length
    )
    dataset = Dataset(corpus, None, None)
    tokenizer = Tokenizer(checkpoint)

    def again() -> None:
        tokenizer([passage.joined(" ") for passage in read_corpus(corpus)], "passage")

    def made() -> None:
        corpus_tokens(checkpoint, dataset)

    def read() -> None:
        cache = corpus_tokens(checkpoint, dataset)
        for block in range(cache.num_blocks):
            cache.block(block)

    again()
    seconds = {}
    for name, work in (
        ("read the corpus and tokenise it", again),
        ("the same, into the cache", made),
        ("read the cache, hashes checked", read),
    ):
        started = time.perf_counter()
        work()
        seconds[name] = time.perf_counter() - started
    cache = corpus_tokens(checkpoint, dataset)
    table = Table("work", "seconds", "passages/s", box=None)
    for name, taken in seconds.items():
        table.add_row(name, f"{taken:.3f}", f"{cache.num_docs / taken:,.0f}")
    console = Console()
    console.print(
        f"{cache.num_docs:,} passages, {cache.num_tokens / cache.num_rows:.0f} tokens on average, "
        f"{os.environ.get('RAYON_NUM_THREADS') or os.cpu_count()} threads"
    )
    console.print(table)


if __name__ == "__main__":
    main()
