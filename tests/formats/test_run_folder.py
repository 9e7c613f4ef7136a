"""A run folder: who is newest there, what is published, what the ledgers say."""

import errno
import json
import os
from pathlib import Path

import pytest

from ance_cli.errors import BadInput, Busy, Mismatch
from ance_cli.formats import atomic
from ance_cli.formats.dataset import Dataset
from ance_cli.formats.ledgers import cut_ledger, read_ledger
from ance_cli.formats.records import with_hash
from ance_cli.formats.run_folder import DataPaths, Pointer, RunFolder, RunRecord, compare_settings

SEGMENT = b'{"segment":1,"start_step":0,"steps":5,"input":"follow"}\n'


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "run")


def checkpoint(run, name, step):
    folder = run.checkpoints / name
    folder.mkdir(parents=True)
    (folder / "ance.json").write_text(json.dumps({"training_step": step}))
    return folder


def state(run, step):
    folder = run.state(step).path
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"step": step}))
    return folder


# ---------------------------------------------------------------- checkpoints and states


def test_the_newest_checkpoint_is_found_by_the_step_inside(run):
    newest = checkpoint(run, "an old name", 300)
    checkpoint(run, "step-00009999", 20)
    checkpoint(run, "zzz", 100)
    assert run.newest_checkpoint() == (300, newest)


def test_a_failing_disk_is_not_taken_for_an_incomplete_checkpoint(run, monkeypatch):
    """The one before it would become the newest, and its steps would be trained again."""
    checkpoint(run, "step-00000100", 100)
    state(run, 100)

    def read_bytes(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    for newest in (run.newest_checkpoint, run.newest_state):
        with pytest.raises(OSError, match="Input/output error"):
            newest()


def test_steps_are_compared_as_numbers(run):
    checkpoint(run, "a", 9)
    assert run.newest_checkpoint()[0] == 9
    newest = checkpoint(run, "b", 10)
    assert run.newest_checkpoint() == (10, newest)


def test_there_is_no_newest_checkpoint_at_first(run):
    assert run.newest_checkpoint() is None
    run.checkpoints.mkdir(parents=True)
    assert run.newest_checkpoint() is None


def test_what_is_not_whole_is_not_a_checkpoint(run):
    whole = checkpoint(run, "step-00000100", 100)
    checkpoint(run, ".step-00000200.partial", 200)
    checkpoint(run, ".step-00000300.removed", 300)
    (run.checkpoints / "step-00000400").mkdir()
    (checkpoint(run, "step-00000500", 500) / "ance.json").write_text('{"training_st')
    (checkpoint(run, "step-00000600", 600) / "ance.json").write_text("{}")
    (run.checkpoints / "notes.txt").write_text("a file")
    assert run.newest_checkpoint() == (100, whole)


@pytest.mark.parametrize("facts", ['{"training_step": null}', "[]"])
def test_facts_of_another_shape_are_not_whole_either(run, facts):
    whole = checkpoint(run, "step-00000100", 100)
    (checkpoint(run, "step-00000200", 200) / "ance.json").write_text(facts)
    assert run.newest_checkpoint() == (100, whole)


def test_names_keep_the_order_of_steps(run):
    assert run.checkpoint(5).path.name == "step-00000005"
    assert run.state(10_000).path.name == "step-00010000"
    assert run.generation(3).path.name == "0003"
    assert run.lease("trainer") == run.path / "lease" / "trainer"


def test_all_but_the_newest_states_are_removed(run):
    for step in (30, 1000, 200):
        state(run, step)
    partial = run.states / ".step-00002000.partial"
    partial.mkdir()
    run.write_settings("run.json", {"identity": {}, "data": DATA})
    run.prune_states(keep=2)
    assert sorted(path.name for path in run.states.iterdir()) == [
        partial.name, "step-00000200", "step-00001000",
    ]  # fmt: skip
    assert run.newest_state() == (1000, run.state(1000).path)


# ---------------------------------------------------------------- pointer and settings


def test_the_pointer_names_the_published_generation(run):
    assert run.published() is None
    run.publish(3, 20_000, run.generation(3).path)
    assert run.published() == Pointer(3, 20_000, "generations/0003")
    assert run.published_folder(run.published()) == run.generation(3)
    run.publish(4, 30_000, run.generation(4).path)
    assert run.published().generation == 4
    assert [path.name for path in run.path.iterdir()] == ["negatives.json"]


def test_a_damaged_pointer_is_refused(run):
    run.path.mkdir()
    (run.path / "negatives.json").write_text('{"gener')
    with pytest.raises(BadInput) as caught:
        run.published()
    assert caught.value.what.startswith(f"{run.path}/negatives.json: not valid JSON (")


DATA = {"corpus": "c", "queries": "q", "qrels": "r", "split": None}


def test_settings_are_written_and_read(run):
    assert not run.exists and not run.has_refresh_settings
    run.write_settings("run.json", {"identity": {"seed": 1}, "data": DATA, "later": 1})
    run.write_settings("refresh.json", {"depth": 100})
    run.write_settings("refresh.json", {"depth": 200})
    assert run.exists and run.has_refresh_settings
    assert run.read() == RunRecord({"seed": 1}, DataPaths(**DATA))
    assert run.refresh_settings() == {"depth": 200}


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("run.json", "{", "not valid JSON"),
        ("run.json", "[]", "expected a JSON object, found array"),
        ("run.json", json.dumps({"data": DATA}), "has no identity"),
        ("run.json", '{"identity": {}, "data": {"corpus": "c"}}', "has no data.queries"),
        ("run.json", json.dumps({"identity": {"lr": "1e-5"}, "data": DATA}),
         "identity: 'lr': expected float, found str"),
        ("refresh.json", '{"depth": 1.5}', "'depth': expected int, found float"),
        ("refresh.json", "[]", "expected a JSON object, found array"),
    ],
)  # fmt: skip
def test_broken_settings_are_refused(run, name, text, reason):
    run.path.mkdir()
    (run.path / name).write_text(text)
    with pytest.raises(BadInput) as caught:
        run.read() if name == "run.json" else run.refresh_settings()
    assert caught.value.what.startswith(f"{run.path}/{name}: ") and reason in caught.value.what
    assert caught.value.hint == (
        "restore the file: ance writes it whole, so something else changed it"
    )


