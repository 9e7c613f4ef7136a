"""What a corpus takes: disk, memory, hours of encoding and searching, and the time of a refresh.

    python benchmarks/sizing.py --machine "CPU:56.8:104:2" --machine "GPU:5000:50000:8"

A machine is NAME:ENCODE:SEARCH:DEVICES: passages that one device encodes a second, GFLOP/s that it
reaches in a search, and how many devices share the work. Nothing is measured here: the rates are
those that `encode.py` and `search.py` print on your machine.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

from ance_cli.formats.embeddings import MOST_DOCS

ROWS = (16_000, 1_000_000, 8_800_000, 100_000_000, 1_000_000_000, 8_000_000_000)
DIMS = (768, 64)
MOST_KEPT = 3
"""Generations on disk while one is made: --keep 2, and the new one."""

ID_BYTES = 12
"""Of an id and its line end."""
DOC_BYTES = 270
"""What `mine` holds for a document: its id twice and two maps from ids (64 and 59 bytes each,
measured with Python 3.11), offsets and a hash."""


class Machine(NamedTuple):
    """Devices of one kind, and the rates of each."""

    name: str
    passages_per_s: float
    gflops: float
    devices: int


class Sizes(NamedTuple):
    """Bytes on disk and in memory."""

    vectors: float
    run: float
    memory: float
    parts: int
    """Folders that the corpus needs: a position has 32 bits."""


def sizes_of(rows: int, dim: int, queries: int, depth: int) -> Sizes:
    """FirstP (a row for each document), float16 vectors, no index; `memory` is that of `mine`."""
    vectors = rows * (2 * dim + 8 + ID_BYTES)
    candidates = 8 * queries * depth
    parts = -(-rows // MOST_DOCS)
    held = DOC_BYTES * rows / parts + candidates + 4 * dim * queries
    return Sizes(vectors, MOST_KEPT * (vectors + parts * candidates), held, parts)


def seconds_of(rows: int, dim: int, queries: int, machine: Machine) -> tuple[float, float]:
    """Encoding and searching, seconds of one device."""
    return rows / machine.passages_per_s, 2.0 * rows * dim * queries / (machine.gflops * 1e9)


def machine_of(text: str) -> Machine:
    name, passages, gflops, devices = text.split(":")
    return Machine(name, float(passages), float(gflops), int(devices))


def scaled(value: float, units: tuple[tuple[float, str], ...]) -> str:
    """Two digits, with the greatest unit that fits."""
    size, unit = next((pair for pair in units if value >= pair[0]), units[-1])
    short = value / size
    return f"{short:,.0f} {unit}" if short >= 9.95 else f"{short:.1f} {unit}"


def hours(seconds: float) -> str:
    """Two digits; next to nothing is 0.01."""
    value = max(0.01, seconds / 3600)
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.2g}"


BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"))
TIMES = ((86_400.0, "days"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"))


def table(queries: int, depth: int, machines: list[Machine]) -> str:
    """Markdown: a line for each corpus and dimension."""
    head = ["rows", "dim", "vectors", "run", "memory of `mine`"]
    for machine in machines:
        head += [f"{machine.name} hours, encode + search",
                 f"refresh on {machine.devices} {machine.name}s"]  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for rows in ROWS:
        for dim in DIMS:
            sizes = sizes_of(rows, dim, queries, depth)
            held = scaled(sizes.memory, BYTES)
            if sizes.parts > 1:
                held = f"{sizes.parts} x {held}"
            line = [f"{rows:,}", str(dim), scaled(sizes.vectors, BYTES), scaled(sizes.run, BYTES),
                    held]  # fmt: skip
            for machine in machines:
                encode, search = seconds_of(rows, dim, queries, machine)
                refresh = (encode + search) / machine.devices
                line += [f"{hours(encode)} + {hours(search)}", scaled(refresh, TIMES)]
            lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", type=machine_of, action="append", required=True)
    parser.add_argument("--queries", type=int, default=500_000)
    parser.add_argument("--depth", type=int, default=200)
    options = parser.parse_args()
    print(table(options.queries, options.depth, options.machine))


if __name__ == "__main__":
    main()
