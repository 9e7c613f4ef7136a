"""Published embeddings of any vectors, in small blocks."""

from itertools import count

import numpy as np
import pytest

from ance_cli.formats.embeddings import Embeddings, EmbeddingsWriter
from ance_cli.formats.plan import Plan


@pytest.fixture
def embed(tmp_path):
    """`embed(vectors, row_counts, block_docs, dtype, ids, corpus)`: published embeddings."""
    numbers = count()

    def made(vectors, row_counts=None, block_docs=7, dtype="float32", ids=None, corpus="c"):
        row_counts = np.ones(len(vectors), int) if row_counts is None else np.asarray(row_counts)
        row_counts = row_counts.astype(np.int32)
        assert row_counts.sum() == len(vectors)
        plan = Plan(
            "embeddings", tmp_path / f"emb{next(numbers)}", {}, {"tower": "t", "corpus": corpus}
        )
        folder = plan.open_partial()
        offsets = np.concatenate([[0], np.cumsum(row_counts)])
        writer = EmbeddingsWriter.begin(folder, offsets, vectors.shape[1], dtype, block_docs)
        for block in range(writer.num_blocks):
            docs = writer.docs_of(block)
            rows = slice(offsets[docs.start], offsets[docs.stop])
            writer.write_block(block, vectors[rows])
        content = writer.finish(ids or [f"d{place}" for place in range(len(row_counts))])
        plan.publish_folder(content, {})
        return Embeddings(plan.output)

    return made
