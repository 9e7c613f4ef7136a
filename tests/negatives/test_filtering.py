"""What may never be a negative of a query."""

import pytest

from ance_cli.formats.dataset import Passage
from ance_cli.negatives.filtering import Copies

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


def test_documents_are_known_by_their_place_in_the_corpus():
    copies = Copies(iter(PASSAGES))
    assert copies.doc_ids == list("abcdefghi")
    assert copies.position["e"] == 4


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
    copies = Copies(PASSAGES)
    found_own, found_same = copies.banned(positives)
    assert {copies.doc_ids[place] for place in found_own} == set(own)
    assert {copies.doc_ids[place] for place in found_same} == set(same)


def test_passages_of_white_space_alone_are_copies_of_each_other():
    copies = Copies([Passage("d1", "", " "), Passage("d2", "", "\n\t"), Passage("d3", "", "x")])
    assert copies.banned(["d1"]) == ({0}, {1})
