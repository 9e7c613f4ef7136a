"""What a source is taken for, and what is refused before anything is read."""

import json

import pytest

from ance_cli.errors import BadInput, UsageProblem
from ance_cli.interop import DOCUMENTS, FORMATS, HUGGING_FACE, IR_DATASETS
from ance_cli.interop.recognition import Request, parts_of
from ance_cli.interop.records import Role

FILES = {
    "corpus.jsonl": ('{"_id": "d1", "text": "x"}', Role.DOCUMENTS, "BEIR"),
    "queries.jsonl": ('{"_id": "q1", "text": "x"}', Role.QUERIES, "BEIR"),
    "dev.tsv": ("query-id\tcorpus-id\tscore", Role.LABELS, "BEIR"),
    "collection.tsv": ("1\tx", Role.DOCUMENTS, "MS MARCO passages"),
    "queries.train.tsv": ("1\tx y z", Role.QUERIES, "MS MARCO queries"),
    "qrels.train.tsv": ("1\t0\t1\t1", Role.LABELS, "MS MARCO labels"),
    "2019qrels-pass.txt": ("1 Q0 1 1", Role.LABELS, "MS MARCO labels"),
    "qidpidtriples.train.full.tsv": ("1\t2\t3", Role.TRIPLES, "MS MARCO triples of ids"),
    "triples.train.small.tsv": ("a b\tc d\te f", Role.ROWS, "MS MARCO triples of texts"),
    "run.dev.small.tsv": ("1\t2\t1", Role.RUN, "MS MARCO run"),
    "msmarco-doctrain-top100": ("1 Q0 D1 1 -5.1 Indri", Role.RUN, "run"),
    "msmarco-docs.tsv": ("D1\tu\tt\tb", Role.DOCUMENTS, "MS MARCO documents"),
    "psgs_w100.tsv": ("id\ttext\ttitle", Role.DOCUMENTS, "DPR passages"),
    "nq-test.qa.csv": ("who\t['a']", Role.QUERIES, "DPR questions"),
    "trivia-test.qa.csv": ('who\t"[""a"", \'b\']"', Role.QUERIES, "DPR questions"),
    "biencoder-nq-train.json": ("[", Role.ROWS, "DPR rows"),
    "v1.jsonl": (json.dumps({"query_id": "1", "query": "x", "positive_passages": []}), Role.ROWS,
                 "Tevatron v1"),
    "v2.jsonl": (json.dumps({"query_id": "1", "query_text": "x", "positive_document_ids": []}),
                 Role.ROWS, "Tevatron v2"),
    "wikipedia.jsonl": ('{"docid": "1", "title": "", "text": "x"}', Role.DOCUMENTS, "Tevatron"),
    "flag.jsonl": ('{"query": "x", "pos": ["y"], "neg": []}', Role.ROWS, "FlagEmbedding"),
    "topics.txt": ("<top>", Role.QUERIES, "TREC topics"),
    "topics.dl19-passage.txt": ("1\twhat is x", Role.QUERIES, "topics"),
    "labels.txt": ("301 0 FT911-3 -1", Role.LABELS, "TREC labels"),
    "bm25.txt": ("301 Q0 FT911-3 1 12.5 bm25", Role.RUN, "TREC run"),
    "docs.tsv": ("FT911-3\ttitle\ttext", Role.DOCUMENTS, "documents"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("form", ["{}", "{}.gz", "{}.zst"])
def test_a_file_is_recognised(write, name, form):
    line, role, words = FILES[name]
    path = write(form.format(name), b"\xef\xbb\xbf" + line.encode() + b"\r\n")
    (part,), left_out = parts_of(Request([str(path)]))
    assert part.role is role and part.what.startswith(words) and left_out == []


def test_every_format_on_the_command_line_is_read():
    of_folders = {"auto", IR_DATASETS, HUGGING_FACE, DOCUMENTS}
    assert {*FORMATS} == of_folders | {*Request().recognisers}


def test_parts_come_in_the_order_in_which_they_can_be_checked(write):
    for name in ("qrels.train.tsv", "queries.train.tsv", "collection.tsv", "run.train.tsv"):
        write(f"ms/{name}", FILES.get(name, ("1\t2\t1",))[0])
    sources = [str(write("other.jsonl", FILES["v1.jsonl"][0])), str(write("ms/x.md", "x").parent)]
    parts, left_out = parts_of(Request(sources))
    assert [part.role for part in parts] == sorted(part.role for part in parts)
    assert [part.role for part in parts][:3] == [Role.DOCUMENTS, Role.QUERIES, Role.ROWS]
    assert [path.name for path in left_out] == ["x.md"]


def test_a_file_is_read_once_and_not_its_compressed_copy(write):
    folder = write("ms/collection.tsv.gz", "1\tx").parent
    plain = write("ms/collection.tsv", "1\tx")
    (part,), left_out = parts_of(Request([str(folder), str(plain), f"msmarco-passage:{plain}"]))
    assert part.name == str(plain) and [path.name for path in left_out] == ["collection.tsv.gz"]


def test_a_name_with_a_colon_is_a_path_where_it_exists(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("trec:topics.txt", "1\tx")
    (part,), _ = parts_of(Request(["trec:topics.txt"]))
    assert part.name == "trec:topics.txt"


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        ({}, UsageProblem, "there is nothing to import"),
        ({"sources": ["-"]}, UsageProblem, "ance import cannot read from stdin"),
        ({"sources": ["none.tsv"]}, BadInput, "none.tsv: no such file or folder"),
        ({"sources": ["x:none.tsv"]}, BadInput, "x:none.tsv: no such file or folder"),
        ({"sources": ["odd.txt"]}, BadInput, "odd.txt:1: was not recognised as a known format"),
        ({"sources": ["dpr:rows.jsonl"]}, BadInput, "rows.jsonl:1: was not recognised as dpr"),
        ({"sources": ["some.tar.gz"]}, BadInput, "some.tar.gz: is an archive"),
        ({"sources": ["folder"]}, BadInput, "folder: no file in it was recognised"),
        ({"corpora": ["odd.txt"]}, BadInput, "odd.txt:1: is not a corpus"),
        ({"qrels": ["none.tsv"]}, BadInput, "none.tsv: no such file"),
        ({"sources": ["rows.jsonl"], "splits": ["a", "b"]}, UsageProblem, "its split is unclear"),
        ({"sources": ["rows.jsonl"], "splits": ["a/b"]}, UsageProblem, "cannot be the name of"),
        ({"sources": ["rows.jsonl"], "splits": [".."]}, UsageProblem, "cannot be the name of"),
    ],
)
def test_what_cannot_be_imported(write, tmp_path, monkeypatch, request_, error, words):
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    write("odd.txt", "nothing that anybody knows")
    write("rows.jsonl", FILES["flag.jsonl"][0])
    write("some.tar.gz", "x")
    write("folder/readme.md", "words")
    paths = {key: [Path(name) for name in names] for key, names in request_.items()
             if key in ("corpora", "queries", "qrels")}  # fmt: skip
    with pytest.raises(error) as caught:
        parts_of(Request(**{**request_, **paths}))
    assert words in caught.value.what


def test_an_unnamed_split_is_train_or_the_one_that_is_named(write):
    source = [str(write("rows.jsonl", FILES["flag.jsonl"][0]))]
    assert parts_of(Request(source))[0][0].split == "train"
    assert parts_of(Request(source, splits=["dev"]))[0][0].split == "dev"
