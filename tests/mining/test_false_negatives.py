"""Documents that may never be negatives of a query."""

import pytest

from ance_cli.formats.dataset import Passage
from ance_cli.mining.false_negatives import DuplicateIndex

PASSAGES = [
    Passage("a", "One title", "the same text"),
    Passage("b", "", "a text of its own"),
    Passage("c", "Another title", " the  same\ntext "),
    Passage("d", "", ""),
    Passage("e", "", "a second pair"),
    Passage("f", "", "the same text"),
    Passage("g", "", "a second pair"),
    Passage("h", "", "   "),
    Passage("i", "a second pair", ""),
]


def test_documents_are_identified_by_their_position_in_the_corpus():
    duplicates = DuplicateIndex(iter(PASSAGES))
    assert duplicates.doc_ids == list("abcdefghi")
    assert duplicates.position["e"] == 4


@pytest.mark.parametrize(
    ("positives", "own", "same"),
    [
        ([], "", ""),
        (["b"], "b", ""),
        (["a"], "a", "cf"),
        (["a", "c"], "ac", "f"),
        (["a", "c", "f"], "acf", ""),
        (["f", "e"], "ef", "acgi"),
        (["i"], "i", "eg"),
    ],
)
def test_positives_and_their_copies_are_banned(positives, own, same):
    duplicates = DuplicateIndex(PASSAGES)
    found_own, found_same = duplicates.banned(positives)
    assert {duplicates.doc_ids[place] for place in found_own} == set(own)
    assert {duplicates.doc_ids[place] for place in found_same} == set(same)


def test_passages_of_only_white_space_are_copies_of_each_other():
    duplicates = DuplicateIndex(
        [Passage("d1", "", " "), Passage("d2", "", "\n\t"), Passage("d3", "", "x")]
    )
    assert duplicates.banned(["d1"]) == ({0}, {1})


def test_documents_with_the_id_or_the_text_of_a_query_are_the_query():
    queries = {
        "e": "A second",
        "b": "another question",
        "q1": "a  text of\nits own",
        "q2": "One title the same text",
        "q3": "nothing like it",
        "q4": "a second pair",
    }
    duplicates = DuplicateIndex(PASSAGES, queries)
    found = {name: {duplicates.doc_ids[place] for place in duplicates.itself(name)} for name in
             queries}  # fmt: skip
    # e: by id and a part of the text, with copies; b: by id alone, which is chance; q2: by title
    # and body
    expected = {"e": "egi", "b": "", "q1": "b", "q2": "acf", "q3": "", "q4": "egi"}
    assert found == {name: set(docs) for name, docs in expected.items()}
    assert duplicates.never_negatives("q1", ["e"]) == {1, 4, 6, 8}
    assert not DuplicateIndex(PASSAGES).itself("e")
