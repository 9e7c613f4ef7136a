"""Token caches without texts, at any size, with the lengths of MS MARCO's passages.

A passage has 55.98 words on average (Thakur et al., 2021, Table 1), about 75 WordPieces. How they
scatter is our assumption: a log-normal distribution of median 70 and sigma 0.38, in which one
passage in a hundred is shorter than 29 tokens and one longer than 169. Token ids are uniform.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ance_cli.formats.embeddings import BLOCK_DOCS
from ance_cli.formats.plan import Plan
from ance_cli.formats.tokens import KIND, TokenCache, TokenRows, TokenWriter

MEDIAN, SIGMA = 70, 0.38


def passage_lengths(rng: np.random.Generator, count: int, longest: int) -> npt.NDArray[np.int64]:
    """Tokens of each passage, special ones included."""
    drawn = np.exp(rng.normal(math.log(MEDIAN), SIGMA, count)).astype(np.int64)
    return np.clip(drawn, 3, longest)


def synthetic_tokens(
    folder: Path, num_docs: int, vocabulary: int, longest: int = 512, seed: int = 0
) -> TokenCache:
    """A published token cache of `num_docs` passages, written block by block."""
    rng = np.random.default_rng(seed)
    plan = Plan(KIND, folder, {"seed": seed, "docs": num_docs}, {})
    writer = TokenWriter(plan.open_partial(force=True), vocabulary, BLOCK_DOCS)
    for start in range(0, num_docs, BLOCK_DOCS):
        count = min(BLOCK_DOCS, num_docs - start)
        offsets = np.zeros(count + 1, np.int64)
        np.cumsum(passage_lengths(rng, count, longest), out=offsets[1:])
        ids = rng.integers(0, vocabulary, int(offsets[-1]), np.int32)
        names = [f"d{number}" for number in range(start, start + count)]
        writer.write_block(names, TokenRows(ids, offsets, np.ones(count, np.int32)))
    plan.publish_folder(writer.finish(), {})
    return TokenCache(folder)
