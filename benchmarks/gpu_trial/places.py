"""Where the inputs of the parts are, in the work folder of a trial."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from ance_cli.formats.dataset import Dataset, locate, read_corpus
from ance_cli.formats.tokens import TokenCache
from ance_cli.models.checkpoint import Checkpoint
from benchmarks.gpu_trial.sizes import Sizes


class Inputs:
    """Where the inputs are, in the work folder of a trial."""

    def __init__(self, work: Path) -> None:
        self.base, self.small = work / "base", work / "small"
        self.cross_encoder = work / "cross-encoder"
        self.docstrings = work / "docstrings"
        self.negatives = work / "bm25.jsonl"
        self.passages = work / "passages.jsonl"
        self.tokens = work / "tokens"

    def train(self) -> Dataset:
        """The docstrings with their train labels."""
        return locate(self.docstrings, "train")

    def checkpoint(self, folder: Path, sizes: Sizes) -> Checkpoint:
        """An encoder whose passages are as long as the random passages."""
        return Checkpoint(folder).with_settings(passage_length=sizes.longest)

    @property
    def corpus(self) -> Dataset:
        """The random passages."""
        return Dataset(self.passages, None, None)

    def cache(self) -> TokenCache:
        """The tokens of the random passages."""
        return TokenCache(self.tokens)

    def texts(self, count: int) -> list[str]:
        """The first random passages."""
        return [passage.text for passage in islice(read_corpus(self.passages), count)]
