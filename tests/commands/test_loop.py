"""`ance refresh` and `ance loop`: the same artifacts as the chain, whatever is killed when."""

import json
import signal
import time

import pytest

from tests.world import jsonl, make_dataset, tree

LOOP = ["--data", "data", "--refresh-every", 3, "--segments", 2, "--batch-size", 8, "--lr", "1e-3",
        "--depth", 12, "--negatives", 4, "--log-every", 1, "--keep", 9]  # fmt: skip


def shape_of(run):
    """What a finished loop leaves, without times."""
    generations = {}
    for folder in sorted((run / "generations").iterdir()):
        manifest = json.loads((folder / "manifest.json").read_text())
        stats = manifest["stats"]
        generations[folder.name] = {
            "fingerprint": manifest["fingerprint"],
            "step": stats["checkpoint_step"],
            "dev": stats["dev"],
            "negatives": (folder / "negatives.jsonl").read_bytes(),
            "embeddings": (folder / "embeddings" / "embeddings.npy").read_bytes(),
        }
    losses = [(record["step"], record["loss"]) for record in jsonl(run / "metrics.jsonl")]
    checkpoints = {p.name: tree(p) for p in sorted((run / "checkpoints").iterdir())}
    return generations, losses, checkpoints, jsonl(run / "switches.jsonl")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, checkpoint):
    from tests.world import Ance, make_dataset

    folder = tmp_path_factory.mktemp("loop")
    make_dataset(folder / "data")
    program = Ance(folder)
    program("loop", *LOOP, "--ckpt", checkpoint, "-o", "run")
    return program


def test_what_the_loop_leaves(undisturbed):
    run = undisturbed.cwd / "run"
    generations, losses, checkpoints, switches = shape_of(run)
    assert [(name, found["step"]) for name, found in generations.items()] == [
        ("0001", 0), ("0002", 3), ("0003", 6),
    ]  # fmt: skip
    assert [step for step, _ in losses] == [1, 2, 3, 4, 5, 6]
    assert list(checkpoints) == ["step-00000000", "step-00000003", "step-00000006"]
    assert switches == [{"step": 0, "generation": 1}, {"step": 3, "generation": 2}]
    assert json.loads((run / "negatives.json").read_text()) == {
        "generation": 3, "checkpoint_step": 6, "path": "generations/0003",
    }  # fmt: skip
    assert (run / "latest").resolve().name == "step-00000006"
    assert (run / "best").resolve().parent.name == "checkpoints"
    used = [record["generation"] for record in jsonl(run / "metrics.jsonl")]
    assert used == [1, 1, 1, 2, 2, 2]
    assert not list((run / "lease").iterdir())


def test_a_finished_loop_is_up_to_date(undisturbed, checkpoint):
    before = tree(undisturbed.cwd / "run")
    found = undisturbed("loop", *LOOP, "--ckpt", checkpoint, "-o", "run")
    assert "up to date" in found.stderr
    assert "up to date" in undisturbed("refresh", "run").stderr
    assert tree(undisturbed.cwd / "run") == before


def test_other_settings_are_refused(undisturbed, checkpoint):
    found = undisturbed("loop", *LOOP, "--ckpt", checkpoint, "-o", "run", "--lr", "1e-4", code=4)
    assert "run/run.json: was made with other settings: lr 0.001 -> 0.0001" in found.stderr
    found = undisturbed("refresh", "run", "--depth", 13, code=4)
    assert "run/refresh.json: was made with other settings: depth 12 -> 13" in found.stderr
    found = undisturbed("loop", *LOOP, "--ckpt", undisturbed.cwd / "run" / "latest", "-o", "run",
                        code=4)  # fmt: skip
    assert (
        "other settings: it began from a checkpoint (--ckpt) with other weights or prompts\n"
        in found.stderr
    )


