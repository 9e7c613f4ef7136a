"""A dataset folder on the hub: its files, and the card by which `datasets` finds them."""

import json

import pytest

from ance_cli.errors import BadInput
from ance_cli.hub.push_dataset import dataset_card, is_dataset, push_dataset
from tests.hub_server import running_hub
from tests.world import Ance, tree, write_jsonl

NEGATIVES = [{"query_id": "q0", "positive_id": "d0", "negative_ids": ["d1", "d2"]}]


@pytest.fixture
def folder(dataset):
    write_jsonl(dataset / "negatives" / "train.jsonl", NEGATIVES)
    (dataset / "notes.txt").write_text("never")
    (dataset / "manifest.json").write_text("{}")
    return dataset


def test_a_dataset_is_pushed_as_one_and_loads_from_there(folder, tmp_path, monkeypatch):
    ance = Ance(tmp_path)
    with running_hub() as hub:
        words = ["checkpoint", "push", "data", "me/small", "--json"]
        found = json.loads(ance(*words, **hub.environment, HF_HOME=str(tmp_path / "hub")).stdout)
    assert hub.types == {"me/small": "dataset"} and hub.private == {"me/small": True}
    assert hub.messages == ["Dataset data, by ance"]
    assert found["kind"] == "dataset on the hub" and found["visibility"] == "private"
    assert found["left_out"] == ["manifest.json", "notes.txt"]
    (sent,) = hub.models["me/small"]
    expected = {name: data for name, data in tree(folder).items() if name not in found["left_out"]}
    made = {"README.md", "qrels/dev.jsonl", "qrels/train.jsonl"}
    assert {name: data for name, data in sent.items() if name not in made} == expected
    assert made < set(sent)

    datasets = pytest.importorskip("datasets")
    there = tmp_path / "there"
    for name, data in sent.items():
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_bytes(data)

    def load(config, split):
        cache = str(tmp_path / "cache")
        return datasets.load_dataset(str(there), config, split=split, cache_dir=cache).to_list()

    assert load("corpus", "corpus")[0]["_id"] == "d0" and len(load("queries", "queries")) == 32
    assert load("qrels", "dev")[0] == {"query-id": "q24", "corpus-id": "d24", "score": 1}
    assert len(load("qrels", "train")) == 72 and load("negatives", "train") == NEGATIVES


def test_a_dry_run_lists_the_files_and_a_card_of_its_own_goes_first(folder, inside):
    words = ["checkpoint", "push", "data", "me/small", "--public", "--dry-run", "--json"]
    found = json.loads(inside(*words).stdout)
    assert found["dry_run"] and found["visibility"] == "public"
    assert found["files"] == ["corpus.jsonl", "queries.jsonl", "qrels/dev.tsv", "qrels/train.tsv",
                              "negatives/train.jsonl", "qrels/dev.jsonl", "qrels/train.jsonl",
                              "README.md"]  # fmt: skip
    size = found["total_bytes"]["files"]
    (folder / "README.md").write_text("mine")
    card = dataset_card(found["files"][:-1], "me/small")
    shorter = json.loads(inside(*words).stdout)["total_bytes"]["files"]
    assert size - shorter == len(card) - len("mine")


def test_splits_have_names_that_datasets_takes():
    card = dataset_card(["corpus.jsonl.gz", "qrels/dev.small.jsonl", "qrels/dl-19.jsonl"], "me/x")
    assert "- split: dl_19\n    path: qrels/dl-19.jsonl" in card
    assert "| `qrels` | dev.small, dl_19 |" in card and "queries" not in card


def test_a_link_that_leads_out_is_not_followed(folder, tmp_path):
    (tmp_path / "secret.tsv").write_text("secret")
    (folder / "qrels" / "test.tsv").symlink_to(tmp_path / "secret.tsv")
    with pytest.raises(BadInput, match="outside of the folder"):
        push_dataset(folder, "me/small")


def test_labels_that_cannot_be_read_are_not_pushed(folder):
    (folder / "qrels" / "test.tsv").write_text("q0\td0\tone\n")
    with pytest.raises(BadInput, match="test.tsv:1"):
        push_dataset(folder, "me/small")


def test_what_a_dataset_is(folder, checkpoint, tmp_path):
    assert is_dataset(folder) and not is_dataset(checkpoint) and not is_dataset(tmp_path)
