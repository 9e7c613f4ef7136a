"""Every recipe of training through the binary, on the small dataset."""

import json
import shlex

import numpy as np
import pytest

from ance_cli.config.presets import PRESETS
from tests.world import Ance, AnceInside, jsonl, make_dataset

STEPS = ["--steps", 4, "--batch-size", 8, "--lr", "1e-3", "--dropout", "0", "--log-every", 1,
         "--dtype", "fp32"]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory, checkpoint):
    """A dataset, a checkpoint and negatives, some of them with a teacher's scores."""
    folder = tmp_path_factory.mktemp("training")
    make_dataset(folder / "data")
    program = AnceInside(folder)
    program("bm25-negatives", "--data", "data", "--engine", "bm25s", "--depth", 20,
            "--negatives", 6, "-o", "bm25.jsonl")  # fmt: skip
    taught = []
    for number, record in enumerate(jsonl(folder / "bm25.jsonl")):
        count = len(record["negative_ids"])
        record["teacher_positive_score"] = 4.0 if number % 5 else None
        record["teacher_scores"] = [-1.0 - place if place % 3 else None for place in range(count)]
        taught.append(json.dumps(record) + "\n")
    (folder / "taught.jsonl").write_text("".join(taught))
    program.checkpoint = checkpoint
    return program


def train(world, name, *flags, negatives="bm25.jsonl", code=0, steps=STEPS):
    named = [negatives] if negatives else []
    return world("train-segment", *named, "--data", "data", "--ckpt", world.checkpoint, *steps,
                 *flags, "-o", f"runs/{name}", code=code)  # fmt: skip


def losses(world, name):
    return [line["loss"] for line in jsonl(world.cwd / "runs" / name / "metrics.jsonl")]


RECIPES = {
    "pairwise": ["--loss", "pairwise", "--negatives-per-positive", 3],
    "bce": ["--loss", "bce", "--scale", "0.1"],
    "hinge": ["--loss", "hinge", "--margin", "2", "--negatives-per-positive", 2],
    "n": ["--negatives-per-positive", 4],
    "in-batch": ["--in-batch", "all"],
    "hardest": ["--in-batch", "hardest"],
    "random": ["--in-batch", "random", "--loss", "hinge"],
    "cosine": ["--schedule", "cosine", "--warmup-steps", 2],
    "lamb": ["--optimizer", "lamb"],
    "8-bit": ["--optimizer", "adamw-8bit"],
    "layers": ["--layer-decay", "0.9", "--freeze-layers", 1, "--gradient-checkpointing"],
    "two": ["--towers", "two"],
    "matryoshka": ["--matryoshka", "8,16", "--in-batch", "all", "--in-batch-margin", "-0.5"],
    "maxp": ["--segmentation", "special", "--passage-length", 8, "--max-segments", 3],
    "sliced": ["--segmentation", "slice", "--passage-length", 8, "--max-segments", 3],
    **{preset: ["--preset", preset, "--query-length", 12, "--passage-length", 24]
       for preset in PRESETS},
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name == "8-bit")) for name in RECIPES]
)
def test_a_recipe_runs_and_leaves_a_checkpoint_that_encodes(world, name):
    train(world, name, *RECIPES[name])
    assert np.isfinite(losses(world, name)).all() and len(losses(world, name)) == 4
    identity = json.loads((world.cwd / "runs" / name / "run.json").read_text())["identity"]
    assert identity["total_steps"] == 4
    if name in ("two", "sliced"):
        world("encode", "--ckpt", f"runs/{name}/latest", "--data", "data", "-o", f"emb-{name}")
        world("mine", "--ckpt", f"runs/{name}/latest", "--data", "data", "--embeddings",
              f"emb-{name}", "--depth", 6, "--negatives", 2, "-o", f"{name}.jsonl")  # fmt: skip


