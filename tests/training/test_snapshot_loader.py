"""Token rows for training come from the token cache of the corpus that the training set was read
from."""

import numpy as np
import pytest

from ance_cli.call import Call
from ance_cli.config import TrainConfig
from ance_cli.encoding import tokenize
from ance_cli.errors import Mismatch
from ance_cli.formats.dataset import locate
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.training.data import TrainingSet
from ance_cli.training.segments import SegmentInput
from ance_cli.training.train_worker import SnapshotLoader


@pytest.fixture
def loader(checkpoint, dataset, monkeypatch):
    monkeypatch.setattr(tokenize, "BLOCK_DOCS", 5)
    config = TrainConfig(in_batch="all", negatives_per_positive=0)
    training_set = TrainingSet.read(locate(dataset, split="train"), config, None)
    return SnapshotLoader(Checkpoint(checkpoint), training_set, Call())


def test_rows_are_those_of_the_positions_in_the_corpus(loader):
    found = loader.token_rows(np.array([3, 20, 63]))
    cache = tokenize.corpus_tokens(loader.start, loader.training_set.dataset)
    everything = [cache.block(block) for block in range(cache.num_blocks)]
    for place, doc in enumerate((3, 20, 63)):
        np.testing.assert_array_equal(found.row(place), everything[doc // 5].row(doc % 5))
    assert loader.token_rows(np.zeros(0, np.int64)).num_rows == 0


def test_a_snapshot_has_the_rows_of_every_document_of_its_stream(loader):
    snapshot = loader(SegmentInput(None, "batch/all", None, None))
    assert len(snapshot.passages.row_counts) == len(snapshot.stream.docs) > 0


def test_a_corpus_that_changed_after_it_was_read_is_refused(loader):
    corpus = loader.training_set.dataset.corpus
    lines = corpus.read_text().splitlines()
    corpus.write_text("\n".join(lines[1:]) + "\n")
    with pytest.raises(Mismatch, match="changed while the run trained on it"):
        loader.token_rows(np.array([3]))
