"""A registry has an entry for each name that the command line offers, and no other one."""

from typing import get_args

import pytest

from ance_cli.config import sets
from ance_cli.training.loss import DISTILLATIONS, LOSSES
from ance_cli.training.lr_schedule import SCHEDULES
from ance_cli.training.optim import OPTIMIZERS
from ance_cli.training.trackers import TRACKERS


@pytest.mark.parametrize(
    ("registry", "names"),
    [
        (LOSSES, sets.LossName),
        (DISTILLATIONS, sets.Distill),
        (OPTIMIZERS, sets.OptimizerName),
        (SCHEDULES, sets.Schedule),
        (TRACKERS, sets.Tracker),
    ],
    ids=["losses", "distillations", "optimizers", "schedules", "trackers"],
)
def test_a_registry_has_the_names_of_its_setting(registry, names):
    assert set(registry) == set(get_args(names))
