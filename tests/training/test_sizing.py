"""What a run comes to, against counts by hand: lengths, cut texts, epochs, FLOPs."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest

from ance_cli.call import SkippedLines
from ance_cli.config import TrainConfig
from ance_cli.errors import BadInput
from ance_cli.formats.dataset import locate
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.training import sizing
from ance_cli.training.sizing import DataSample, Workload, length_for, lengths_for, with_lengths
from tests.world import Said, jsonl, make_tokenizer


@pytest.fixture
def sample(dataset):
    return DataSample(locate(dataset, "train"), 1, None)


def tokens(text):
    return len(make_tokenizer()(text)["input_ids"])


def passages_of(dataset):
    return [f"{doc['title']} {doc['text']}" for doc in jsonl(dataset / "corpus.jsonl")]


@pytest.mark.parametrize("share", [0.95, 0.99])
def test_a_length_leaves_its_share_of_the_texts_whole(monkeypatch, share):
    """Twin: the smallest multiple of 8 by trial."""
    monkeypatch.setitem(sizing._COVERED, "passage", share)
    rng = np.random.default_rng(0)
    for size in (1, 2, 19, 20, 21, 400):
        found = rng.integers(3, 300, size)
        whole = (length for length in range(8, 400, 8) if (found <= length).mean() >= share)
        assert length_for("passage", found, 10**6) == next(whole)
    assert length_for("passage", found, 100) == 100
    assert length_for("passage", np.array([9_999]), 10**6) == 512


def test_the_sample_is_counted_and_does_not_depend_on_the_order(sample, dataset, monkeypatch):
    assert (sample.num_docs, sample.num_pairs) == (64, 48)
    assert len(sample.passages) == 64 and len(sample.queries) == 24
    monkeypatch.setattr(sizing, "SAMPLE_SIZE", 10)
    first = DataSample(locate(dataset, "train"), 1, None).passages
    lines = (dataset / "corpus.jsonl").read_text().splitlines()
    (dataset / "corpus.jsonl").write_text("\n".join(lines[::-1]) + "\n")
    again = DataSample(locate(dataset, "train"), 1, None)
    assert again.passages == first and len(first) == 10 and again.num_docs == 64
    assert len(again.queries) == 10


def test_broken_lines_are_refused_or_skipped(dataset):
    with open(dataset / "corpus.jsonl", "a") as handle:
        handle.write("{broken\n")
    data = locate(dataset, "train")
    with pytest.raises(BadInput, match="corpus.jsonl:65"):
        _ = DataSample(data, 1, None).num_docs
    skipped = SkippedLines()
    assert DataSample(data, 1, skipped).num_docs == 64 and skipped.count == 1


def test_a_start_without_lengths_gets_those_of_its_texts(sample, dataset, backbone):
    start = Checkpoint(backbone)
    assert (start.settings.query_length, start.settings.passage_length) == (128, 128)
    needed = sorted(map(tokens, passages_of(dataset)))[math.ceil(0.95 * 64) - 1]
    chosen = with_lengths(TrainConfig(), start, sample)
    assert (chosen.query_length, chosen.passage_length) == (8, -(-needed // 8) * 8)
    assert with_lengths(TrainConfig(query_length=5), start, sample).query_length == 5
    long = start.with_settings(query_prefix="river " * 30)
    assert lengths_for(long, sample)["query_length"] == 40, "prompts count"
    segments = start.with_settings(segmentation="special")
    assert lengths_for(segments, sample)["passage_length"] == 128


def test_lengths_that_are_there_stay(sample, checkpoint):
    config = TrainConfig()
    assert with_lengths(config, Checkpoint(checkpoint), sample) is config


@pytest.mark.parametrize(
    ("settings", "cut"),
    [({"passage_length": 20}, lambda count: count > 20),
     ({"passage_length": 8, "segmentation": "slice", "max_segments": 3}, lambda n: n > 24)],
)  # fmt: skip
def test_the_share_that_is_cut(sample, dataset, checkpoint, settings, cut):
    work = Workload(Checkpoint(checkpoint).with_settings(**settings), TrainConfig(), sample)
    whole = [cut(tokens(text)) for text in passages_of(dataset)]
    assert work.cut == {"query": 0.0, "passage": pytest.approx(np.mean(whole))}
    assert 0 < work.cut["passage"] < 1


def test_epochs_are_those_of_the_stream(sample, checkpoint, dataset):
    """Twin: the batches that training takes until each pair was visited twice."""
    from ance_cli.training.data import StreamPosition, TrainingSet

    config = TrainConfig(batch_size=8, accumulation=2, in_batch="all", negatives_per_positive=0)
    stream = TrainingSet.read(locate(dataset, "train"), config, None).stream(None, 0)
    at, steps = StreamPosition(), 0
    while (at.epoch, at.position) != (1, 48):
        for _ in range(config.accumulation):
            at = stream.next_batch(at, config.batch_size)[1]
        steps += 1
    assert Workload(Checkpoint(checkpoint), config, sample).epochs(steps) == 2
    two = replace(config, devices=2)
    assert Workload(Checkpoint(checkpoint), two, sample).epochs(steps) == 4


def test_it_warns_of_many_epochs_and_of_cut_texts_and_names_the_flags(sample, checkpoint):
    start, said = Checkpoint(checkpoint), Said()
    work = Workload(start.with_settings(passage_length=64), TrainConfig(batch_size=8), sample)
    work.warn(120, said)
    assert not said.warnings, "120 steps are 20 epochs"
    work.warn(121, said)
    (line,) = said.warnings
    assert "each of its 48 pairs 20.2 times, in 121 steps of 8 pairs" in line
    assert "(--steps; in a loop --refresh-every and --segments)" in line
    short = start.with_settings(query_length=3, passage_length=8)
    Workload(short, TrainConfig(), sample).warn(1, said)
    assert said.warnings[1:] == [
        "100% of a sample of the queries have more than 3 tokens and are cut (--query-length)",
        "100% of a sample of the passages have more than 8 tokens and are cut (--passage-length)",
    ]


def test_at_the_encoders_limit_segments_are_named(sample, dataset, backbone, tmp_path):
    import json

    folder = shutil.copytree(backbone, tmp_path / "short")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 16}))
    said = Said()
    Workload(Checkpoint(folder), TrainConfig(), sample).warn(1, said)
    assert "more than 16 tokens and are cut (the encoder takes no more; --segm" in said.warnings[0]


def test_the_flops_of_a_step_and_of_a_refresh(sample, dataset, checkpoint, monkeypatch):
    """Twin: the sums over drawn batches, and over the whole corpus, of which the sample is all."""
    start = Checkpoint(checkpoint).with_settings(query_length=64, passage_length=64)
    config = TrainConfig(batch_size=4, negatives_per_positive=2, accumulation=3)
    work = Workload(start, config, sample)
    lengths = list(map(tokens, passages_of(dataset)))
    forward = work.products.forward_flops
    assert work.encode_flops == forward(sum(lengths), sum(n**2 for n in lengths))
    monkeypatch.setattr(sizing, "_DRAWN_BATCHES", 4_000)
    rng = np.random.default_rng(1)
    total = 0
    for _ in range(4_000):
        widest = -(-max(rng.choice(lengths, 4 * 3)) // 8) * 8
        total += forward(12 * widest, 12 * widest**2) + forward(4 * 8, 4 * 64)
    assert work.step_flops == pytest.approx(3 * 3 * total / 4_000, rel=0.02)


def test_a_frozen_passage_tower_costs_nothing(sample, checkpoint):
    work = Workload(Checkpoint(checkpoint), TrainConfig(freeze_passages=True, batch_size=4), sample)
    queries = work.products.training_flops(4 * 8, 4 * 64)
    assert work.step_flops == queries