@pytest.mark.long
def test_the_chain_by_hand_makes_the_same_negatives(undisturbed):
    """Invariant 2: for the same checkpoint and seed, refresh is what a person would chain."""
    step = "run/checkpoints/step-00000003"
    undisturbed("encode", "--ckpt", step, "--data", "data", "-o", "emb")
    undisturbed("mine", "--ckpt", step, "--data", "data", "--embeddings", "emb", "--depth", 12,
                "--negatives", 4, "-o", "by-hand.jsonl")  # fmt: skip
    loop = undisturbed.cwd / "run" / "generations" / "0002"
    assert (undisturbed.cwd / "by-hand.jsonl").read_bytes() == (
        loop / "negatives.jsonl"
    ).read_bytes()
    made = (undisturbed.cwd / "emb" / "embeddings.npy").read_bytes()
    assert made == (loop / "embeddings" / "embeddings.npy").read_bytes()


@pytest.mark.long
@pytest.mark.parametrize("after", [1.0, 7.0])
def test_killed_and_repeated_it_ends_the_same(ance, dataset, checkpoint, undisturbed, after):
    """SIGKILL of the supervisor: its children end with it, and the same command ends the same."""
    loop = ["loop", *LOOP, "--ckpt", checkpoint, "-o", "run"]
    process = ance.start(*loop, start_new_session=True)
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    process.wait()
    lease = ance.cwd / "run" / "lease"
    until = time.monotonic() + 60
    while lease.exists() and {p.name for p in lease.iterdir()} - {"supervisor"}:
        assert time.monotonic() < until, "a child outlived the supervisor"
        time.sleep(0.05)
    ance(*loop)
    assert shape_of(ance.cwd / "run") == shape_of(undisturbed.cwd / "run")


def test_bad_data_leaves_no_run(inside, dataset, checkpoint):
    corpus = dataset / "corpus.jsonl"
    corpus.write_text(corpus.read_text() + "{broken\n")
    found = inside("train-segment", "x.jsonl", "--data", "data", "--ckpt", checkpoint, "--steps", 2,
                   "-o", "run", code=3)  # fmt: skip
    assert "x.jsonl: no such file" in found.stderr
    inside("loop", "--data", "nowhere", "--ckpt", checkpoint, "-o", "run", code=3)
    assert not (inside.cwd / "run").exists()


@pytest.mark.long
def test_a_run_with_an_index_and_without_dev_labels(ance, dataset, checkpoint):
    (dataset / "qrels" / "dev.tsv").unlink()
    ance("train-segment", "--data", "data", "--ckpt", checkpoint, "--steps", 0, "--total-steps", 9,
         "-o", "run")  # fmt: skip
    found = ance("refresh", "run", "--dev-split", "test", code=3)
    assert "data/qrels/test.tsv: no such split" in found.stderr
    assert not list((ance.cwd / "run" / "generations").iterdir())
    found = ance("refresh", "run", "--depth", 12, "--index-factory", "HNSW8")
    assert "the dataset has no dev split" in found.stderr
    generation = ance.cwd / "run" / "generations" / "0001"
    assert (generation / "index" / "index").exists()
    assert not (generation / "dev.json").exists()
    assert "up to date" in ance("refresh", "run").stderr


def test_refresh_settings_are_checked_before_they_are_kept(inside, dataset, checkpoint):
    inside("train-segment", "--data", "data", "--ckpt", checkpoint, "--steps", 0,
           "--total-steps", 9, "--min-rel", 1, "-o", "run")  # fmt: skip
    for flags, code, words in (
        (["--measures", "FOO@10"], 2, "--measures: cannot read 'FOO@10'"),
        (["--index-factory", "PQ7"], 2, "--factory 'PQ7' is not a faiss factory string"),
        (["--dev-depth", "0"], 2, "--dev-depth must be at least 1"),
        (["--mix", "run"], 2, "--mix 'run'"),
    ):
        assert words in inside("refresh", "run", *flags, code=code).stderr
        assert not (inside.cwd / "run" / "refresh.json").exists()


def test_what_a_stage_would_refuse_later_the_loop_refuses_now(inside, dataset, checkpoint):
    loop = ["loop", *LOOP, "--ckpt", checkpoint, "-o", "run"]
    for flags, words in (
        (["--train-gpus", "0-"], "--gpus '0-'"),
        (["--infer-gpus", "x"], "--gpus 'x'"),
        (["--ray", "local", "--train-gpus", "0-"], "--gpus '0-'"),
        (["--ray", "local", "--infer-gpus", "0"], "--infer-gpus 0 with --ray"),
        (["--ray", "local", "--local-gpus", "0-"], "--local-gpus '0-'"),
        (["--local-gpus", "0"], "--local-gpus 0 without --ray"),
        (["--total-steps", "5"], "--total-steps 5 is less than the 6 steps"),
        (["--negatives-per-positive", "9"], "more than the 4 that --negatives keeps"),
    ):
        assert words in inside(*loop, *flags, code=2).stderr
    assert not (inside.cwd / "run").exists()


