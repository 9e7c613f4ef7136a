"""TREC's topics, qrels, runs and documents."""

from pathlib import Path

import pytest

from ance_cli.call import SkippedLines
from ance_cli.errors import BadInput, UsageProblem

DOCS = ["d1\tGout\tCaused by crystals.", "d2\tCramp\tA contraction."]
TOPICS = """<top>
<num> Number: 301
<title> causes of gout

<desc> Description:
What causes gout?
</top>

<top>
<num>302</num>
<title>Topic: cramps
in legs</title>
<narr> Narrative: ...
</top>"""


def test_topics_qrels_run_and_documents(imported, write):
    write("docs.tsv", *DOCS)
    write("topics.test.txt", TOPICS)
    write("qrels.test.txt", "301 0 d1 2", "302 Q0 d1 -2", "302 0 d2 1")
    write("bm25.test.txt", "301 Q0 d1 1 12.5 bm25", "301 Q0 d2 2 1e-1 bm25")
    found = imported(
        "docs.tsv", "topics.test.txt", "qrels.test.txt", "bm25.test.txt", format="trec"
    )
    assert found.corpus == {
        "d1": ("Gout", "Caused by crystals."),
        "d2": ("Cramp", "A contraction."),
    }
    assert found.queries == {"301": "causes of gout", "302": "cramps in legs"}
    assert found.labels("test") == [("301", "d1", "2"), ("302", "d1", "-2"), ("302", "d2", "1")]
    run = (found.folder / "runs" / "test.trec").read_text().splitlines()
    assert run == ["301 Q0 d1 1 12.500000 imported", "301 Q0 d2 2 0.100000 imported"]


def test_documents_and_queries_of_any_name(imported, write):
    write("a", "d1\tCaused by crystals.")
    write("b.json", '{"qid": 1, "text": "causes of gout"}')
    write("c", "1\td1\t1")
    found = imported(corpora=[Path("a")], queries=[Path("b.json")], qrels=[Path("c")])
    assert found.corpus == {"d1": ("", "Caused by crystals.")}
    assert found.queries == {"1": "causes of gout"} and found.labels() == [("1", "d1", "1")]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["<top>", "<num> 1", "</top>"], "topics.txt:1: the topic has no <title>"),
        (["<top>", "<title> x", "</top>"], "topics.txt:1: the topic has no <num>"),
        (["<top>", "<num> 1", "<title> x"], "topics.txt:1: the topic has no </top>"),
        (["<top>", "<num> 1 2", "<title> x", "</top>"], "'1 2' cannot be an id"),
    ],
)
def test_broken_topics(imported, write, lines, words):
    write("topics.txt", *lines)
    with pytest.raises(BadInput, match=words):
        imported("trec:topics.txt")
    skipped = SkippedLines()
    write("topics.txt", *lines, "<top>", "<num> 7", "<title> y", "</top>")
    assert imported("trec:topics.txt", skipped=skipped).queries == {"7": "y"}
    assert skipped.count == 1


def test_a_document_stands_once_in_a_ranking(imported, write):
    write("run.txt", "1 Q0 d1 1 2.0 x", "1 Q0 d1 2 1.0 x")
    write("topics.tsv", "1\tgout")
    with pytest.raises(BadInput, match=r"run.txt:2: document 'd1' occurs twice for query '1'"):
        imported("trec:run.txt", "trec:topics.tsv")


def test_two_label_files_of_one_split_are_not_mixed(imported, write):
    write("qrels.dl19-doc.txt", "1 0 D1 1")
    write("qrels.dl19-passage.txt", "1 0 7 1")
    with pytest.raises(UsageProblem, match="belong to the same split 'dl19'"):
        imported("qrels.dl19-doc.txt", "qrels.dl19-passage.txt")


@pytest.mark.realdata
def test_trec_dl_2019(imported, test_data):
    folder = test_data / "trec_dl"
    found = imported(folder / "topics.dl19-passage.txt", folder / "qrels.dl19-passage.txt")
    assert len(found.queries) == 43 and found.summary["labels"] == {"dl19": 9260}
    assert {label[0] for label in found.labels("dl19")} == set(found.queries)
    # the labels of the documents judge other queries too
    found = imported(folder / "qrels.dl19-doc.txt", output="documents")
    assert found.summary["labels"] == {"dl19": 16258}
