"""Minutes from FLOPs, and the rate that they are divided by."""

import pytest

from ance_cli.config import TrainConfig
from ance_cli.formats.dataset import locate
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.training import rate
from ance_cli.training.rate import Rate, measured_rate, reckoned_rate
from ance_cli.training.sizing import DataSample, Workload


def test_minutes_are_flops_by_the_rate_of_all_devices():
    assert Rate(2e9, "").minutes(120e9 * 10, 1) == 10 and Rate(2e9, "").minutes(120e9, 4) == 0.2


def test_the_reckoned_rate_is_half_of_the_ceiling(monkeypatch):
    monkeypatch.setattr(rate, "matmul_ceiling", lambda device, dtype: 80e9)
    found = reckoned_rate("none", "fp32")
    assert found.flops_per_s == 40e9
    assert found.basis == "reckoned, at 50% of the 80 GFLOP/s of a large matrix product on cpu"


@pytest.mark.parametrize(("takes", "pairs"), [(0.01, [1, 1, 2, 4, 8]), (0.3, [1, 1, 2, 4])])
def test_steps_are_measured_until_one_is_long_enough(
    monkeypatch, dataset, checkpoint, takes, pairs
):
    """The clock is ours: a pair takes `takes` seconds. What the last step computed is divided by
    its own time."""
    work = Workload(
        Checkpoint(checkpoint),
        TrainConfig(batch_size=8, dropout=0.0),
        DataSample(locate(dataset, "train"), 1, None),
    )
    done, computed, real = [], [], rate._seconds

    def seconds(step, work, count):
        before = step.computed, step.squares
        real(step, work, count)
        done.append(count)
        computed.append((step.computed - before[0], step.squares - before[1]))
        return takes * count

    monkeypatch.setattr(rate, "_seconds", seconds)
    found = measured_rate(work, "none")
    assert done == pairs
    flops = work.products.training_flops(*computed[-1])
    assert found.flops_per_s == pytest.approx(flops / (takes * pairs[-1]))
    assert found.basis.startswith("measured in training steps on cpu")


def test_a_plain_encoder_is_measured_with_the_head_that_it_would_get(dataset, backbone):
    work = Workload(
        Checkpoint(backbone), TrainConfig(batch_size=2, head="paper"),
        DataSample(locate(dataset, "train"), 1, None),
    )  # fmt: skip
    assert measured_rate(work, "none").flops_per_s > 0
