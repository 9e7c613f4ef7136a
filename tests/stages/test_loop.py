import pytest

from ance_cli.formats.manifest import Plan
from ance_cli.formats.run_folder import RunFolder
from ance_cli.stages.loop import as_flags, out_of_patience


def test_flags():
    found = as_flags({"refresh_every": 5, "follow": True, "force": False, "preset": None, "lr": 0})
    assert found == ["--refresh-every", "5", "--follow", "--lr", "0"]


@pytest.mark.parametrize(
    ("values", "patience", "stops"),
    [
        ([0.1, 0.2, 0.3], 1, False),
        ([0.1, 0.3, 0.2], 1, True),
        ([0.1, 0.3, 0.2], 2, False),
        ([0.1, 0.3, 0.2, 0.3], 2, True),  # as good is not better
        ([0.3, 0.2, 0.1], 0, False),
        ([], 1, False),
    ],
)
def test_patience(tmp_path, values, patience, stops):
    run = RunFolder(tmp_path)
    for number, value in enumerate(values, start=1):
        plan = Plan("generation", run.generation_at(number), {}, {})
        stats = {"checkpoint_step": number, "age": 0, "probe_overlap": None,
                 "seconds": {"all": 1.0}, "dev": {"RR@10": value, "R@100": 1.0}}  # fmt: skip
        plan.open_partial()
        plan.publish_folder({}, stats)
    reason = out_of_patience(run, patience)
    assert bool(reason) is stops
    if stops:
        assert reason == f"no generation was better than number 2 of {len(values)} on dev"
