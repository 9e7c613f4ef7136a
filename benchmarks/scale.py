"""Memory over the size of the work, with a one-layer encoder (of 64 dimensions, else `--dim`).

    python -m benchmarks.scale [--rows 100000 1000000]
    python -m benchmarks.scale --rows 20000 --packaged
    python -m benchmarks.scale --rows 100000 --mine 500000 [--dim 384]

The first encodes synthetic token caches (see `synthetic.py`) of so many rows, the second with the
encoder of `ance demo` (MiniLM) and passages of any length. The third makes a corpus of random
words, encodes it, and mines the top 200 for so many queries, beside a bare faiss search of the same
vectors in memory. Each stage has a process of its own,
whose greatest resident memory is what `getrusage` says.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from ance_cli.formats.dataset import Dataset
    from ance_cli.models.checkpoint import Checkpoint

_VOCABULARY = 1_000
_SHOWN = {"encode": "ance encode", "bare": "faiss alone", "mine": "ance mine"}
_TOLD = ("seconds", "mib", "bytes")
_LONGEST = 64
"""Longer passages are cut here, so that a million of them take minutes."""


def _small_encoder(folder: Path, dim: int) -> None:
    """A checkpoint with one layer and random weights."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from ance_cli.models.checkpoint import Checkpoint
    from ance_cli.models.dual import Start, save_dual, start_dual

    words = {f"w{number}": number for number in range(_VOCABULARY)}
    fast = Tokenizer(models.WordLevel(words, unk_token="w0"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="w1", unk_token="w0").save_pretrained(
        folder / "plain"
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=_VOCABULARY, hidden_size=dim, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=2 * dim, max_position_embeddings=_LONGEST,
        initializer_range=0.2,  # with the usual 0.02 vectors are much alike
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(folder / "plain")
    plain = Checkpoint(folder / "plain")
    dual, _ = start_dual(plain, Start(head="paper"))
    save_dual(dual, plain.settings, folder / "ckpt")


def _encode(folder: Path, rows: int) -> None:
    """The child: make the tokens, encode them, and report the peak memory."""
    import time

    from ance_cli.config import EncodeConfig
    from ance_cli.encoding import encode, tokenize
    from ance_cli.formats.dataset import Dataset
    from ance_cli.models.checkpoint import Checkpoint
    from benchmarks.synthetic import synthetic_tokens

    checkpoint = Checkpoint(folder / "ckpt")
    with open(checkpoint.path / "config.json") as handle:
        vocabulary = json.load(handle)["vocab_size"]
    longest = _LONGEST if vocabulary == _VOCABULARY else 512
    cache = synthetic_tokens(folder / f"tokens-{rows}", rows, vocabulary, longest)
    tokenize.CorpusTokens.open = lambda self: cache  # type: ignore[method-assign]
    corpus = folder / f"{rows}.jsonl"
    corpus.write_text(str(rows))  # what the manifest names; nobody reads it
    started = time.perf_counter()
    encode.encode(
        checkpoint,
        Dataset(corpus, None, None),
        folder / f"emb-{rows}",
        EncodeConfig(gpus="none"),
    )
    _tell(time.perf_counter() - started, folder / f"emb-{rows}", tokens=cache.num_tokens)


def _dataset(folder: Path, docs: int, queries: int) -> None:
    """Texts of random words, and one positive for each query."""
    import numpy as np

    rng = np.random.default_rng(0)
    (folder / "data" / "qrels").mkdir(parents=True)
    for name, count, words in (("corpus", docs, 12), ("queries", queries, 5)):
        with open(folder / "data" / f"{name}.jsonl", "w") as handle:
            for number in range(count):
                text = " ".join(f"w{word}" for word in rng.integers(2, _VOCABULARY, words))
                handle.write(json.dumps({"_id": f"{name[0]}{number}", "text": text}) + "\n")
    with open(folder / "data" / "qrels" / "train.tsv", "w") as handle:
        handle.write("query-id\tcorpus-id\tscore\n")
        for number, doc in enumerate(rng.integers(0, docs, queries)):
            handle.write(f"q{number}\tc{doc}\t1\n")


def _stage(folder: Path, name: str) -> None:
    """The child: one stage over the dataset of `_dataset`, or the search alone (`bare`)."""
    import time

    from ance_cli.config import DriverConfig, EncodeConfig, MineConfig
    from ance_cli.encoding.encode import encode
    from ance_cli.formats.dataset import locate
    from ance_cli.mining.mine import mine
    from ance_cli.mining.mining_job import MiningFiles
    from ance_cli.models.checkpoint import Checkpoint
    from ance_cli.retrieval.dense import VectorSource

    checkpoint, dataset = Checkpoint(folder / "ckpt"), locate(folder / "data", "train")
    config = EncodeConfig(gpus="none")
    started = time.perf_counter()
    if name == "encode":
        encode(checkpoint, dataset, folder / "emb", config)
        _tell(time.perf_counter() - started, folder / "emb")
        return
    if name == "bare":
        _tell(_bare_search(checkpoint, dataset, folder / "emb"), folder / "emb")
        return
    found = mine(
        checkpoint, dataset, VectorSource(folder / "emb", "embeddings"),
        MiningFiles(folder / "ann.jsonl"), MineConfig(), DriverConfig(gpus="none"),
    )  # fmt: skip
    seconds = time.perf_counter() - started
    _tell(seconds, folder / "ann.candidates", **found["seconds"])


def _bare_search(checkpoint: Checkpoint, dataset: Dataset, embeddings: Path) -> float:
    """Seconds of faiss alone, over float32 vectors in memory, to depth 200."""
    import time

    import faiss
    import numpy as np

    from ance_cli.config import EncodeConfig
    from ance_cli.formats.dataset import read_queries
    from ance_cli.formats.embeddings import Embeddings
    from ance_cli.models.texts import TextEncoder

    texts = list(read_queries(dataset.need("queries")).values())
    xq, _ = TextEncoder(checkpoint, "query", EncodeConfig(gpus="none"))(texts)
    x = np.asarray(Embeddings(embeddings).vectors, np.float32)
    started = time.perf_counter()
    for start in range(0, len(xq), 20_000):
        faiss.knn(xq[start : start + 20_000], x, 200, faiss.METRIC_INNER_PRODUCT)
    return time.perf_counter() - started


def _tell(seconds: float, made: Path, **more: float) -> None:
    files = made.iterdir() if made.is_dir() else [made]
    print(json.dumps({
        "seconds": seconds,
        "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "bytes": sum(path.stat().st_size for path in files),
        **more,
    }))  # fmt: skip


def _child(scratch: str, rows: int, stage: str) -> dict[str, float]:
    command = ["-m", "benchmarks.scale", "--child", scratch, "--rows", str(rows)]
    told = subprocess.run(
        [sys.executable, *command, "--stage", stage], check=True, stdout=subprocess.PIPE
    )
    found: dict[str, float] = json.loads(told.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--packaged", action="store_true", help="with the encoder of ance demo")
    parser.add_argument("--mine", type=int, default=0, metavar="QUERIES")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--child", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--stage", default="tokens", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        if options.stage == "tokens":
            _encode(options.child, options.rows[0])
        else:
            _stage(options.child, options.stage)
        return
    with tempfile.TemporaryDirectory() as scratch:
        if options.packaged:
            from ance_cli.setup.demo import packaged_encoder

            (Path(scratch) / "ckpt").symlink_to(packaged_encoder())
        else:
            _small_encoder(Path(scratch), options.dim)
        if options.mine:
            table = _mine_table(scratch, options.rows[0], options.mine)
        else:
            table = _encode_table(scratch, options.rows)
    Console().print(table)


def _mine_table(scratch: str, rows: int, queries: int) -> Table:
    _dataset(Path(scratch), rows, queries)
    table = Table("stage", "seconds", "of which", "on disk", "peak memory", box=None)
    for stage in ("encode", "bare", "mine"):
        found = _child(scratch, rows, stage)
        parts = [f"{name} {value:.1f}" for name, value in found.items() if name not in _TOLD]
        table.add_row(
            _SHOWN[stage], f"{found['seconds']:.1f}", ", ".join(parts),
            f"{found['bytes'] / 2**20:,.0f} MiB", f"{found['mib']:,.0f} MiB",
        )  # fmt: skip
    return table


def _encode_table(scratch: str, sizes: list[int]) -> Table:
    table = Table("rows", "tokens", "on disk", "seconds", "rows/s", "peak memory", box=None)
    for rows in sizes:
        found = _child(scratch, rows, "tokens")
        table.add_row(
            f"{rows:,}", f"{found['tokens']:,}", f"{found['bytes'] / 2**20:,.0f} MiB",
            f"{found['seconds']:.1f}", f"{rows / found['seconds']:,.0f}",
            f"{found['mib']:,.0f} MiB",
        )  # fmt: skip
    return table


if __name__ == "__main__":
    main()
