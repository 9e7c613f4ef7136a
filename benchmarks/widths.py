"""What rounded widths cost a cross-encoder, and what they save of memory on a CPU.

    python benchmarks/widths.py [--weights DIR] [--longest 512] [--tokens 512]

Pairs of every length up to the longest are scored once, a process for each rounding.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ance_cli.models import inference
from ance_cli.models.cross_encoder import CrossEncoder

QUERY = "what is it"


def measure(options: argparse.Namespace, multiple: int) -> None:
    """Print widths, seconds and MiB of one process as JSON."""
    inference.rounded_width = partial(inference.rounded_width, multiple=multiple)
    model = CrossEncoder(
        options.weights, gpus="none", max_length=options.longest, batch_tokens=options.tokens
    )
    before = _held()
    pairs = [(QUERY, "a " * words) for words in range(10, options.longest)]
    rows = model._tokenised(pairs)
    lengths = {min(len(row["input_ids"]), options.longest) for row in rows}
    widths = {inference.rounded_width(length, options.longest) for length in lengths}
    started = time.perf_counter()
    model.scores(pairs)
    found = [len(lengths), len(widths), round(time.perf_counter() - started, 1), before, _held()]
    print(json.dumps(found))


def _held() -> int:
    """MiB of memory that the process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() >> 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    weights = Path(os.environ.get("ANCE_TEST_WEIGHTS", "weights")) / "ms-marco-MiniLM-L-12-v2"
    parser.add_argument("--weights", type=Path, default=weights)
    parser.add_argument("--longest", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--multiple", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.multiple:
        measure(options, options.multiple)
        return
    table = Table("multiple", "lengths", "widths", "seconds", "MiB before", "MiB after", box=None)
    for multiple in (1, 4, 8, 16):
        command = [sys.executable, __file__, *sys.argv[1:], "--multiple", str(multiple)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        table.add_row(str(multiple), *map(str, found))
    Console().print(table)


if __name__ == "__main__":
    main()
