"""A run's first checkpoint: the towers and the similarity that were asked for."""

import numpy as np
import pytest

from ance_cli.call import Call
from ance_cli.config import TrainConfig
from ance_cli.errors import Mismatch, UsageProblem
from ance_cli.formats.dataset import locate
from ance_cli.formats.run_folder import RunFolder
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.training.launch import Devices
from ance_cli.training.run_creation import (
    RunSetup,
    RunSpec,
    publish_checkpoint,
    resolve_run,
    start_run,
)
from tests.models.test_encoder import our_vectors
from tests.world import Said


@pytest.fixture
def start(tmp_path, dataset):
    """Starts a run from a checkpoint; returns its first checkpoint and what was said."""

    def make(checkpoint, towers=None, similarity=None, **given):
        config = TrainConfig(**given)
        object.__setattr__(config, "towers", towers)
        object.__setattr__(config, "similarity", similarity)
        run, said = RunFolder(tmp_path / "run"), Said()
        data = locate(dataset, split="train")
        start_run(run, RunSetup(data, checkpoint, config, {}), said)
        return Checkpoint(run.latest), "\n".join(said.lines)

    return make


def test_two_towers_with_a_fresh_head_for_cosine(start, backbone):
    first, said = start(backbone, "two", "cosine", dim=16, query_length=12)
    assert not first.shared and first.is_cosine and first.dim == 16
    assert (first.settings.similarity, first.settings.scale) == ("cosine", 20.0)
    assert "(mean -> Dense -> Normalize, 16 dimensions, cosine)" in said
    texts = ["river granite", "bread"]
    np.testing.assert_allclose(
        our_vectors(first.path, texts, "query"), our_vectors(first.path, texts), atol=1e-6
    )


def test_a_scale_that_was_given_stays(start, backbone):
    first, _ = start(backbone, similarity="cosine", scale=50.0)
    assert first.shared and first.settings.scale == 50.0


def test_the_start_is_kept_where_nothing_is_asked(start, two_towers):
    first, said = start(two_towers)
    assert not first.shared and not said
    for side in ("query", "passage"):
        assert first.tower_hash(side) == Checkpoint(two_towers).tower_hash(side)


def test_another_similarity_is_saved(start, checkpoint):
    first, _ = start(checkpoint, similarity="cosine")
    assert (first.settings.similarity, first.settings.scale) == ("cosine", 20.0)
    lengths = np.linalg.norm(our_vectors(first.path, ["river granite", "bread"]), axis=1)
    np.testing.assert_allclose(lengths, 1.0, atol=1e-6)


def test_nothing_is_left_of_a_start_that_is_refused(start, two_towers, tmp_path):
    with pytest.raises(UsageProblem, match="--towers shared"):
        start(two_towers, "shared")
    assert not (tmp_path / "run").exists()


def test_more_frozen_layers_than_there_are_leave_no_run(start, checkpoint, tmp_path):
    with pytest.raises(UsageProblem, match="--freeze-layers 3: the encoder has 2 layers") as found:
        start(checkpoint, freeze_layers=3)
    assert found.value.hint == "use --freeze-layers 2 or less"
    assert not (tmp_path / "run").exists()
    start(checkpoint, freeze_layers=2)


def test_a_frozen_passage_tower_is_published_as_it_was(start, checkpoint, tmp_path):
    from dataclasses import replace

    from ance_cli.models.dual import freeze_passages, load_dual

    first, _ = start(checkpoint)
    dual = freeze_passages(load_dual(first))
    dual.query.chain[2].linear.weight.data.mul_(2)
    run = RunFolder(tmp_path / "run")
    settings = replace(first.settings, training_step=3)
    publish_checkpoint(run, dual, settings, frozen_passage_from=first)
    latest = Checkpoint(run.latest)
    assert latest.settings.training_step == 3 and not latest.shared
    assert latest.tower_hash("passage") == first.tower_hash("passage")
    assert latest.tower_hash("query") != first.tower_hash("query")


@pytest.mark.parametrize("given", [{"head": "paper"}, {"head": "pooled"}, {"pooling": "mean"}])
def test_a_head_stays_and_a_presets_head_is_for_a_fresh_one(dataset, checkpoint, tmp_path, given):
    run, data = RunFolder(tmp_path / "run"), locate(dataset, split="train")

    def resolved(preset, given):
        return resolve_run(run, RunSpec(data, checkpoint, preset, given), 3, Devices(), Call())

    with pytest.raises(UsageProblem, match="has a pooling and head of its own"):
        resolved(None, given)
    start_run(run, resolved("warmup", {}), Said())
    kinds = [
        [module.kind for module in Checkpoint(path).tower("query").modules]
        for path in (run.latest, checkpoint)
    ]
    assert kinds[0] == kinds[1]
    assert not resolved("warmup", {}).is_new
    with pytest.raises(Mismatch, match="made with other settings: head 'paper' -> 'pooled'"):
        resolved("warmup", {"head": "pooled"})
