"""The proposal for datasets of all sizes keeps within what it promises."""

from types import SimpleNamespace

import pytest

from ance_cli.config.presets import train_config
from ance_cli.formats.dataset import Passage
from ance_cli.setup import proposal
from ance_cli.setup.proposal import SEGMENTS, depth_for, propose
from ance_cli.training.sizing import MOST_EPOCHS


def sample(docs, pairs, words=40):
    passages = [Passage(f"d{n}", "", "word " * (words + n % 5)) for n in range(50)]
    return SimpleNamespace(
        num_docs=docs, num_pairs=pairs, passages=passages, queries=["who is it ?"] * 9
    )


@pytest.mark.parametrize("pairs", [1, 7, 48, 438, 13_189, 500_000])
@pytest.mark.parametrize("docs", [2, 64, 528, 16_350, 8_800_000])
def test_no_run_makes_too_many_epochs(docs, pairs):
    """Twin: the epochs of both runs, by the pairs of their steps."""
    found, _ = propose(sample(docs, pairs), None)
    batch = train_config(found.preset, found.recipe).batch_size
    assert batch == found.batch_size >= 4
    warmup, loop = found.warmup * batch / pairs, SEGMENTS * found.refresh_every * batch / pairs
    if pairs >= batch:
        assert 3 <= warmup <= 6 and 3 <= loop <= MOST_EPOCHS
    assert found.refresh_every >= 1 and found.depth <= 200
    config = train_config(found.preset, found.recipe)
    assert config.warmup_steps < found.warmup, "it reaches its learning rate"
    assert config.warmup_steps < SEGMENTS * found.refresh_every


def test_the_steps_of_a_small_dataset():
    found, cut = propose(sample(528, 438), None)
    assert (found.preset, found.batch_size, found.depth) == ("small", 16, 50)
    assert (found.warmup, found.refresh_every) == (83, 28)  # 438 / 16 = 27.4 steps an epoch
    assert found.query_length == 8  # 4 words of 1.3 tokens, and 2
    assert found.passage_length == 64  # 44 words of 1.3 tokens, and 2: 59.2
    assert cut == {"query": 0.0, "passage": 0.0}
    assert found.facts["loop"] == {
        "steps": 84, "refresh_every": 28, "segments": 3, "epochs": 3.1,
    }  # fmt: skip


def test_a_refresh_of_a_large_corpus_is_not_made_each_epoch():
    """Twin: the tokens that an epoch and a refresh cost, three times as much in training."""
    few, _ = propose(sample(20_000, 1_000), None)
    query, passage = 4 * 1.3 + 2, 42 * 1.3 + 2
    epochs = 20_000 * passage / (3 * 1_000 * (query + 2 * passage))
    assert few.refresh_every == pytest.approx(epochs * 1_000 / few.batch_size, abs=1)
    assert 1 < epochs < 5


def test_more_devices_make_fewer_steps(monkeypatch):
    monkeypatch.setattr(proposal, "Devices", lambda: SimpleNamespace(num_ranks=4))
    found, _ = propose(sample(16_350, 13_189), None)
    assert found.batch_size == 32 and found.warmup == 310  # 3 x 13,189 / 128


def test_the_depth_grows_with_the_corpus():
    sizes = [10, 200, 528, 16_350, 30_000, 10**7]
    assert [depth_for(size) for size in sizes] == [30, 30, 50, 54, 100, 200]
