"""A journal gives back what was finished, in order, and never anything else."""

import pytest

from ance_cli.errors import MachineGaveOut
from ance_cli.formats.journal import Journal
from tests.formats.test_atomic import full_disk

PIECES = [(b"one", b"1" * 40), (b"two", b""), (b"three", b"3"), (b"four", b"4" * 9)]


class Cut(Exception):
    pass


def work(journal, pieces=PIECES, stop=None):
    """The results, and the keys that had to be computed; stops before piece number `stop`."""
    computed = []

    def compute(key, result):
        computed.append(key)
        return result

    results = []
    for number, (key, result) in enumerate(pieces):
        if number == stop:
            raise Cut
        results.append(journal.result(key, lambda key=key, result=result: compute(key, result)))
    return results, computed


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / ".out.journal.partial"


@pytest.fixture
def begun(path):
    """A journal of the first three pieces."""
    with pytest.raises(Cut), Journal(path) as journal:
        work(journal, stop=3)
    return path


EXPECTED = [result for _, result in PIECES]


def test_what_was_finished_is_not_computed_again(begun):
    with Journal(begun) as journal:
        assert work(journal) == (EXPECTED, [b"four"])
    assert not begun.exists()


def test_stopped_twice(begun):
    with pytest.raises(Cut), Journal(begun) as journal:
        work(journal, stop=1)  # within what is there: nothing of it goes
    with pytest.raises(Cut), Journal(begun) as journal:
        work(journal, [*PIECES, (b"five", b"5")], stop=4)
    with Journal(begun) as journal:
        assert work(journal) == (EXPECTED, [])


def test_a_finished_work_leaves_nothing(path):
    with Journal(path) as journal:
        assert work(journal) == (EXPECTED, [key for key, _ in PIECES])
        assert path.exists()
    assert not path.exists()


def test_a_work_without_pieces_makes_no_file(path):
    with Journal(path):
        assert not path.parent.exists()


def test_without_a_name_nothing_is_kept(tmp_path):
    with Journal() as journal:
        assert work(journal)[0] == EXPECTED
    assert not list(tmp_path.iterdir())


def test_from_the_first_other_piece_on_all_is_computed(begun):
    other = [PIECES[0], (b"other", b"!"), *PIECES[2:]]
    with pytest.raises(Cut), Journal(begun) as journal:
        work(journal, other, stop=3)
    with Journal(begun) as journal:
        assert work(journal) == (EXPECTED, [b"two", b"three", b"four"])


def test_at_whatever_byte_it_was_cut_only_whole_pieces_are_taken(begun):
    whole = begun.read_bytes()
    counts = set()
    for size in range(len(whole) + 1):
        begun.write_bytes(whole[:size])
        with Journal(begun) as journal:
            results, computed = work(journal)
        assert results == EXPECTED
        assert computed == [key for key, _ in PIECES][-len(computed) :]
        counts.add(len(computed))
    assert counts == {1, 2, 3, 4}


def test_a_changed_byte_is_never_a_result(begun):
    whole = begun.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 0x41
        begun.write_bytes(changed)
        with Journal(begun) as journal:
            results, computed = work(journal)
        assert results == EXPECTED and len(computed) >= 2


def test_a_full_disk_is_told_and_costs_the_piece_in_hand(path):
    pieces = [(b"small", b"s" * 100), (b"large", b"l" * 5000)]
    with pytest.raises(MachineGaveOut, match="no room left"), full_disk(1000), Journal(path) as cut:
        work(cut, pieces)
    with Journal(path) as journal:
        assert work(journal, pieces) == ([b"s" * 100, b"l" * 5000], [b"large"])
