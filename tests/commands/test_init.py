"""`ance init`: the file it writes parses, says the program's own defaults, and runs."""

import json
import re
import tomllib

import pytest

from ance_cli.cli.command import COMMANDS
from tests.world import jsonl


def text_of(ance):
    return (ance.cwd / "data" / "ance.toml").read_text()


def test_init_counts_the_data(inside, dataset):
    found = json.loads(inside("init", "data", "--json").stdout)
    assert (found["documents"], found["queries"]) == (64, 32)
    assert found["splits"] == {
        "dev": {"queries": 8, "labels": 24, "positives": 16},
        "train": {"queries": 24, "labels": 72, "positives": 48},
    }
    assert found["output"] == "data/ance.toml"
    assert found["next"] == [
        "cd data", "ance bm25-negatives", "ance train-segment bm25.jsonl --ckpt ENCODER",
        "ance loop",
    ]  # fmt: skip


@pytest.mark.parametrize("encoder", ["backbone", "checkpoint", None])
def test_the_plan_fits_the_data_and_is_what_the_commands_take(inside, dataset, request, encoder):
    """48 pairs in batches of 4: 12 steps an epoch."""
    path = request.getfixturevalue(encoder) if encoder else None
    ckpt = ["--ckpt", path] if path else []
    made = inside("init", "data", *ckpt, "--json")
    plan = json.loads(made.stdout)["plan"]
    assert (plan["preset"], plan["batch_size"], plan["depth"]) == ("small", 4, 30)
    assert plan["loop"] == {"steps": 36, "refresh_every": 12, "segments": 3, "epochs": 3.0}
    if encoder == "checkpoint":  # its own lengths are the longest, and it needs no warm-up
        assert (plan["query_length"], plan["passage_length"]) == (8, 24) and "warm_up" not in plan
        warned = [line for line in made.stderr.splitlines() if line.startswith("warning:")]
        assert len(warned) == 1 and "passages have more than 24 tokens and are cut" in warned[0]
        assert plan["minutes"].keys() == {"training", "encoding"}
    elif encoder == "backbone":
        assert plan["minutes"].keys() == {"warm_up", "training", "encoding"}
        assert plan["cut"]["queries"] == "0.0%" and "warning:" not in made.stderr
    else:
        assert "minutes" not in plan and plan["based_on"].startswith("words")
    measured = plan["based_on"].startswith("measured in training steps on cpu")
    assert measured == (encoder is not None)
    settings = tomllib.loads(text_of(inside))
    recipe = {name: plan[name.replace("-", "_")]
              for name in ("preset", "batch-size", "query-length", "passage-length")}  # fmt: skip
    warmup, loop = settings["train-segment"], settings["loop"]
    assert recipe.items() <= warmup.items() and recipe.items() <= loop.items()
    assert (warmup["steps"], loop["refresh-every"], loop["segments"]) == (36, 12, 3)
    assert {settings[name]["depth"] for name in ("bm25-negatives", "loop", "mine")} == {30}


def test_a_dry_run_measures_nothing(inside, dataset, checkpoint, monkeypatch):
    monkeypatch.setattr("ance_cli.training.rate.measured_rate", None)
    found = inside("init", "data", "--ckpt", checkpoint, "--dry-run", "--json").stdout
    assert json.loads(found)["plan"]["based_on"].startswith("reckoned, at 50% of the")


@pytest.mark.long
def test_the_proposed_commands_run_to_the_end_without_other_warnings(ance, dataset, backbone):
    """As they are printed, in the program itself."""
    found = json.loads(ance("init", "data", "--ckpt", backbone, "--json").stdout)
    ance.cwd = ance.cwd / "data"
    for command in found["next"][1:]:
        extra = ["--engine", "bm25s", "--negatives", "4"] if "bm25-negatives" in command else []
        warned = re.findall("warning: .*", ance(*command.split()[1:], *extra).stderr)
        assert all("over a tenth of the 64 documents" in line for line in warned), warned
    settings = json.loads((ance.cwd / "runs/ance/latest/ance.json").read_text())
    plan = found["plan"]
    assert settings["training_step"] == plan["loop"]["steps"]
    for name in ("query_length", "passage_length"):
        assert settings[name] == plan[name]