def test_usage_errors_of_a_segment_leave_nothing(inside, dataset, checkpoint):
    (inside.cwd / "n.jsonl").write_text(
        json.dumps({"query_id": "q0", "positive_id": "d0", "negative_ids": ["d1"]}) + "\n"
    )
    train = ["train-segment", "n.jsonl", "--data", "data", "--ckpt", checkpoint, "-o", "run"]
    inside(*train, "--steps", 3, "--gpus", 90, code=2)
    inside(*train, "--steps", 5, "--total-steps", 2, code=4)
    assert not (inside.cwd / "run").exists()


def test_a_missing_state_is_not_trained_over(inside, dataset, checkpoint):
    """Without its resume state a run does not quietly begin again from step 0."""
    import shutil

    for name, docs in (("a", ["d1"]), ("b", ["d2"])):
        record = {"query_id": "q0", "positive_id": "d0", "negative_ids": docs}
        (inside.cwd / f"{name}.jsonl").write_text(json.dumps(record) + "\n")
    inside("train-segment", "a.jsonl", "--data", "data", "--ckpt", checkpoint, "--steps", 2,
         "--total-steps", 9, "--batch-size", 2, "-o", "run")  # fmt: skip
    shutil.rmtree(inside.cwd / "run" / "state")
    found = inside("train-segment", "b.jsonl", "--steps", 2, "-o", "run", code=4)
    assert "the resume state of step 2 is missing" in found.stderr
    assert (inside.cwd / "run" / "latest").resolve().name == "step-00000002"


def test_changed_data_under_a_run(inside, dataset, checkpoint):
    inside("train-segment", "--data", "data", "--ckpt", checkpoint, "--steps", 0,
           "--total-steps", 9, "-o", "run")  # fmt: skip
    corpus = dataset / "corpus.jsonl"
    corpus.write_text(corpus.read_text() + json.dumps({"_id": "new", "text": "a new one"}) + "\n")
    assert "its data has changed" in inside("refresh", "run", code=4).stderr


@pytest.mark.slow
def test_a_loop_stops_when_a_general_collection_gets_worse(ance, dataset, spread_checkpoints):
    """The refresh daemon of an asynchronous loop measures it; the best checkpoint is the start."""
    make_dataset(ance.cwd / "general")
    words = ["loop", *LOOP, "--ckpt", spread_checkpoints["dot"], "--mode", "async", "--lr", "1e-1",
             "--segments", 9, "--guard", "general", "--on-guard", "stop", "-o", "run"]  # fmt: skip
    found = json.loads(ance(*words, "--json").stdout)
    last = found["generations"][-1]
    assert last["guard"] < found["generations"][0]["guard"] - 0.02
    reason = f"generation {last['generation']} is "
    assert found["stopped_early"].startswith(reason)
    assert found["stopped_early"].endswith("; the best checkpoint within it is run/best")
    assert found["best"].startswith("run/best, step 0: deploy this one; its RR@10 on dev is the ")
    assert (ance.cwd / "run" / "best").resolve().name == "step-00000000"
    again = json.loads(ance(*words, "--json").stdout)
    assert again["stopped_early"] == found["stopped_early"]
    assert again["generations"] == found["generations"]
    assert reason in ance("status", "run").stdout


def test_threads_are_handed_to_each_child(ance, dataset, checkpoint):
    found = ance("loop", *LOOP, "--ckpt", checkpoint, "-o", "run", "--mode", "sync", "--threads", 3,
                 "--dry-run", "--json")  # fmt: skip
    commands = [line for line in found.stdout.split('"') if line.startswith("ance ")]
    assert {line.split()[1] for line in commands} >= {"train-segment", "refresh"}
    assert all("--threads 3" in line for line in commands)
