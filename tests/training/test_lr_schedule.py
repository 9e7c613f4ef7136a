import math

import pytest

from ance_cli.config import TrainConfig
from ance_cli.training.lr_schedule import ends, learning_rate


def test_learning_rate_warms_up_and_decays_to_zero():
    config = TrainConfig(lr=1.0, warmup_steps=4, total_steps=10)
    rates = [learning_rate(config, step) for step in range(11)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0 and rates[9] == pytest.approx(1 / 6) and rates[10] == 0.0
    assert all(a >= b for a, b in zip(rates[4:], rates[5:], strict=False))


def test_constant_schedule():
    config = TrainConfig(lr=1.0, warmup_steps=2, total_steps=10, schedule="constant")
    assert [learning_rate(config, step) for step in (0, 1, 2, 50)] == [0.5, 1.0, 1.0, 1.0]


def test_cosine_schedule():
    config = TrainConfig(lr=1.0, warmup_steps=2, total_steps=10, schedule="cosine")
    rates = [learning_rate(config, step) for step in range(2, 11)]
    assert rates == pytest.approx([0.5 + 0.5 * math.cos(math.pi * n / 8) for n in range(9)])


def test_a_warm_up_of_the_whole_run_is_followed_by_the_peak():
    config = TrainConfig(lr=1.0, warmup_steps=4, total_steps=4)
    assert [learning_rate(config, step) for step in (3, 4, 9)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(("schedule", "reaches_0"), [("linear", True), ("cosine", True),
                                                     ("constant", False)])  # fmt: skip
def test_which_schedules_end(schedule, reaches_0):
    assert ends(TrainConfig(total_steps=10, schedule=schedule)) == reaches_0
