"""DPR's rows, passages and questions."""

import json
import tracemalloc

import pytest

from ance_cli.call import SkippedLines
from ance_cli.errors import BadInput
from ance_cli.interop.dpr import answers_in, rows
from ance_cli.interop.records import content_id

PASSAGES = [
    "id\ttext\ttitle",
    '1\t"Gout (or ""podagra"") is caused by crystals."\tGout',
    '2\t"A cramp is\na contraction."\t"""Cramp"""',
    "3\tNothing here.\tNothing",
]


def context(number, field="passage_id", text=None):
    return {"title": f"title {number}", "text": text or f"text {number}", field: str(number),
            "score": 1.5, "title_score": 0}  # fmt: skip


def row(question="what causes gout", positives=(1,), hard=(2,), other=(3,), **extra):
    return {
        "dataset": "nq", "question": question, "answers": ["crystals"],
        "positive_ctxs": [context(n, **extra) for n in positives],
        "negative_ctxs": [context(n, **extra) for n in other],
        "hard_negative_ctxs": [context(n, **extra) for n in hard],
    }  # fmt: skip


@pytest.mark.parametrize("field", ["passage_id", "psg_id"])
@pytest.mark.parametrize("name", ["biencoder-nq-train.json", "biencoder-nq-train.json.gz"])
def test_rows_bring_their_passages(imported, write, field, name):
    two = [row(field=field), row("why do muscles cramp", (2, 1), (1, 3), (), field=field)]
    write(name, json.dumps(two, indent=4))
    found = imported(f"dpr:{name}")
    gout, cramp = map(content_id, ("what causes gout", "why do muscles cramp"))
    assert found.corpus == {str(n): (f"title {n}", f"text {n}") for n in (1, 2, 3)}
    assert found.records[0] == {
        "_id": gout, "text": "what causes gout", "metadata": {"answers": ["crystals"]},
    }  # fmt: skip
    assert found.labels() == [(gout, "1", "1"), (cramp, "2", "1"), (cramp, "1", "1")]
    first, *others = found.negatives()
    assert first["negative_ids"] == ["2", "3"]
    assert first["sources"] == ["hard_negative_ctxs", "negative_ctxs"]
    assert [(p["positive_id"], p["negative_ids"]) for p in others] == [("2", ["3"]), ("1", ["3"])]
    assert found.summary["positives_among_negatives"] == 2


def test_passages_and_rows_beside_each_other(imported, write):
    write("nq/psgs_w100.tsv.gz", *PASSAGES)
    write("nq/biencoder-nq-train.json", json.dumps([row()]))
    write("nq/biencoder-nq-dev.json", json.dumps([row("why do muscles cramp", (2,), (), ())]))
    write("nq/nq-test.qa.csv", "what is a cramp\t['a contraction', \"it's one\"]")
    found = imported("nq")
    assert found.corpus == {
        "1": ("Gout", 'Gout (or "podagra") is caused by crystals.'),
        "2": ('"Cramp"', "A cramp is\na contraction."), "3": ("Nothing", "Nothing here."),
    }  # fmt: skip
    assert found.labels("dev") == [(content_id("why do muscles cramp"), "2", "1")]
    answers = {record["text"]: record["metadata"]["answers"] for record in found.records}
    assert answers["what is a cramp"] == ["a contraction", "it's one"]
    write("nq/biencoder-nq-dev.json", json.dumps([row(positives=(4,))]))
    with pytest.raises(BadInput, match=r"biencoder-nq-dev.json: row 1: document '4' is not in"):
        imported("nq", output="other")


def test_a_question_without_a_positive_is_kept_without_a_label(imported, write):
    write("dev.json", json.dumps([row(), row("nothing known", ())]))
    found = imported("dev.json")
    assert len(found.queries) == 2 and len(found.labels("dev")) == 1


BROKEN = [
    ("[1]", "row 1: expected an object, found int"),
    ('[{"question": " "}]', "row 1: 'question' should be a string that is not empty"),
    ('[{"question": "x", "positive_ctxs": 3}]', "row 1: 'positive_ctxs' should be a list"),
    ('[{"question": "x", "positive_ctxs": [{}]}]', "row 1: 'positive_ctxs' should contain objects"),
]


@pytest.mark.parametrize(("text", "words"), BROKEN)
def test_a_broken_row_is_named(imported, write, text, words):
    write("rows.train.json", text)
    with pytest.raises(BadInput, match=rf"rows.train.json: {words}"):
        imported("dpr:rows.train.json")
    write("rows.train.json", f"{text[:-1]}, {json.dumps(row())}]")
    skipped = SkippedLines()
    assert len(imported("dpr:rows.train.json", skipped=skipped).queries) == 1
    assert skipped.count == 1


@pytest.mark.parametrize("cut", [b"", b"}", b"\xff"])
def test_a_list_that_ends_too_soon(imported, write, cut):
    whole = json.dumps([row(), row("why do muscles cramp")]).encode()
    write("train.json", whole[:-40] + cut)
    with pytest.raises(BadInput, match=r"train.json: row 2: not valid JSON"):
        imported("train.json", skipped=SkippedLines())


def test_a_compressed_list_that_is_cut_short(imported, write):
    path = write("train.json.gz", json.dumps([row(str(n)) for n in range(500)]))
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(BadInput, match=r"train.json.gz: row \d+: .* cut short or damaged"):
        imported("train.json.gz")