def test_an_optimizer_that_is_not_installed(world, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = train(world, "missing", "--optimizer", "adamw-8bit", code=2)
    assert "--optimizer adamw-8bit needs torchao" in found.stderr
    assert "pip install 'ance-cli[8bit]'" in found.stderr
    assert not (world.cwd / "runs" / "missing").exists()


def test_a_fresh_head_has_the_dimensions_and_the_similarity_asked_for(world, backbone):
    world("train-segment", "bm25.jsonl", "--data", "data", "--ckpt", backbone, *STEPS, "--dim", 16,
          "--similarity", "cosine", "--query-length", 12, "--passage-length", 24,
          "-o", "runs/fresh")  # fmt: skip
    settings = json.loads((world.cwd / "runs/fresh/latest/ance.json").read_text())
    assert (settings["similarity"], settings["scale"]) == ("cosine", 20.0)
    world("encode", "--ckpt", "runs/fresh/latest", "--data", "data", "-o", "emb-fresh")
    vectors = np.load(world.cwd / "emb-fresh" / "embeddings.npy").astype(np.float32)
    assert vectors.shape == (64, 16)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=2e-3)


def test_the_log_goes_to_a_tracker_too(world):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(world, "tracked", "--track", "tensorboard")
    events = EventAccumulator(str(world.cwd / "runs" / "tracked" / "tensorboard")).Reload()
    drawn = [event.value for event in events.Scalars("loss")]
    assert drawn == pytest.approx(losses(world, "tracked"), rel=1e-5)


@pytest.mark.long
def test_two_calls_are_one_run_of_wandb_kept_here(world):
    """Offline, the program itself: what `wandb sync` would send has every loss of both segments."""
    pytest.importorskip("wandb")
    here = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
    program = Ance(world.cwd)
    steps = ["--steps", 2, "--batch-size", 8, "--log-every", 1, "--track", "wandb"]
    run = ["--data", "data", "--ckpt", world.checkpoint, "--total-steps", 4, "-o", "runs/wandb"]
    for negatives in ("bm25.jsonl", "taught.jsonl"):
        program("train-segment", negatives, *steps, *run, **here)
    folder = world.cwd / "runs" / "wandb" / "wandb"
    parts = sorted(folder.glob("offline-run-*"))
    run_id = (folder / "id").read_text()
    assert [part.name.rsplit("-", 1)[1] for part in parts] == [run_id, run_id]
    sent = [next(part.glob("run-*.wandb")).read_bytes() for part in parts]
    logged = [str(loss).encode() for loss in losses(world, "wandb")]
    assert len(logged) == 4 and len(set(logged)) == 4
    assert [[loss in part for loss in logged] for part in sent] == [
        [True, True, False, False], [False, False, True, True],
    ]  # fmt: skip


@pytest.mark.long
def test_distillation_learns_from_the_teachers_scores(world):
    plain = train(world, "taught-0", "--distill", "kl", "--distill-weight", "0",
                  negatives="taught.jsonl")  # fmt: skip
    assert "pairs" not in plain.stderr
    for kind in ("margin-mse", "kl"):
        train(world, kind, "--distill", kind, "--negatives-per-positive", 3,
              negatives="taught.jsonl")  # fmt: skip
    train(world, "untaught", negatives="taught.jsonl")
    assert losses(world, "taught-0") == losses(world, "untaught")
    assert len({tuple(losses(world, name)) for name in ("margin-mse", "kl", "untaught")}) == 3


def test_distillation_without_a_teacher_is_refused(world):
    found = train(world, "no-teacher", "--distill", "kl", code=3)
    assert "no negative has a teacher's score" in found.stderr
    assert "hint: mine with --teacher" in found.stderr
    assert not (world.cwd / "runs" / "no-teacher").exists()


