"""The commands of a loop's children, by the settings and by the progress of the run."""

import json
import re
import shlex
import signal
import time

import pytest

import ance_cli.cli.main  # noqa: F401 (registers the commands)
from ance_cli.call import Call
from ance_cli.cli.command import COMMANDS
from ance_cli.config import LoopConfig, LoopDevices
from ance_cli.config.loop import RefreshRules
from ance_cli.config.setting import declared
from ance_cli.config.training import RecipeConfig, WorkerConfig
from ance_cli.errors import UsageProblem
from ance_cli.formats.plan import Plan
from ance_cli.formats.run_folder import RunFolder
from ance_cli.loop import loop as stage
from ance_cli.loop.commands import as_flags
from ance_cli.loop.loop import loop, out_of_patience
from tests.intact import check_finished, check_intact, check_ledger
from tests.world import Ance, jsonl


def test_flags():
    found = as_flags({"refresh_every": 5, "follow": True, "force": False, "preset": None, "lr": 0})
    assert found == ["--refresh-every", "5", "--follow", "--lr", "0"]
    found = as_flags({"query_prefix": "", "passage_prefix": "- a", "normalize": False})
    assert found == ["--query-prompt", "", "--passage-prompt", "- a"]


def test_every_setting_has_the_flag_that_the_childs_command_declares():
    train, refresh = COMMANDS["train-segment"].settings, COMMANDS["refresh"].settings
    flags = {each.name: each.flags for each in (*train, *refresh)}
    for each in (*declared(RecipeConfig), *declared(WorkerConfig), *declared(RefreshRules)):
        assert as_flags({each.name: "x"})[0] in flags[each.name]


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
        plan = Plan("generation", run.generation(number).path, {}, {})
        stats = {"checkpoint_step": number, "age": 0, "probe_overlap": None,
                 "seconds": {"all": 1.0}, "dev": {"RR@10": value, "R@100": 1.0}}  # fmt: skip
        plan.open_partial()
        plan.publish_folder({}, stats)
    reason = out_of_patience(run, patience)
    assert bool(reason) is stops
    if stops:
        assert reason == f"no generation was better than number 2 of {len(values)} on dev"


def test_a_setting_that_no_child_takes_is_refused(tmp_path, dataset, checkpoint):
    given = {"data": dataset, "ckpt": checkpoint, "relative_margins": 0.05}
    with pytest.raises(UsageProblem, match="--relative-margins is not a setting of a loop"):
        loop(tmp_path / "run", LoopConfig(), given=given, call=Call(dry_run=True))


def test_each_child_gets_the_settings_that_its_command_takes(tmp_path, dataset, checkpoint):
    given = {"data": dataset, "ckpt": checkpoint, "lr": 1e-3, "relative_margin": 0.05,
             "log_every": 5}  # fmt: skip
    config = LoopConfig(refresh_every=10, segments=2, mode="async", max_staleness=20)
    commands = loop(tmp_path / "run", config, given=given, call=Call(dry_run=True))["commands"]
    prepare, train, refresh = (shlex.split(command) for command in commands)
    takes = {"--data": {"prepare"}, "--lr": {"prepare"}, "--log-every": {"prepare", "train"},
             "--max-staleness": {"train"}, "--relative-margin": {"refresh"}}  # fmt: skip
    for flag, expected in takes.items():
        named = {"prepare": prepare, "train": train, "refresh": refresh}
        assert {name for name, words in named.items() if flag in words} == expected
    assert refresh[refresh.index("--relative-margin") + 1] == "0.05"


def test_the_plan_counts_the_devices_even_of_another_machine(tmp_path, dataset, checkpoint):
    """48 pairs: 6 steps of 2 x 4 are an epoch."""
    given = {"data": dataset, "ckpt": checkpoint, "batch_size": 4}
    for devices, plan in (
        (LoopDevices(gpus="0-2", train_gpus="0-1"), {"pairs_per_step": 8, "epochs": 3.33}),
        (LoopDevices(gpus="none"), {"pairs_per_step": 4, "epochs": 1.67}),
    ):
        found = loop(tmp_path / "run", LoopConfig(refresh_every=10, segments=2), given=given,
                     devices=devices, call=Call(dry_run=True))["plan"]  # fmt: skip
        assert found.items() >= plan.items()
        assert ("minutes" in found) == (devices.gpus == "none")


def test_negatives_that_are_always_too_old_are_refused():
    with pytest.raises(UsageProblem, match="--max-staleness 5 is less than --refresh-every 10"):
        LoopConfig(refresh_every=10, max_staleness=5)


# ---------------------------------------------------------------- threads


def threads_of(tmp_path, dataset, checkpoint, mode, threads):
    """--threads in the commands of the trainer and of the refreshes; None if it is absent."""
    given = {"data": dataset, "ckpt": checkpoint}
    config = LoopConfig(refresh_every=10, segments=2, mode=mode)
    found = loop(tmp_path / "run", config, given=given, devices=LoopDevices(gpus="none"),
                 call=Call(threads=threads, dry_run=True))  # fmt: skip
    processes = {command.split()[1]: command for command in found["commands"][1:]}
    matches = [
        re.search(r"--threads (\d+)", processes[name]) for name in ("train-segment", "refresh")
    ]
    return [match and int(match[1]) for match in matches]


