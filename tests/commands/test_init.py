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
        "cd data", "ance bm25-negatives",
        "ance train-segment bm25.jsonl --steps 1000 --ckpt ENCODER",
        "ance loop --refresh-every 10000",
    ]  # fmt: skip


def test_every_default_in_it_is_the_programs(inside, dataset):
    inside("init", "data")
    text = text_of(inside)
    assert max(map(len, text.splitlines())) <= 100
    offered = tomllib.loads(re.sub(r"^#(?=[a-z0-9-]+ = )", "", text, flags=re.M))
    count = 0
    for table, settings in offered.items():
        if table == "all":
            continue
        flags = {each.flags[0][2:]: each.default for each in COMMANDS[table].settings if each.flags}
        for key, value in settings.items():
            if f"#{key} = " in text and not (key == "preset" and flags[key] is None):
                assert value == flags[key], (table, key)
                count += 1
    assert count > 30 and offered["loop"]["refresh-every"] == 10_000
    assert offered["mine"]["depth"] == 200 and offered["bm25-negatives"]["depth"] == 100


def test_every_offered_setting_is_accepted(inside, dataset):
    """Every commented line can be used as it is."""
    inside("init", "data")
    text = text_of(inside)
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
    assert json.loads(found.stdout)["last_step"] == 100_000
    inside("encode", "--ckpt", checkpoint)
    assert (inside.cwd / "emb" / "manifest.json").exists()
    inside("mine", "--ckpt", checkpoint, "-o", "ann.jsonl", "--depth", 20)
    assert len(jsonl(inside.cwd / "ann.jsonl")) == 48


def test_a_plain_encoder_starts_the_warm_up(inside, dataset, backbone):
    inside("init", "data", "--ckpt", backbone)
    settings = tomllib.loads(text_of(inside))
    assert settings["train-segment"] == {"ckpt": str(backbone), "output": "runs/warmup"}
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