@pytest.mark.long
def test_gradient_caching_and_checkpointing_change_nothing_but_memory(world):
    """Without dropout the losses are those of the whole batch, also where a chunk is one row."""
    recipe = ["--in-batch", "all", "--negatives-per-positive", 2]
    train(world, "whole", *recipe)
    for rows in (1, 2, 7):
        train(world, f"cached-{rows}", *recipe, "--grad-cache", rows)
        assert losses(world, f"cached-{rows}") == pytest.approx(losses(world, "whole"), abs=2e-4)
    train(world, "checkpointed", *recipe, "--gradient-checkpointing")
    assert losses(world, "checkpointed") == pytest.approx(losses(world, "whole"), abs=2e-4)
    train(world, "towers-whole", *recipe, "--towers", "two")
    train(world, "towers-cached", *recipe, "--towers", "two", "--grad-cache", 6)
    assert losses(world, "towers-cached") == pytest.approx(losses(world, "towers-whole"), abs=2e-4)


def test_negatives_from_the_batch_alone_need_no_file(world):
    for mode in ("all", "hardest", "random"):
        train(world, f"batch-{mode}", "--in-batch", mode, "--negatives-per-positive", 0,
              negatives=None)  # fmt: skip
        assert len(losses(world, f"batch-{mode}")) == 4
    again = train(world, "batch-all", "--in-batch", "all", "--negatives-per-positive", 0,
                  negatives=None)  # fmt: skip
    assert "up to date" in again.stderr
    found = train(world, "nothing", "--negatives-per-positive", 0, code=2, negatives=None)
    assert "leaves nothing to train against: add --in-batch" in found.stderr
    found = train(world, "margin", "--in-batch-margin", "0.1", code=2)
    assert "--in-batch-margin leaves out documents that --in-batch adds: add --in-batch" in (
        found.stderr
    )
    found = train(world, "unnamed", negatives=None, code=2)
    assert "name the negatives to train on" in found.stderr


def test_widths_that_the_vectors_do_not_have_are_refused(world):
    train(world, "narrow", "--matryoshka", "8")
    for name, widths, words, code in (
        ("narrow", "16", "matryoshka '8' -> '16'", 4),
        ("wide", "64,8", "--matryoshka 64,8: the vectors have only 32 dimensions", 2),
        ("no-narrower", "32", "--matryoshka 32: the vectors have 32 dimensions as they are", 2),
        ("words", "8,x", "--matryoshka '8,x': expected different numbers of dimensions", 2),
        ("twice", "8,8", "--matryoshka '8,8': expected different numbers of dimensions", 2),
        ("none", "0", "--matryoshka '0': expected different numbers of dimensions", 2),
    ):
        assert words in train(world, name, "--matryoshka", widths, code=code).stderr
        assert name == "narrow" or not (world.cwd / "runs" / name).exists()
    found = train(world, "frozen", "--matryoshka", "8", "--freeze-passages", negatives=None, code=2)
    assert "cannot be combined with --in-batch, --distill, --matryoshka" in found.stderr


def test_the_query_tower_alone_on_live_negatives(world):
    """ADORE: the passage tower stays what it was, so vectors made before stay valid."""
    world("encode", "--ckpt", world.checkpoint, "--data", "data", "-o", "emb")
    adore = ["--freeze-passages", "--embeddings", "emb", "--live-depth", 10,
             "--negatives-per-positive", 3]  # fmt: skip
    train(world, "adore", *adore, negatives=None)
    assert np.isfinite(losses(world, "adore")).all() and len(losses(world, "adore")) == 4
    assert "up to date" in train(world, "adore", *adore, negatives=None).stderr
    world("search", "--ckpt", "runs/adore/latest", "--embeddings", "emb", "--data", "data",
          "--split", "dev", "-o", "adore.trec")  # fmt: skip
    found = train(world, "no-vectors", "--freeze-passages", negatives=None, code=2)
    assert "--freeze-passages needs --embeddings" in found.stderr
    world("encode", "--ckpt", world.checkpoint, "--data", "data", "--passage-length", 10,
          "-o", "other")  # fmt: skip
    adore[2] = "other"
    found = train(world, "foreign", *adore, negatives=None, code=4)
    assert "made by another passage encoder" in found.stderr