def test_rows_are_read_one_by_one(write):
    path = write("train.json", json.dumps([row(f"{n} " + "long " * 3000) for n in range(200)]))
    assert path.stat().st_size > 3_000_000
    next(rows(path, None))
    tracemalloc.start()
    assert sum(1 for _ in rows(path, None)) > 200
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("['one']", ["one"]),
        ("""["it's", 'a "b"']""", ["it's", 'a "b"']),
        (r"['a\'b', 'tab\t', 'caf\xe9', 'é',]", ["a'b", "tab\t", "café", "é"]),
        ("[]", []),
    ],
)
def test_answers_are_strings(text, answers):
    assert answers_in(text, "f:1") == answers


@pytest.mark.parametrize(
    "text",
    ["", "[", "['a'", "[a]", "[1]", "['a' 'b']", "[f'{1}']", "['a', ['b']]", "('a',)", r"['\x']",
     "[__import__('os').getcwd()]", "['a'] * 9", "[" * 100_000, "['a'" + ", 'a'" * 50_000],
)  # fmt: skip
def test_nothing_else_is_evaluated(text):
    with pytest.raises(BadInput, match="f:1: .*answers"):
        answers_in(text, "f:1")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("gout\t[1]", "questions.csv:2: expected answers like"),
        ("\t['a']", "questions.csv:2: the question is empty"),
        ("gout", "questions.csv:2: expected 2 columns separated by tabs"),
        (b"g\xff\t['a']\n", "questions.csv:2: not valid UTF-8"),
        ("gout\t['\\ud800']", "questions.csv:2: the text is not valid Unic"),
    ],
)
def test_broken_questions(imported, write, line, words):
    write("questions.csv", "cramp\t['a']", line, "muscle\t['a']")
    with pytest.raises(BadInput, match=words):
        imported("dpr:questions.csv")
    skipped = SkippedLines()
    found = imported("dpr:questions.csv", skipped=skipped)
    assert list(found.queries.values()) == ["cramp", "muscle"] and skipped.count == 1


@pytest.mark.realdata
def test_published_questions(imported, test_data):
    found = imported(test_data / "interop" / "dpr-nq-test.sample.tsv")
    assert len(found.records) == 200
    assert found.records[36]["metadata"]["answers"] == ["Solange Knowles", "Destiny 's Child"]
    assert found.records[0]["text"] == "who got the first nobel prize in physics"


def test_a_quotation_over_two_passages_swallows_no_passage(imported, write):
    """A file without CSV quotes: a quotation begins in one passage and ends in the next."""
    write(
        "psgs_w100.tsv",
        "id\ttext\ttitle",
        "1\tFirst words.\tSpeech",
        '2\t"We begin here\tSpeech',
        '3\tand end here" he said.\tSpeech',
        '4\t"A ""quoted"" text"\t"A title"',
        '5\t"two\nlines"\tLast',
    )
    found = imported("dpr:psgs_w100.tsv")
    assert found.corpus == {
        "1": ("Speech", "First words."), "2": ("Speech", '"We begin here'),
        "3": ("Speech", 'and end here" he said.'), "4": ("A title", 'A "quoted" text'),
        "5": ("Last", "two\nlines"),
    }  # fmt: skip


def test_one_open_quote_costs_one_row_at_most(imported, write):
    lines = [f"{n}\tpassage {n} with some words\tTitle {n}" for n in range(1, 301)]
    lines[9] = '10\t"an open quote\tTitle 10'
    lines[19] = '20\t"an open quote and no title'
    write("psgs.tsv", "id\ttext\ttitle", *lines)
    with pytest.raises(BadInput, match=r"psgs.tsv:21: expected 3 columns .* quote that is not"):
        imported("dpr:psgs.tsv")
    skipped = SkippedLines()
    found = imported("dpr:psgs.tsv", skipped=skipped)
    assert set(found.corpus) == {str(n) for n in range(1, 301)} - {"20"}
    assert skipped.count == 1


@pytest.mark.parametrize(
    ("answers", "kept"),
    [
        (["one", 1984, 2.5], ["one", "1984", "2.5"]),
        ("one", ["one"]),
        (7, ["7"]),
        ({"text": ["one"], "answer_start": [3]}, ["one"]),
        ([" ", ""], None),
        (None, None),
    ],
)
def test_answers_of_every_form_are_kept_as_strings(imported, write, answers, kept):
    write("rows.train.json", json.dumps([row() | {"answers": answers}]))
    (record,) = imported("dpr:rows.train.json").records
    assert (record.get("metadata") or {}).get("answers") == kept


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answers": True}, "each of 'answers' should be a string, found bool"),
        ({"answers": {"start": [1]}}, "'answers' should be a list of strings, found dict"),
        ({"answers": [["one"]]}, "each of 'answers' should be a string, found list"),
        ({"positive_ctxs": [{"text": "x", "title": ["y"]}]}, "'title' should be a string"),
        ({"positive_ctxs": [{"text": "x", "psg_id": [1]}]}, "id should be a string"),
    ],
)
def test_fields_of_other_types_are_refused_with_their_row(imported, write, change, words):
    write("rows.train.json", json.dumps([row() | change]))
    with pytest.raises(BadInput, match=rf"rows.train.json: row 1: {words}"):
        imported("dpr:rows.train.json")


def test_a_title_that_is_a_number_and_an_id_that_is_null(imported, write):
    contexts = [
        {"text": "x", "title": 1984, "passage_id": None, "psg_id": 12},
        {"text": "y", "title": 1985},
    ]
    write("rows.train.json", json.dumps([row() | {"positive_ctxs": contexts}]))
    corpus = imported("dpr:rows.train.json").corpus
    assert corpus["12"] == ("1984", "x") and ("1985", "y") in corpus.values()
