"""`python -m benchmarks.gpu_trial`; the package's own docstring says what it is."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import benchmarks.gpu_trial as package
from benchmarks.gpu_trial import table, wheels
from benchmarks.gpu_trial.parts import Part, parts_of
from benchmarks.gpu_trial.records import Records
from benchmarks.gpu_trial.runner import Run, run_parts
from benchmarks.gpu_trial.sizes import SIZES, SizeName

_TOTAL = 580.0
"""Seconds of a whole trial at full size: a GPU is often lent for ten minutes."""


def main(words: Sequence[str] = tuple(sys.argv[1:])) -> int:
    """Exit code 0 if every part ended and no mark was missed, 1 if not."""
    if words and words[0] == "wheels":
        return wheels.main(words[1:])
    options = _options(words)
    on_gpu = _has_cuda()
    size: SizeName = options.size or "full"
    if size == "full" and not on_gpu:
        raise SystemExit(
            "torch sees no CUDA device, and the full size would take days on a CPU: "
            "use --size tiny to run the same code on small inputs"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    parts = list(parts_of(SIZES[size]).values())
    chosen = _chosen(parts, options.parts)
    with ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        records = Records(options.out / "trial.jsonl", datetime.now(UTC).isoformat())
        total = options.total or (_TOTAL if size == "full" else None)
        run = Run(
            options.out.absolute(), work.absolute(), size, records,
            lambda text: print(text, flush=True), options.seconds, total,
        )  # fmt: skip
        rows = run_parts(run, parts, chosen)
    print(f"\n{table.markdown(rows)}\n{table.summary(rows)}; everything is in {options.out}")
    return 1 if table.failures(rows) else 0


def _options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_trial", description=package.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--parts", help="numbers of the parts to run, such as 0,2 (default: all)")
    parser.add_argument("--size", choices=list(SIZES), help="default: full on a GPU")
    parser.add_argument("--seconds", type=float, help="limit of each part, instead of its own")
    total = f"limit of all parts together (default at full size: {_TOTAL:g})"
    parser.add_argument("--total", type=float, help=total)
    work = "folder for models and vectors (default: a temporary one)"
    parser.add_argument("--work", type=Path, help=work)
    return parser.parse_args(words)


def _chosen(parts: Sequence[Part], wanted: str | None) -> list[Part]:
    """The inputs, and the parts with the wanted numbers."""
    if wanted is None:
        return list(parts)
    known = {str(part.number): part for part in parts if part.number is not None}
    numbers = [number.strip() for number in wanted.split(",")]
    if unknown := [number for number in numbers if number not in known]:
        raise SystemExit(f"--parts {wanted}: there is no part {unknown[0]}; they are 0 to 7")
    return [part for part in parts if part.number is None or str(part.number) in numbers]


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())