def test_what_is_no_run_folder_is_refused(run):
    with pytest.raises(BadInput) as caught:
        run.read()
    assert caught.value.what == (
        f"{run.path}/run.json: no such file: {run.path} is not a run folder"
    )
    assert caught.value.hint == (
        "start a run with: ance loop --data DATASET --ckpt CHECKPOINT -o RUN"
    )


@pytest.mark.parametrize("line", [b"garbage", b"[1]", b'{"segment":2}', b'{"finished":"1"}'])
def test_a_broken_line_of_a_ledger_is_named(run, line):
    run.path.mkdir()
    run.segments.write_bytes(SEGMENT + line + b'\n{"finished":1}\n')
    with pytest.raises(BadInput) as caught:
        run.unfinished_segment()
    assert caught.value.what.startswith(f"{run.segments}:2: ")


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"generation": "1", "checkpoint_step": 1, "path": "x"}']
)
def test_a_broken_pointer_is_reported_with_the_fix(run, text):
    run.path.mkdir()
    (run.path / "negatives.json").write_text(text)
    with pytest.raises(BadInput) as caught:
        run.published()
    assert caught.value.hint == "remove the file: the next ance refresh writes it again"


@pytest.mark.parametrize("named", [(1, "generations/0002"), (2, "../run/generations/0002"),
                                   (0, "generations/0000")])  # fmt: skip
def test_a_pointer_to_another_folder_is_refused(run, named):
    number, path = named
    pointer = {"generation": number, "checkpoint_step": 1, "path": path}
    run.write_settings("negatives.json", pointer)
    with pytest.raises(BadInput, match="where that generation is not") as caught:
        run.published()
    assert caught.value.hint == "remove the file: the next ance refresh writes it again"


def test_other_settings_are_named(tmp_path):
    found = {"lr": 1e-5, "seed": 42, "dtype": "bf16", "old": 1}
    compare_settings(tmp_path, found, {"lr": 1e-5, "dtype": "auto"}, "a hint")
    with pytest.raises(Mismatch) as caught:
        compare_settings(
            tmp_path, found, {"lr": 2e-5, "seed": 42, "dtype": "auto", "new": "x"}, "a hint"
        )
    assert caught.value.what == (
        f"{tmp_path}: was made with other settings: lr 1e-05 -> 2e-05; new None -> 'x'"
    )
    assert caught.value.hint == "a hint"


