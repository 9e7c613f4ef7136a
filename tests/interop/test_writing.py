"""What a failed write leaves, and how labels and rows meet."""

import errno
import json
import os

import pytest

from ance_cli.errors import BadInput, ResourceExhausted, UsageProblem
from ance_cli.interop.writing import DatasetWriter
from tests.world import make_dataset, tree


def test_a_full_disk_leaves_nothing_and_keeps_the_old_dataset(imported, tmp_path, monkeypatch):
    make_dataset(tmp_path / "mine")
    imported("mine", output="old")
    before = tree(tmp_path)

    def full(writer):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(DatasetWriter, "finish", full)
    with pytest.raises(ResourceExhausted, match="new: no room left on the disk"):
        imported("mine", output="new")
    assert tree(tmp_path) == before
    with pytest.raises(ResourceExhausted):
        imported("mine", output="old", force=True)
    assert tree(tmp_path) == before


def test_a_positive_of_a_row_may_not_be_labelled_as_none(imported, write):
    row = {"query_id": "q1", "query_text": "x", "positive_document_ids": ["d1"],
           "negative_document_ids": ["d2"]}  # fmt: skip
    write("corpus.jsonl", '{"_id": "d1", "text": "a"}', '{"_id": "d2", "text": "b"}')
    write("train.jsonl", json.dumps(row))
    write("qrels.train.tsv", "q1\t0\td1\t0")
    words = r"qrels.train.tsv:1: document 'd1' has the label 0 for query 'q1', and 1 on an earlier"
    with pytest.raises(BadInput, match=words):
        imported("corpus.jsonl", "train.jsonl", "qrels.train.tsv")


def test_the_output_is_no_source(imported, write):
    path = write("data/rows", '{"_id": "d1", "text": "a"}')
    with pytest.raises(UsageProblem, match="which this command reads"):
        imported(corpora=[path], output="data")
