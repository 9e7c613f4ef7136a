"""The process of one part: `python -m benchmarks.gpu_trial.child MODULE ...`, as the runner calls
it."""

from __future__ import annotations

import argparse
import importlib
import os
from pathlib import Path

from benchmarks.gpu_trial.parts import parts_of
from benchmarks.gpu_trial.records import Records
from benchmarks.gpu_trial.sizes import SIZES
from benchmarks.gpu_trial.trial import Trial


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("--key", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--size", choices=list(SIZES), required=True)
    parser.add_argument("--run", required=True)
    options = parser.parse_args()
    # nothing here may wait for a network, or fill the user's cache
    os.environ |= {"HF_HUB_OFFLINE": "1", "ANCE_CACHE_DIR": str(options.work / "cache")}
    sizes = SIZES[options.size]
    part = parts_of(sizes).get(options.key)
    numbers = part.numbers if part else importlib.import_module(options.module).NUMBERS
    trial = Trial(
        options.key,
        {number.name: number for number in numbers},
        sizes,
        options.work,
        Records(options.out / "trial.jsonl", options.run),
    )
    trial.skip_what_needs_cuda()
    importlib.import_module(options.module).run(trial)


if __name__ == "__main__":
    main()