# ---------------------------------------------------------------- making a run


def test_a_run_that_was_made_is_kept_whatever_comes_after(run):
    with run.held("trainer"):
        run.write_settings("run.json", {})
    with pytest.raises(RuntimeError), run.held("trainer"):
        checkpoint(run, "step-00000001", 1)
        raise RuntimeError
    assert run.exists
    assert run.newest_checkpoint()[0] == 1
    assert not run.lease("trainer").exists()


@pytest.mark.parametrize("is_made_in_the_block", [True, False])
def test_a_run_without_run_json_for_a_moment_is_kept(run, is_made_in_the_block):
    """As an editor or a sync tool may move it, or a person."""
    (run.path / "lease").mkdir(parents=True)
    if not is_made_in_the_block:
        run.write_settings("run.json", {})
    with pytest.raises(RuntimeError), run.held("trainer"):
        run.write_settings("run.json", {})
        checkpoint(run, "step-00000000", 0)
        state(run, 8)
        (run.path / "run.json").rename(run.path / "run.json.bak")
        raise RuntimeError
    assert run.newest_state() == (8, run.state(8).path)
    (run.path / "run.json.bak").rename(run.path / "run.json")
    with run.held("trainer"):
        pass


@pytest.mark.parametrize("part", ["checkpoints/step-00000008", "state/step-00000008",
                                  "generations/0001"])  # fmt: skip
def test_what_lacks_its_run_json_is_no_beginning_of_a_run(run, part):
    (run.path / "lease").mkdir(parents=True)
    (run.path / part).mkdir(parents=True)
    with pytest.raises(Mismatch) as caught, run.held("trainer"):
        pytest.fail("held")
    assert caught.value.what == f"{run.path}: exists and is not a run folder (it contains {part})"
    run.event("trainer", "run created")
    with pytest.raises(Mismatch) as caught, run.held("trainer"):
        pytest.fail("held")
    assert caught.value.what == (
        f"{run.path}/run.json: no such file, but {run.path} contains the records of a run"
    )
    assert caught.value.hint == "restore run.json, or choose another name with -o"
    assert (run.path / part).exists()


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_was_not_made_leaves_nothing(run, failure):
    with pytest.raises(failure), run.held("trainer"):
        state(run, 0)
        checkpoint(run, "step-00000000", 0)
        atomic.point(run.latest, run.checkpoint(0).path)
        raise failure
    assert not run.path.exists()


def test_what_a_kill_left_of_a_run_can_be_taken_up(run):
    checkpoint(run, "step-00000000", 0)
    (run.path / "lease").mkdir()
    with run.held("trainer"):
        run.write_settings("run.json", {})
    assert run.newest_checkpoint()[0] == 0


def test_a_folder_of_something_else_is_refused(run):
    checkpoint(run, "step-00000000", 0)
    (run.path / "thesis.tex").write_text("years of work")
    with pytest.raises(Mismatch) as caught, run.held("trainer"):
        pytest.fail("held")
    assert caught.value.what == (
        f"{run.path}: exists and is not a run folder (it contains thesis.tex)"
    )
    assert caught.value.hint == "choose another name with -o"
    assert run.newest_checkpoint()[0] == 0


def test_folders_of_somebody_else_survive_a_run_that_was_not_made(run):
    (run.path / "checkpoints").mkdir(parents=True)
    (run.path / "checkpoints" / "my-model.bin").write_text("weeks of training")
    with pytest.raises((RuntimeError, Mismatch)), run.held("trainer"):
        raise RuntimeError
    assert (run.path / "checkpoints" / "my-model.bin").exists()


def test_two_roles_hold_a_run_at_once_and_one_role_only_once(run):
    with run.held("supervisor"), run.held("trainer"):
        run.write_settings("run.json", {})
        with pytest.raises(Busy) as caught, run.held("trainer"):
            pytest.fail("two trainers at once")
    assert caught.value.what.startswith(f"the run {run.path} is being written by process ")


