"""How large the trial is: on a GPU, and on a CPU that only proves the code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SizeName = Literal["full", "tiny"]


@dataclass(frozen=True)
class Shape:
    """A BERT encoder."""

    layers: int
    width: int
    heads: int
    intermediate: int


@dataclass(frozen=True)
class Sizes:
    """Every size of the trial; the parts differ in nothing else between a GPU and a CPU."""

    base: Shape
    small: Shape
    vocabulary: int
    """Token ids of the models; the tokenizer uses the first of them."""

    copied_bytes: int

    passages: int
    """Random passages to encode, with the lengths of MS MARCO's."""
    longest: int
    batch_tokens: tuple[int, ...]
    """Token budgets of a batch; the first is the default of the device."""
    peer_texts: int
    compared_texts: int
    """Texts whose vectors are compared between devices, number formats and libraries."""

    attention_shapes: int
    """At most as many batch shapes of a block."""
    backward_shapes: int

    rows: int
    dim: int
    queries: tuple[int, ...]
    """The first number is the one with a mark."""
    depth: int
    deeper: int
    compared_rows: int
    """Rows of the corpora on which rankings are compared with those of the CPU."""
    repeats: int

    docstrings: int
    packages: tuple[str, ...]
    """Whose docstrings join those of Python's own library."""
    query_length: int
    passage_length: int
    batch: int
    steps: int
    """Of each training rate; the second half counts."""
    compared_batch: int
    compared_steps: int
    killed_steps: tuple[int, int, int]
    """When a run is stopped, when it is killed, and the steps of the whole run."""
    too_large: int
    """A batch size that no GPU has memory for."""

    segment_steps: int
    segments: int
    mined_depth: int
    reranked: tuple[int, int]
    """Queries, and documents for each."""

    @property
    def half(self) -> int:
        return self.steps // 2


FULL = Sizes(
    base=Shape(12, 768, 12, 3072),
    small=Shape(6, 384, 12, 1536),
    vocabulary=30_522,
    copied_bytes=1 << 30,
    passages=131_072,
    longest=512,
    batch_tokens=(24_576, 65_536, 131_072),
    peer_texts=16_384,
    compared_texts=512,
    attention_shapes=64,
    backward_shapes=8,
    rows=1_000_000,
    dim=768,
    queries=(20_000, 1_000, 200),
    depth=200,
    deeper=1_000,
    compared_rows=40_000,
    repeats=10,
    docstrings=4_000,
    packages=("numpy", "scipy"),
    query_length=32,
    passage_length=128,
    batch=32,
    steps=40,
    compared_batch=8,
    compared_steps=6,
    killed_steps=(15, 50, 120),
    too_large=4_096,
    segment_steps=20,
    segments=2,
    mined_depth=50,
    reranked=(100, 50),
)

TINY = Sizes(
    base=Shape(2, 64, 4, 128),
    small=Shape(2, 32, 4, 64),
    vocabulary=2_000,
    copied_bytes=1 << 24,
    passages=256,
    longest=128,
    batch_tokens=(2_048, 4_096),
    peer_texts=64,
    compared_texts=32,
    attention_shapes=4,
    backward_shapes=1,
    rows=20_000,
    dim=32,
    queries=(64, 16),
    depth=20,
    deeper=50,
    compared_rows=1_000,
    repeats=3,
    docstrings=600,
    packages=(),
    query_length=16,
    passage_length=32,
    batch=8,
    steps=4,
    compared_batch=8,
    compared_steps=6,
    killed_steps=(4, 12, 40),
    too_large=4_096,
    segment_steps=2,
    segments=1,
    mined_depth=20,
    reranked=(5, 10),
)

SIZES: dict[SizeName, Sizes] = {"full": FULL, "tiny": TINY}
