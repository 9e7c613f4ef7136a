"""Memory of encoding over the size of the corpus: a one-layer encoder of 64 dimensions.

    python tests/benchmarks/scale.py [--rows 100000 1000000]

The token caches are synthetic (see `synthetic.py`). Each size is encoded in a process of its own,
whose greatest resident memory is what `getrusage` says.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

_VOCABULARY = 1_000
_LONGEST = 64
"""Longer passages are cut here, so that a million of them take minutes."""


def _small_encoder(folder: Path) -> None:
    """A checkpoint with one layer and random weights."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from ance_cli.models.checkpoint import Checkpoint
    from ance_cli.models.dual import save_dual, start_dual
    from ance_cli.models.tokens import Tokenizer as OurTokenizer

    words = {f"w{number}": number for number in range(_VOCABULARY)}
    fast = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="w1", unk_token="w0").save_pretrained(
        folder / "plain"
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=_VOCABULARY, hidden_size=64, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=128, max_position_embeddings=_LONGEST,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(folder / "plain")
    plain = Checkpoint(folder / "plain")
    dual, _ = start_dual(plain, None, seed=0)
    save_dual(dual, OurTokenizer(plain), plain.pins, folder / "ckpt")


def _encode(folder: Path, rows: int) -> None:
    """The child: make the tokens, then encode them, and tell how much memory each took."""
    import resource
    import time

    from ance_cli.config import EncodeConfig
    from ance_cli.formats.dataset import Dataset
    from ance_cli.models.checkpoint import Checkpoint
    from ance_cli.stages import encode
    from tests.benchmarks.synthetic import synthetic_tokens

    cache = synthetic_tokens(folder / f"tokens-{rows}", rows, _VOCABULARY, _LONGEST)
    encode.corpus_tokens = lambda *_: cache  # type: ignore[assignment]
    corpus = folder / f"{rows}.jsonl"
    corpus.write_text(str(rows))  # what the manifest names; nobody reads it
    started = time.perf_counter()
    encode.encode(
        Checkpoint(folder / "ckpt"),
        Dataset(corpus, None, None),
        folder / f"emb-{rows}",
        EncodeConfig(gpus="none"),
    )
    print(json.dumps({
        "seconds": time.perf_counter() - started,
        "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "tokens": cache.num_tokens,
        "bytes": sum(path.stat().st_size for path in (folder / f"emb-{rows}").iterdir()),
    }))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--child", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _encode(options.child, options.rows[0])
        return
    table = Table("rows", "tokens", "on disk", "seconds", "rows/s", "peak memory", box=None)
    with tempfile.TemporaryDirectory() as scratch:
        _small_encoder(Path(scratch))
        for rows in options.rows:
            command = ["-m", "tests.benchmarks.scale", "--child", scratch, "--rows", str(rows)]
            told = subprocess.run([sys.executable, *command], check=True, stdout=subprocess.PIPE)
            found = json.loads(told.stdout.splitlines()[-1])
            table.add_row(
                f"{rows:,}", f"{found['tokens']:,}", f"{found['bytes'] / 2**20:,.0f} MiB",
                f"{found['seconds']:.1f}", f"{rows / found['seconds']:,.0f}",
                f"{found['mib']:,.0f} MiB",
            )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