def test_every_default_in_it_is_the_programs(inside, dataset):
    inside("init", "data")
    text = text_of(inside)
    assert max(map(len, text.splitlines())) <= 100
    offered = tomllib.loads(re.sub(r"^#(?=[a-z0-9-]+ = )", "", text, flags=re.M))
    chosen, count = tomllib.loads(text), 0
    for table, settings in offered.items():
        if table == "all":
            continue
        flags = {each.flags[0][2:]: each.default for each in COMMANDS[table].settings if each.flags}
        for key, value in settings.items():
            if key not in chosen[table]:
                assert value == flags[key], (table, key)
                count += 1
    assert count > 15 and offered["loop"]["refresh-every"] == 12


def test_without_a_train_split_nothing_is_proposed(inside, dataset):
    (dataset / "qrels" / "train.tsv").rename(dataset / "qrels" / "test.tsv")
    assert "plan" not in json.loads(inside("init", "data", "--json").stdout)
    assert "#refresh-every = 10000" in text_of(inside)


def test_every_offered_setting_is_accepted(inside, dataset):
    """Every commented line can be used as it is."""
    inside("init", "data")
    text = text_of(inside).replace('data = "."', 'data = "none"')
    (inside.cwd / "ance.toml").write_text(re.sub(r"^#(?=[a-z0-9-]+ = )", "", text, flags=re.M))
    for command in tomllib.loads(text).keys() - {"all"}:
        found = inside(command, "--dry-run", "-o", "x", code=3).stderr
        assert "settings from ance.toml: " in found and "no such" in found


def test_the_commands_need_next_to_no_flags(inside, dataset, checkpoint):
    inside("init", "data", "--ckpt", checkpoint)
    inside.cwd = inside.cwd / "data"
    found = inside("bm25-negatives", "--engine", "bm25s", "--depth", 20)
    assert "settings from ance.toml: data, output" in found.stderr
    assert len(jsonl(inside.cwd / "bm25.jsonl")) == 48
    found = inside("loop", "--refresh-every", 10_000, "--dry-run", "--json")
    assert json.loads(found.stdout)["last_step"] == 30_000
    inside("encode", "--ckpt", checkpoint)
    assert (inside.cwd / "emb" / "manifest.json").exists()
    inside("mine", "--ckpt", checkpoint, "-o", "ann.jsonl", "--depth", 20)
    assert len(jsonl(inside.cwd / "ann.jsonl")) == 48


def test_a_plain_encoder_starts_the_warm_up(inside, dataset, backbone):
    inside("init", "data", "--ckpt", backbone)
    settings = tomllib.loads(text_of(inside))
    assert settings["train-segment"]["ckpt"] == str(backbone)
    assert settings["loop"]["ckpt"] == "runs/warmup/latest"


def test_an_edited_file_is_overwritten_only_with_force(inside, dataset):
    inside("init", "data")
    path = dataset / "ance.toml"
    edited = path.read_text().splitlines()[0] + "\n[all]\n"
    path.write_text(edited)
    found = inside("init", "data", code=4)
    assert "data/ance.toml: exists" in found.stderr and "--force" in found.stderr
    assert path.read_text() == edited
    inside("init", "data", "--force")
    assert "[loop]" in path.read_text()
    assert [each.name for each in dataset.iterdir() if each.name.startswith(".")] == []


def test_a_dry_run_writes_nothing(inside, dataset):
    assert "would make settings data/ance.toml" in inside("init", "data", "--dry-run").stderr
    assert not (dataset / "ance.toml").exists()


@pytest.mark.parametrize(
    ("file", "line", "what"),
    [
        ("corpus.jsonl", '{"_id": "d0", "text": "again"}', "document id 'd0' is also on line"),
        ("queries.jsonl", '{"_id": "q0"}', "no text"),
        ("qrels/dev.tsv", "q0\td99\t1", "document 'd99' is not in the corpus"),
    ],
)
def test_broken_data_is_reported_and_nothing_is_written(inside, dataset, file, line, what):
    with open(dataset / file, "a") as handle:
        handle.write(f"{line}\n")
    assert what in inside("init", "data", code=3).stderr
    assert not (dataset / "ance.toml").exists()


def test_missing_splits_are_reported(inside, dataset):
    (dataset / "qrels" / "train.tsv").unlink()
    found = inside("init", "data", "--quiet").stderr
    assert "data/qrels has no train.tsv: mining and training need --split" in found
    assert "dev.tsv" not in found
    assert "nowhere: no such dataset folder" in inside("init", "nowhere", code=3).stderr
