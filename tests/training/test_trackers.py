import importlib.util
import math
import sys

import pytest

from ance_cli.errors import UsageProblem
from ance_cli.training.trackers import make_tracker

RECORDS = [
    {"step": 10, "loss": 0.578125, "tokens_per_s": 900, "dtype": "fp32", "generation": None},
    {"step": 20, "loss": 0.265625, "tokens_per_s": 950, "dtype": "fp32", "generation": 1},
    {"step": 30, "loss": 0.140625, "tokens_per_s": 950, "dtype": "fp32", "generation": 1},
]


def needs(package):
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed")


def test_no_tracker_writes_nothing(tmp_path):
    track = make_tracker(None, tmp_path, "run", {})
    track(RECORDS[0])
    assert not list(tmp_path.iterdir())


def test_an_unknown_tracker(tmp_path):
    with pytest.raises(UsageProblem, match="'mlflow': expected tensorboard or wandb"):
        make_tracker("mlflow", tmp_path, "run", {})


@pytest.mark.parametrize(
    "name,modules", [("tensorboard", ["tensorboard", "torch.utils.tensorboard"]),
                     ("wandb", ["wandb"])],
)  # fmt: skip
def test_a_missing_package(name, modules, tmp_path, monkeypatch):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageProblem) as error:
        make_tracker(name, tmp_path, "run", {})
    assert error.value.what == f"{name} is not installed"
    assert error.value.hint == "pip install 'ance-cli[trackers]'"


def scalars(run_folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_folder / "tensorboard"))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


@needs("tensorboard")
def test_tensorboard_gets_the_numbers_and_a_resumed_run_replaces_what_it_does_again(tmp_path):
    track = make_tracker("tensorboard", tmp_path, "run", {})
    for record in RECORDS:
        track(record)
    assert scalars(tmp_path) == {
        "loss": [(10, 0.578125), (20, 0.265625), (30, 0.140625)],
        "tokens_per_s": [(10, 900), (20, 950), (30, 950)],
        "generation": [(20, 1), (30, 1)],
    }
    # killed at step 30, resumed from step 10
    again = make_tracker("tensorboard", tmp_path, "run", {})
    again({"step": 20, "loss": 0.75})
    assert scalars(tmp_path)["loss"] == [(10, 0.578125), (20, 0.75)]


@needs("tensorboard")
def test_tensorboard_gets_no_truth_values(tmp_path):
    make_tracker("tensorboard", tmp_path, "run", {})({"step": 1, "loss": math.nan, "ok": True})
    assert list(scalars(tmp_path)) == ["loss"]


@pytest.fixture
def offline(monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield wandb
    end_of_process(wandb)


def end_of_process(wandb):
    """Wandb has a service in each process, and one service does not resume what it finished."""
    wandb.finish()
    wandb.teardown()


def sent_from(run_folder):
    """What `wandb sync` sends of the newest part of a run."""
    (path,) = (run_folder / "wandb" / "latest-run").glob("run-*.wandb")
    return path.read_bytes()


@needs("wandb")
def test_wandb_offline_and_a_resumed_run_goes_on_in_the_same_one(tmp_path, offline):
    ids = []
    for run_name, records in [("mine", RECORDS), ("mine", RECORDS[1:]), ("other", RECORDS[:1])]:
        run_folder = tmp_path / run_name
        run_folder.mkdir(exist_ok=True)
        track = make_tracker("wandb", run_folder, run_name, {"lr": 0.5})
        for record in records:
            track(record)
        run = offline.run
        assert (run.project, run.name, run.config["lr"]) == ("ance", run_name, 0.5)
        ids.append(run.id)
        end_of_process(offline)
        assert (run_folder / "wandb" / "latest-run").resolve().name.startswith("offline-run-")
        sent = sent_from(run_folder)
        assert [str(record["loss"]).encode() in sent for record in RECORDS] == [
            record in records for record in RECORDS
        ]
    assert ids[0] == ids[1] != ids[2]


@needs("wandb")
def test_wandb_two_segments_of_one_process(tmp_path, offline):
    for record in RECORDS:
        make_tracker("wandb", tmp_path, "run", {})(record)
    end_of_process(offline)
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1
    assert all(str(record["loss"]).encode() in sent_from(tmp_path) for record in RECORDS)


@needs("wandb")
def test_wandb_without_a_login(tmp_path, monkeypatch):
    import wandb

    def refuse(**options):
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UsageProblem) as error:
        make_tracker("wandb", tmp_path, "run", {})
    assert error.value.what == "wandb does not start: No API key configured."
    assert "WANDB_MODE=offline" in error.value.hint