def test_threads_reach_both_children(tmp_path, dataset, checkpoint, monkeypatch):
    """Without this flag BM25 in a refresh takes every core. A child that is pinned to CPUs has no
    more threads than CPUs."""
    monkeypatch.setattr("ance_cli.loop.devices.os.sched_getaffinity", lambda _: set(range(6)))
    assert threads_of(tmp_path, dataset, checkpoint, "sync", 4) == [4, 4]
    assert threads_of(tmp_path, dataset, checkpoint, "sync", 0) == [None, None]
    assert threads_of(tmp_path, dataset, checkpoint, "async", 2) == [2, 2]
    assert threads_of(tmp_path, dataset, checkpoint, "async", 4) == [3, 3]
    assert threads_of(tmp_path, dataset, checkpoint, "async", 0) == [3, 3]
    devices = stage.place_devices("auto", (1, 1), LoopDevices(train_gpus="0", infer_gpus="1"))
    monkeypatch.setattr(stage, "place_devices", lambda *_: devices)
    assert threads_of(tmp_path, dataset, checkpoint, "async", 4) == [4, 4]


# ---------------------------------------------------------------- more or fewer segments


def segment(number, start_step, steps, source="follow"):
    negatives = None if source == "follow" else source
    return {"segment": number, "start_step": start_step, "steps": steps, "input": source,
            "negatives": negatives}  # fmt: skip


def run_at(tmp_path, state, checkpoint, *records):
    """A run with a state, a checkpoint and a ledger of segments."""
    run = RunFolder(tmp_path / "run")
    for folder, name, facts in (
        (run.state(state).path, "state.json", {"step": state}),
        (run.checkpoint(checkpoint).path, "ance.json", {"training_step": checkpoint}),
    ):
        folder.mkdir(parents=True)
        (folder / name).write_text(json.dumps(facts))
    if records:
        run.segments.write_text("".join(json.dumps(record) + "\n" for record in records))
    return run


@pytest.mark.parametrize(
    ("state", "checkpoint", "records", "last_step", "rest"),
    [
        (0, 0, [], 200, (200, False)),
        (150, 100, [segment(1, 0, 200)], 200, (200, False)),  # the same call continues
        (200, 200, [segment(1, 0, 200)], 200, (200, False)),  # only its last line is missing
        (150, 100, [segment(1, 0, 200)], 400, (250, True)),  # more segments than before
        (150, 100, [segment(1, 0, 400)], 200, (50, True)),  # fewer
        (250, 200, [segment(1, 0, 400)], 200, (-50, True)),  # fewer, and trained already
        (300, 300, [segment(1, 0, 200), segment(2, 150, 250)], 400, (250, False)),
        (200, 200, [segment(1, 0, 200), {"finished": 1}], 400, (200, True)),  # not the same steps
        (400, 400, [segment(1, 0, 400), {"finished": 1}], 400, (0, True)),
        (150, 100, [segment(1, 100, 100, "x.jsonl")], 200, (50, True)),  # was synchronous before
    ],
)
def test_the_trainer_ends_where_the_refresh_daemon_ends(
    tmp_path, state, checkpoint, records, last_step, rest
):
    run = run_at(tmp_path, state, checkpoint, *records)
    assert stage._rest_of_training(run, last_step) == rest


def test_a_run_that_went_past_without_a_checkpoint_is_refused(tmp_path):
    """The refresh daemon would wait for a checkpoint that nobody makes."""
    run = run_at(tmp_path, 250, 200, segment(1, 0, 400))
    with pytest.raises(UsageProblem, match="is at step 250, past the 240 steps of --segments"):
        stage._rest_of_training(run, 240)


EVERY = 40


@pytest.mark.long
def test_a_loop_that_was_planned_ahead_takes_more_and_fewer_segments(tmp_path, dataset, checkpoint):
    """One segment, then four that are interrupted, then three."""
    program = Ance(tmp_path)
    run = tmp_path / "run"
    words = ["loop", "--data", "data", "--ckpt", checkpoint, "--mode", "async", "--batch-size", 8,
             "--lr", "1e-3", "--depth", 10, "--negatives", 4, "--log-every", 1, "--total-steps",
             4 * EVERY, "--refresh-every", EVERY, "-o", "run", "--segments"]  # fmt: skip
    program(*words, 1)
    check_finished(run, EVERY, EVERY)
    process = program.start(*words, 4)
    until = time.monotonic() + 60
    while jsonl(run / "metrics.jsonl")[-1]["step"] < EVERY + 3:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    stopped = jsonl(run / "metrics.jsonl")[-1]["step"]
    assert stopped < 3 * EVERY, "it was too fast for this test"
    program(*words, 3)
    assert json.loads((run / "negatives.json").read_text())["checkpoint_step"] == 3 * EVERY
    assert len(list((run / "checkpoints").iterdir())) == 4
    check_ledger(run)
    check_intact(run)
    assert [line["step"] for line in jsonl(run / "metrics.jsonl")] == list(range(1, 3 * EVERY + 1))
    begun = [line for line in jsonl(run / "segments.jsonl") if "segment" in line]
    assert [(line["start_step"], line["steps"]) for line in begun] == [
        (0, EVERY), (EVERY, 3 * EVERY), (stopped, 3 * EVERY - stopped),
    ]  # fmt: skip
