"""Which of several failed ranks is the cause."""

from types import SimpleNamespace

import pytest

from ance_cli.training.launch import PEER_LOST, _cause


@pytest.mark.parametrize(
    ("codes", "cause"),
    [
        ([143, -9], (1, -9)),  # torchrun ended rank 0 with SIGTERM
        ([1, -9], (1, -9)),
        ([PEER_LOST, -9], (1, -9)),
        ([-6, -9, 143], (1, -9)),  # a backend aborts a rank that lost its peer
        ([-15, 5], (1, 5)),
        ([1, 5], (1, 5)),
        ([7, 7], (0, 7)),
        ([-6, PEER_LOST], (0, -6)),
        ([143, 1], (1, 1)),
        ([143, PEER_LOST], (0, 143)),
        ([PEER_LOST, PEER_LOST], (0, PEER_LOST)),
        ([-11, 143], (0, -11)),
    ],
)
def test_the_rank_that_failed_first_is_the_cause(codes, cause):
    failures = {
        rank: SimpleNamespace(exitcode=code, timestamp=100) for rank, code in enumerate(codes)
    }
    assert _cause(failures) == cause


def test_a_rank_that_torchrun_had_to_kill_is_not_the_cause():
    failures = {
        0: SimpleNamespace(exitcode=-9, timestamp=131),
        1: SimpleNamespace(exitcode=5, timestamp=100),
    }
    assert _cause(failures) == (1, 5)
