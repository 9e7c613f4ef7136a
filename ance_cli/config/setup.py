"""First steps: the demo, the settings file, and a look at the machine."""
# fmt: off

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ance_cli.config.retrieval import SEED
from ance_cli.config.setting import DATA, RUNTIME, Setting

DemoFolder = Annotated[Path, Setting(
    "Folder for everything the demo makes (default: ance-demo, or ance-demo-quick).", DATA,
    flags=("--output", "-o"), metavar="DIR", is_output=True)]
Quick = Annotated[bool, Setting(
    "Use a smaller corpus and fewer steps: about 90 seconds on two cores, 2 GB of memory.",
    RUNTIME)]
Bench = Annotated[bool, Setting(
    "Also measure matrix products, the upper limit of training and encoding.", RUNTIME)]


@dataclass(frozen=True)
class DemoConfig:
    """The recipe of `ance demo`, tuned on its dev split (docs/evidence/reproduce.md)."""

    passages: int = 4000
    packages: tuple[str, ...] = (
        "numpy", "torch", "scipy", "rich", "typer", "faiss", "transformers",
    )
    """Packages whose docstrings join those of Python's own library."""
    steps: int = 60
    segments: int = 2
    batch_size: int = 32
    lr: float = 2e-5
    depth: int = 50
    query_length: int = 32
    passage_length: int = 96
    seed: int = SEED


QUICK_DEMO = DemoConfig(
    passages=700, packages=(), steps=10, segments=1, batch_size=16, query_length=24,
    passage_length=40,
)
"""`ance demo --quick`."""