def begun(run, folder):
    """A run over a small dataset; returns the paths of the dataset's parts."""
    folder.mkdir()
    paths = {part: folder / part for part in ("corpus", "queries", "qrels")}
    for part, path in paths.items():
        path.write_text(f"{part} as the run began\n")
    run.path.mkdir()
    data = {**{part: str(path) for part, path in paths.items()}, "split": "train"}
    fingerprint = Dataset(**paths).fingerprint(*paths)
    run.write_settings("run.json", {"data": data, "identity": {"dataset": fingerprint}})
    return paths


def test_a_run_knows_its_dataset(run, tmp_path):
    paths = begun(run, tmp_path / "data")
    assert run.dataset() == Dataset(**paths, split="train")


@pytest.mark.parametrize("part", ["corpus", "queries", "qrels"])
def test_a_run_refuses_data_that_has_changed(run, tmp_path, part):
    paths = begun(run, tmp_path / "data")
    paths[part].write_text("something else\n")
    with pytest.raises(Mismatch) as caught:
        run.dataset()
    assert caught.value.what == (
        f"{run.path}: its data has changed since the run began: "
        f"{paths['corpus']}, {paths['queries']}, {paths['qrels']}"
    )


# ---------------------------------------------------------------- ledgers


def test_events_are_appended(run):
    run.event("trainer", "checkpoint", step=5)
    run.event("inferencer", "refresh", generation=1)
    first, second = read_ledger(run.path / "events.jsonl")
    assert first.pop("time") <= second.pop("time")
    assert first == {"who": "trainer", "what": "checkpoint", "step": 5}
    assert second == {"who": "inferencer", "what": "refresh", "generation": 1}


def test_a_ledger_is_read_without_a_last_line_cut_short(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_ledger(path) == []
    path.write_text('{"step": 1}\n\n{"step": 2}\n{"step": 3')
    assert read_ledger(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\n{"step": 2}')
    assert read_ledger(path) == [{"step": 1}], "a line without its end may be cut at any place"


def test_a_ledger_is_cut_to_a_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    cut_ledger(path, 10)
    assert not path.exists()
    path.write_text('{"step": 1}\n{"step": 12}\n{"step": 10}\n{"step": 11}\n{"st')
    cut_ledger(path, 10)
    assert path.read_text() == '{"step": 1}\n{"step": 10}\n'
    cut_ledger(path, 0)
    assert path.read_text() == ""


def test_what_a_killed_clean_up_left_is_swept(tmp_path):
    run = RunFolder(tmp_path / "run")
    (run.path / ".checkpoints.removed").mkdir(parents=True)
    with run.held("trainer"):
        assert not (run.path / ".checkpoints.removed").exists()
    assert not run.path.exists()


# ---------------------------------------------------------------- what is damaged


def test_a_newest_checkpoint_that_is_damaged_is_not_passed_over(run):
    whole = checkpoint(run, "step-00000100", 100)
    (run.checkpoints / "notes").mkdir()
    assert run.checked_checkpoint() == (100, whole)
    (checkpoint(run, "step-00000200", 200) / "ance.json").write_text('{"training_st')
    with pytest.raises(BadInput, match=r"step-00000200/ance.json: not valid JSON") as caught:
        run.checked_checkpoint()
    assert caught.value.hint.endswith("or remove it to continue from the checkpoint before it")
    (run.checkpoints / "step-00000200" / "ance.json").unlink()
    with pytest.raises(BadInput, match=r"step-00000200/ance.json: no such file"):
        run.checked_checkpoint()
    assert run.newest_checkpoint() == (100, whole), "status shows what there is"


def test_a_newest_state_that_is_damaged_is_not_passed_over(run):
    (run.states / "step-00000200").mkdir(parents=True)
    (run.states / "step-00000200" / "state.json").write_text('{"step": ')
    with pytest.raises(BadInput, match=r"step-00000200/state.json: not valid JSON"):
        run.checked_state()


def test_a_step_that_was_edited_is_not_passed_over(run):
    folder = checkpoint(run, "step-00000200", 200)
    (folder / "ance.json").write_text(json.dumps(with_hash({"training_step": 200})))
    assert run.checked_checkpoint() == (200, folder)
    facts = with_hash({"training_step": 200}) | {"training_step": 0}
    (folder / "ance.json").write_text(json.dumps(facts))
    with pytest.raises(BadInput, match=r"ance.json: was changed after ance wrote it"):
        run.checked_checkpoint()
