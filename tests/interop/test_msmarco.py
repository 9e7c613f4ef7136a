"""MS MARCO's files, as the release has them."""

import pytest

from ance_cli.call import SkippedLines
from ance_cli.errors import BadInput, UsageProblem
from ance_cli.interop.records import content_id

COLLECTION = ["0\tGout is caused by crystals.", "1\tIt is treated with drugs.", "2\tA cramp."]


@pytest.fixture
def passages(write):
    write("ms/collection.tsv", *COLLECTION)
    write("ms/queries.train.tsv", "10\twhat causes gout", "11\tgout treatment")
    write("ms/queries.dev.small.tsv.gz", "12\twhat is a cramp")
    write("ms/qrels.train.tsv", "10\t0\t0\t1", "11\t0\t1\t1")
    write("ms/qrels.dev.small.tsv", "12\t0\t2\t1")


def test_a_folder_of_passages(imported, passages, write):
    write("ms/qidpidtriples.train.full.2.tsv", "10\t0\t2", "11\t1\t2", "10\t0\t1", "10\t0\t2")
    write("ms/run.bm25.dev.small.tsv", "12\t2\t1", "12\t0\t2")
    write("ms/collectionandqueries.tar.gz", "an archive")
    found = imported("msmarco-passage:ms")
    assert found.corpus == {str(n): ("", line.split("\t")[1]) for n, line in enumerate(COLLECTION)}
    assert found.queries == {
        "10": "what causes gout", "11": "gout treatment", "12": "what is a cramp",
    }  # fmt: skip
    assert found.labels() == [("10", "0", "1"), ("11", "1", "1")]
    assert found.labels("dev.small") == [("12", "2", "1")]
    first, second = found.negatives()
    assert (first["query_id"], first["positive_id"]) == ("10", "0")
    assert first["negative_ids"] == ["2", "1"] and first["sources"] == ["triples"] * 2
    assert first["negative_scores"] == first["negative_ranks"] == [None, None]
    assert "teacher_scores" not in first
    assert second["negative_ids"] == ["2"]
    run = (found.folder / "runs" / "dev.small.trec").read_text()
    assert run == "12 Q0 2 1 -1.000000 imported\n12 Q0 0 2 -2.000000 imported\n"
    assert found.summary["labels"] == {"train": 2, "dev.small": 1}
    assert found.summary["negatives"] == {"train": 2}


def test_splits_are_chosen_and_renamed(imported, passages):
    found = imported("ms", splits=["train", "dev=dev.small"])
    assert sorted(path.name for path in (found.folder / "qrels").iterdir()) == [
        "dev.tsv", "train.tsv",
    ]  # fmt: skip
    with pytest.raises(UsageProblem, match="no source has the split 'test'") as caught:
        imported("ms", splits=["test"])
    assert caught.value.hint == "the sources have the splits: dev.small, train"


@pytest.mark.parametrize(
    ("triple", "words"),
    [
        ("10\t1\t2", r"triples.train.tsv:2: '1' is not a positive of query '10' in the labels of"),
        ("10\t0\t9", "triples.train.tsv:2: document '9' is not in the corpus"),
        ("10\t0", "triples.train.tsv:2: expected 3 columns .* found 2"),
    ],
)
def test_triples_that_do_not_fit(imported, passages, write, triple, words):
    write("ms/triples.train.tsv", "10\t0\t2", triple)
    with pytest.raises(BadInput, match=words):
        imported("ms")
    skipped = SkippedLines()
    found = imported("ms", skipped=skipped)
    assert skipped.count == 1
    assert [pair["negative_ids"] for pair in found.negatives()] == [["2"]]


def test_triples_without_labels_bring_their_positives(imported, write):
    write("collection.tsv", *COLLECTION)
    write("queries.train.tsv", "10\twhat causes gout", "11\tgout treatment")
    write("triples.train.tsv", "10\t0\t1", "10\t1\t2", "11\t1\t0")
    found = imported("collection.tsv", "queries.train.tsv", "triples.train.tsv")
    assert found.labels() == [("10", "0", "1"), ("10", "1", "1"), ("11", "1", "1")]
    # d1 is a positive of 10, which only the second line says: it is left out of the first pair
    assert [(p["positive_id"], p["negative_ids"]) for p in found.negatives()] == [
        ("1", ["2"]), ("1", ["0"]),
    ]  # fmt: skip
    assert found.summary["positives_among_negatives"] == 1


def test_triples_of_texts_get_ids_of_their_content(imported, write):
    gout, drugs, cramp = (line.split("\t")[1] for line in COLLECTION)
    write("triples.train.small.tsv.zst", f"what causes gout\t{gout}\t{cramp}",
          f"what causes gout\t{gout}\t{drugs}", f"gout treatment\t{drugs}\t{cramp}")  # fmt: skip
    found = imported("triples.train.small.tsv.zst")
    assert found.corpus == {content_id(text): ("", text) for text in (gout, cramp, drugs)}
    assert list(found.queries.values()) == ["what causes gout", "gout treatment"]
    assert found.labels() == [
        (content_id("what causes gout"), content_id(gout), "1"),
        (content_id("gout treatment"), content_id(drugs), "1"),
    ]
    assert found.negatives()[0]["negative_ids"] == [content_id(cramp), content_id(drugs)]


def test_triples_of_texts_do_not_stand_beside_a_corpus(imported, passages, write):
    write("ms/triples.train.small.tsv", "what causes gout\tIt is gout.\tIt is a cramp.")
    found = imported("ms")
    assert not (found.folder / "negatives").exists() and len(found.corpus) == 3
    with pytest.raises(UsageProblem, match=r"cannot be matched with the corpus ms/collection.tsv"):
        imported("ms", "ms/triples.train.small.tsv", output="other")


@pytest.fixture
def documents(write):
    write("doc/msmarco-docs.tsv.gz", "D1\thttps://a.example/1\tGout\tIt is caused by crystals.",
          "D2\thttps://a.example/2\t\tA cramp.", "D3\thttps://a.example/3\tNothing\t")  # fmt: skip
    write("doc/msmarco-doctrain-queries.tsv.gz", "10\twhat causes gout")
    write("doc/msmarco-doctrain-qrels.tsv.gz", "10 0 D1 1")


def test_documents(imported, documents):
    found = imported("msmarco-doc:doc")
    assert found.corpus["D1"] == ("Gout", "It is caused by crystals.")
    assert found.corpus["D2"] == ("", "A cramp.") and found.corpus["D3"] == ("Nothing", "")
    assert found.labels() == [("10", "D1", "1")]


def test_documents_as_the_released_models_saw_them(imported, documents):
    found = imported("doc", with_url=True)
    assert found.corpus["D1"] == ("", "https://a.example/1<sep>Gout<sep>It is caused by crystals.")
    assert found.corpus["D2"] == ("", "https://a.example/2<sep><sep>A cramp.")


def test_a_rank_is_a_whole_number(imported, passages, write):
    write("ms/run.dev.small.tsv", "12\t2\t0")
    with pytest.raises(BadInput, match="the rank should be a whole number from 1, found '0'"):
        imported("ms")
