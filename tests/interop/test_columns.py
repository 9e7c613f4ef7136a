"""What the names of columns mean, and the records of the rows."""

import pytest

from ance_cli.errors import BadInput, UsageProblem
from ance_cli.formats.dataset import Passage, Query
from ance_cli.formats.labels import Label
from ance_cli.interop.columns import parse_columns, records_of, shape_of
from ance_cli.interop.records import Negative, Role, content_id

SHAPES = [
    (("question", "answer"), "", Role.ROWS, {"query": "question", "positive": "answer"}),
    (("query", "positive"), "", Role.ROWS, {"query": "query", "positive": "positive"}),
    (("anchor", "positive", "negative"), "", Role.ROWS, {"negative": "negative"}),
    (("anchor", "positive", "negative_1", "negative_2"), "", Role.ROWS,
     {"negative": "negative_1+negative_2"}),
    (("query", "positives", "negatives"), "", Role.ROWS,
     {"positive": "positives", "negative": "negatives"}),
    (("question", "document_id"), "", Role.ROWS, {"query": "question", "doc_id": "document_id"}),
    (("Question", "Document ID"), "", Role.ROWS, {"query": "Question", "doc_id": "Document ID"}),
    (("query", "passage", "score"), "", Role.ROWS, {"positive": "passage", "score": "score"}),
    (("sentence1", "sentence2", "label"), "", Role.ROWS, {"score": "label"}),
    (("id", "title", "context", "question", "answers"), "", Role.ROWS,
     {"query": "question", "positive": "context", "title": "title", "answers": "answers"}),
    (("id", "title", "text"), "", Role.DOCUMENTS, {"doc_id": "id", "title": "title"}),
    (("body",), "", Role.DOCUMENTS, {"text": "body"}),
    (("_id", "text"), "queries.csv", Role.QUERIES, {"query": "text", "query_id": "_id"}),
    (("id", "question"), "", Role.QUERIES, {"query": "question", "query_id": "id"}),
    (("question", "answer"), "nq-questions.csv", Role.QUERIES, {"answers": "answer"}),
    (("query-id", "corpus-id", "score"), "", Role.LABELS,
     {"query_id": "query-id", "doc_id": "corpus-id", "score": "score"}),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "name", "role", "used"), SHAPES)
def test_a_table_is_understood_by_its_columns(columns, name, role, used):
    shape = shape_of(columns, {}, name)
    assert shape.role is role
    found = {each: "+".join(names) for each, names in shape.columns.items()}
    assert used.items() <= found.items()
    read = {each for names in shape.columns.values() for each in names}
    assert {*shape.unused} == {*columns} - read


def test_what_is_not_understood():
    assert shape_of(("foo", "bar"), {}) is None
    assert shape_of(("1", "2"), {}) is None


def test_the_caller_names_columns():
    named = parse_columns("query=q1,positive=2,negative=x,negative=y,doc_id=uid")
    shape = shape_of(("2", "q1", "x", "y", "uid", "answer"), named)
    assert shape.columns == {"query": ["q1"], "positive": ["2"], "negative": ["x", "y"],
                             "doc_id": ["uid"], "answers": ["answer"]}  # fmt: skip
    documents = shape_of(("uid", "heading", "content"), named)
    assert documents.role is Role.DOCUMENTS and documents.columns["doc_id"] == ["uid"]


@pytest.mark.parametrize("text", ["query", "query=", "=a", "quest=a"])
def test_a_role_that_is_none(text):
    with pytest.raises(UsageProblem, match="expected ROLE=COLUMN"):
        parse_columns(text)


def records(columns, row, name="", min_score=None, named=None):
    return [*records_of(shape_of(columns, named or {}, name), row, "f:1", min_score)]


def test_a_pair_becomes_texts_and_a_label():
    q, p = content_id("who?"), content_id("", "me")
    assert records(("query", "positive"), {"query": "who?", "positive": "me"}) == [
        Passage(p, "", "me"), Query(q, "who?"), Label(q, p, 1),
    ]  # fmt: skip


def test_lists_and_negatives():
    row = {"query": "q", "positives": ["a", "b"], "negatives": ["c", "", None]}
    found = records(("query", "positives", "negatives"), row)
    q, a, b, c = content_id("q"), *(content_id("", text) for text in "abc")
    assert found == [
        Passage(a, "", "a"), Passage(b, "", "b"), Passage(c, "", "c"), Query(q, "q"),
        Label(q, a, 1), Label(q, b, 1), Negative(q, a, c, "negatives"),
        Negative(q, b, c, "negatives"),
    ]  # fmt: skip


def test_an_id_has_no_white_space():
    found = records(("question", "doc_id"), {"question": "q", "doc_id": " How to.md "})
    assert found[-1].doc_id == "How_to.md"


def test_a_title_is_read_only_where_no_negative_lacks_one():
    columns = ("query", "positive", "title")
    row = {"query": "q", "positive": "p", "title": "T", "negative": "n"}
    assert records(columns, row)[0].title == "T"
    shape = shape_of((*columns, "negative"), {})
    assert "title" in shape.unused


@pytest.mark.parametrize(
    ("value", "min_score", "grade"),
    [(2, None, 2), ("0", None, 0), (1.0, None, 1), (0.7, 0.7, 1), ("0.69", 0.7, 0), (-3, None, -3)],
)
def test_scores_become_labels(value, min_score, grade):
    row = {"query": "q", "passage": "p", "score": value}
    assert records(("query", "passage", "score"), row, min_score=min_score)[-1].relevance == grade


def test_a_fraction_needs_a_threshold():
    row = {"query": "q", "passage": "p", "score": 0.83}
    with pytest.raises(UsageProblem, match="'score' is 0.83") as caught:
        records(("query", "passage", "score"), row)
    assert "--min-score" in caught.value.hint


@pytest.mark.parametrize(
    ("columns", "row", "words"),
    [
        (("query", "positive"), {"query": " ", "positive": "p"}, "'query' is empty"),
        (("query", "positive"), {"query": "q", "positive": None}, "'positive' is empty"),
        (("query", "positive"), {"query": {"a": 1}, "positive": "p"}, "should be a string"),
        (("query", "doc_id"), {"query": "q", "doc_id": ""}, "'doc_id' is empty"),
        (("query", "positives", "doc_id"), {"query": "q", "positives": ["a", "b"], "doc_id": "x"},
         "1 ids for 2 texts"),
        (("query", "passage", "score"), {"query": "q", "passage": "p", "score": "high"},
         "should be a number, found 'high'"),
        (("query", "passage", "score"), {"query": "q", "passage": "p", "score": None},
         "should be a number"),
        (("id", "text"), {"id": "1", "text": ""}, "the document is empty"),
        (("id", "text"), {"id": None, "text": "x"}, "the document id is empty"),
    ],
)  # fmt: skip
def test_broken_rows(columns, row, words):
    with pytest.raises(BadInput) as caught:
        records(columns, row)
    assert caught.value.what.startswith("f:1") and words in caught.value.what


def test_answers_and_metadata_stay_with_the_query():
    columns = ("_id", "text", "metadata", "answers")
    row = {"_id": "q1", "text": "x", "metadata": {"kind": "a"}, "answers": ["y"]}
    (query,) = records(columns, row, "queries.jsonl")
    assert query == Query("q1", "x", {"kind": "a", "answers": ["y"]})
