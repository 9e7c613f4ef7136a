"""Splits said by names, ids made of content, and what the head of a file shows."""

import pytest

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


def test_the_head_of_a_damaged_or_empty_file_is_empty(write):
    path = write("rows.tsv.gz", "a\tb")
    path.write_bytes(path.read_bytes()[:12])
    assert Head(path).first == "" and Head(path).columns == [""]
    assert Head(write("empty.tsv")).lines == []
