"""The layout itself: copied, checked, and joined with others."""

import json

import pytest

from ance_cli.call import SkippedLines
from ance_cli.errors import BadInput
from ance_cli.formats.dataset import locate, read_corpus, read_qrels, read_queries
from tests.world import make_dataset


@pytest.fixture
def mine(tmp_path):
    return make_dataset(tmp_path / "mine")


def test_a_copy_is_the_same_dataset(imported, mine):
    found = imported("beir:mine")
    for split in ("train", "dev"):
        old, new = locate(mine, split), locate(found.folder, split)
        assert list(read_corpus(new.corpus)) == list(read_corpus(old.corpus))
        assert read_queries(new.queries) == read_queries(old.queries)
        assert read_qrels(new.qrels) == read_qrels(old.qrels)
    assert found.summary["passages"] == 64 and found.summary["labels"] == {"train": 72, "dev": 24}


BROKEN = [
    ("corpus.jsonl", lambda lines: [*lines, '{"_id": "d3", "text": "another"}'],
     "mine/corpus.jsonl:65: document id 'd3' was used before with another text"),
    ("corpus.jsonl", lambda lines: [*lines, '{"_id": "x", "text": '],
     "mine/corpus.jsonl:65: not valid JSON"),
    ("corpus.jsonl", lambda lines: [*lines, '{"_id": "x", "text": 3}'],
     "mine/corpus.jsonl:65: 'text' should be a string"),
    ("queries.jsonl", lambda lines: [*lines, '{"_id": "q3", "text": "another"}'],
     "mine/queries.jsonl:33: query id 'q3' was used before with another text"),
    ("queries.jsonl", lambda lines: [*lines, '{"_id": "q99", "text": " "}'],
     "mine/queries.jsonl:33: query 'q99' is empty"),
    ("qrels/dev.tsv", lambda lines: [*lines, "q1\tnowhere\t1"],
     "mine/qrels/dev.tsv:26: document 'nowhere' is not in the corpus"),
    ("qrels/dev.tsv", lambda lines: [*lines, "nobody\td1\t1"],
     "mine/qrels/dev.tsv:26: query 'nobody' is not among the queries"),
    ("qrels/dev.tsv", lambda lines: [*lines, "q24\td24\t0"],
     "mine/qrels/dev.tsv:26: document 'd24' has the label 0 for query 'q24', and 1 on an earlier"),
    ("qrels/dev.tsv", lambda lines: [*lines, "q24\td24"],
     "mine/qrels/dev.tsv:26: expected 3 columns"),
    ("qrels/dev.tsv", lambda lines: [*lines, "q24\td24\tyes"],
     "mine/qrels/dev.tsv:26: the label should be a whole number, found 'yes'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "words"), BROKEN)
def test_a_broken_line_is_named_and_nothing_is_left(imported, mine, name, change, words):
    path = mine / name
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    with pytest.raises(BadInput) as caught:
        imported("mine")
    assert words in caught.value.what
    assert not list(mine.parent.glob("*out*"))
    skipped = SkippedLines()
    found = imported("mine", skipped=skipped)
    assert skipped.count == 1
    assert (found.summary["passages"], found.summary["queries"]) == (64, 32)
    assert found.summary["labels"] == {"train": 72, "dev": 24}


def test_the_same_line_twice_is_written_once(imported, mine):
    path = mine / "corpus.jsonl"
    path.write_text(path.read_text() * 2)
    found = imported("mine")
    assert found.summary["passages"] == 64 and found.summary["repeated"] == 64


def test_queries_keep_their_metadata(imported, mine):
    record = {"_id": "q77", "text": "x", "metadata": {"answers": ["y"]}}
    with open(mine / "queries.jsonl", "a") as handle:
        handle.write(json.dumps(record) + "\n")
    assert imported("mine").records[-1] == record


def test_a_split_of_any_name(imported, mine):
    (mine / "qrels" / "dev.tsv").rename(mine / "qrels" / "graded_all.tsv")
    assert len(imported("mine").labels("graded_all")) == 24


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["adi", "squad"])
def test_published_collections(imported, test_data, name):
    found = imported(test_data / name)
    old = locate(test_data / name, "train")
    assert found.corpus == {p.doc_id: (p.title, p.text) for p in read_corpus(old.corpus)}
    assert found.queries == read_queries(old.queries)
    assert read_qrels(found.folder / "qrels" / "train.tsv") == read_qrels(old.qrels)
