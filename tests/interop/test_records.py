"""Splits said by names, ids made of content, and what the head of a file shows."""

import pytest

from ance_cli.errors import BadInput
from ance_cli.interop.records import Head, content_id, split_in


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("queries.train.tsv", "train"),
        ("qrels.dev.small.tsv", "dev.small"),
        ("qidpidtriples.train.full.2.tsv.gz", "train"),
        ("triples.train.small.tsv", "train"),
        ("msmarco-doctrain-qrels.tsv.gz", "train"),
        ("msmarco-docdev-queries.tsv", "dev"),
        ("msmarco-test2019-queries.tsv.gz", "dl19"),
        ("2019qrels-pass.txt", "dl19"),
        ("2020qrels-docs.txt", "dl20"),
        ("qrels.dl19-passage.txt", "dl19"),
        ("biencoder-nq-train.json", "train"),
        ("nq-test.qa.csv", "test"),
        ("msmarco-passage.train.judged", "train"),
        ("msmarco-passage.trec-dl-2019", "dl19"),
        ("train-00000-of-00004.jsonl", "train"),
        ("restrained.jsonl", None),
        ("collection.tsv", None),
        ("devil.jsonl", None),
    ],
)
def test_the_split_that_a_name_says(name, split):
    assert split_in(name) == split


def test_a_content_id_is_the_texts_alone():
    assert content_id("gout") == content_id("gout") != content_id("Gout")
    assert content_id("a", "b") != content_id("ab")
    assert len(content_id("")) == 16 and content_id("x").isalnum()


def test_a_head_reads_no_more_than_it_shows(write):
    path = write("rows.jsonl.gz", '{"query": "a", "pos": ["b"]}', "", "second\r", "third", "fourth")
    head = Head(path)
    assert head.lines == ['{"query": "a", "pos": ["b"]}', "second", "third"]
    assert head.fields() == {"query", "pos"} and head.columns == [head.first]


def test_the_head_of_an_empty_file_is_empty(write):
    head = Head(write("empty.tsv"))
    assert head.lines == [] and head.first == "" and head.columns == [""]


@pytest.mark.parametrize("name", ["rows.tsv.gz", "rows.tsv.zst"])
@pytest.mark.parametrize("end", [b"\xff" * 40, b""], ids=["junk", "cut"])
def test_a_file_that_is_damaged_at_its_head_is_refused(write, name, end):
    path = write(name, "a\tb")
    path.write_bytes(path.read_bytes()[: 10 if name.endswith("gz") else 5] + end)
    with pytest.raises(BadInput, match=f"{name}:1: the compressed file is cut short or damaged"):
        print(Head(path).first)