def test_the_log_says_what_a_step_cost_and_where_its_gradients_were(world):
    train(world, "logged", "--log-every", 2)
    first, second = jsonl(world.cwd / "runs" / "logged" / "metrics.jsonl")
    assert [first["step"], second["step"]] == [2, 4]
    parts = [first[f"grad_norm_{name}"] for name in ("bottom", "middle", "top", "head")]
    assert np.sqrt(np.square(parts).sum()) == pytest.approx(first["grad_norm"], rel=1e-4)
    assert 0 < first["mfu"] < 1
    assert first["negatives_step"] == 0 and "negatives_age" not in second  # of no generation


BASELINES = ["rand", "rand-batch", "nce", "bm25", "bm25+rand", "ance"]


@pytest.mark.parametrize("baseline", BASELINES)
def test_an_arm_of_the_paper_is_one_flag(world, baseline):
    """Same encoder, same budget: what differs is where the negatives come from. The loop's own
    commands are run here one by one."""
    run = f"arms/{baseline}"
    mined = [] if baseline in ("rand-batch", "nce") else ["--negatives", 4]
    planned = world("loop", "--data", "data", "--ckpt", world.checkpoint, "--baseline", baseline,
                    "--refresh-every", 2, "--segments", 1, "--batch-size", 8, "--lr", "1e-3",
                    "--depth", 6, *mined, "-o", run, "--dry-run", "--json")  # fmt: skip
    prepare, refresh, train = [
        shlex.split(line)[1:] for line in json.loads(planned.stdout)["commands"]
    ]
    for command in (prepare, refresh, train, refresh):
        world(*command)
    folder = world.cwd / run
    negatives = jsonl(folder / "generations" / "0001" / "negatives.jsonl")
    expected = {"rand": {"random"}, "rand-batch": set(), "nce": set(), "bm25": {"bm25"},
                "bm25+rand": {"bm25", "random"}, "ance": {"ann"}}[baseline]  # fmt: skip
    assert {source for record in negatives for source in record["sources"]} == expected
    assert (folder / "checkpoints" / "step-00000002").exists()
    measured = json.loads((folder / "generations" / "0002" / "dev.json").read_text())
    assert "RR@10" in measured


@pytest.mark.long
def test_the_loop_runs_an_arm_on_several_datasets(world):
    """`--data` repeated: merged once, ids by dataset, and no negative from another dataset."""
    make_dataset(world.cwd / "other")
    loop = ["loop", "--data", "data:0.75", "--data", "other:0.25", "--ckpt", world.checkpoint,
            "--baseline", "rand", "--refresh-every", 2, "--segments", 1, "--batch-size", 8,
            "--negatives", 4, "-o", "runs/both"]  # fmt: skip
    Ance(world.cwd)(*loop)
    negatives = jsonl(world.cwd / "runs/both/generations/0001/negatives.jsonl")
    owners = [{name.split("/")[0] for name in (r["query_id"], r["positive_id"], *r["negative_ids"])}
              for r in negatives]  # fmt: skip
    assert {frozenset(names) for names in owners} == {frozenset({"data"}), frozenset({"other"})}
    assert "up to date" in Ance(world.cwd)(*loop).stderr
    identity = json.loads((world.cwd / "runs/both/run.json").read_text())["identity"]
    assert identity["shares"] == {"data": 0.75, "other": 0.25}
    shares = world.cwd / "runs/both.data/datasets.json"
    shares.write_text(shares.read_text().replace("0.75", "0.5"))
    found = world("refresh", "runs/both", code=4)
    assert "its data has changed since the run began" in found.stderr


def test_two_segments_of_one_run_on_other_negatives(world):
    """bm25 -> ance: the optimizer and the schedule go on."""
    train(world, "sequence", "--total-steps", 8)
    world("refresh", "runs/sequence", "--depth", 10, "--negatives", 4)
    world("train-segment", "runs/sequence/generations/0001/negatives.jsonl", "--steps", 4,
          "--log-every", 1, "-o", "runs/sequence")  # fmt: skip
    lines = jsonl(world.cwd / "runs" / "sequence" / "metrics.jsonl")
    assert [line["generation"] for line in lines] == [None] * 4 + [1] * 4
    assert lines[-1]["lr"] == pytest.approx(1e-3 / 8)
