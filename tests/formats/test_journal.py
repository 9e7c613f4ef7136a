"""A journal gives back what was finished, in order, and never anything else."""

import time

import pytest

from ance_cli.errors import ResourceExhausted
from ance_cli.formats.journal import RECORDS, Journal
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
    return tmp_path / "out.journal"


def opened(path):
    def begin():
        path.mkdir(exist_ok=True)
        return path

    return Journal(begin, path.with_name("out"))


@pytest.fixture
def begun(path):
    """A journal of the first three pieces."""
    with pytest.raises(Cut), opened(path) as journal:
        work(journal, stop=3)
    return path


EXPECTED = [result for _, result in PIECES]


def test_what_was_finished_is_not_computed_again(begun):
    with opened(begun) as journal:
        assert work(journal) == (EXPECTED, [b"four"])
    assert not begun.exists()


def test_stopped_twice(begun):
    with pytest.raises(Cut), opened(begun) as journal:
        work(journal, stop=1)  # within the written records: none is lost
    with pytest.raises(Cut), opened(begun) as journal:
        work(journal, [*PIECES, (b"five", b"5")], stop=4)
    with opened(begun) as journal:
        assert work(journal) == (EXPECTED, [])


def test_the_seconds_of_kept_results_are_reported(path, monkeypatch):
    clock = iter(range(0, 100, 2))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with pytest.raises(Cut), opened(path) as journal:
        work(journal, stop=3)
    assert journal.seconds_before == 0 and not journal.was_kept
    with pytest.raises(Cut), opened(path) as journal:
        work(journal, stop=2)
    assert journal.seconds_before == 4 and journal.was_kept
    with opened(path) as journal:
        work(journal)
    assert journal.seconds_before == 6 and not journal.was_kept


def test_a_finished_work_leaves_nothing(path):
    with opened(path) as journal:
        assert work(journal) == (EXPECTED, [key for key, _ in PIECES])
        assert path.exists()
    assert not path.exists()


def test_a_work_without_pieces_makes_no_file(path):
    with opened(path):
        assert not path.exists()


def test_a_work_that_fails_at_its_first_piece_leaves_nothing(path):
    def failing():
        assert path.exists()
        raise Cut

    with pytest.raises(Cut), opened(path) as journal:
        journal.result(b"one", failing)
    assert not path.exists()


def test_without_a_name_nothing_is_kept(tmp_path):
    with Journal() as journal:
        assert work(journal)[0] == EXPECTED
    assert not list(tmp_path.iterdir())


def test_from_the_first_other_piece_on_all_is_computed(begun):
    other = [PIECES[0], (b"other", b"!"), *PIECES[2:]]
    with pytest.raises(Cut), opened(begun) as journal:
        work(journal, other, stop=3)
    with opened(begun) as journal:
        assert work(journal) == (EXPECTED, [b"two", b"three", b"four"])


def test_only_complete_results_are_read_wherever_the_journal_was_cut(begun):
    records = begun / RECORDS
    whole = records.read_bytes()
    counts = set()
    for size in range(len(whole) + 1):
        begun.mkdir(exist_ok=True)
        records.write_bytes(whole[:size])
        with opened(begun) as journal:
            results, computed = work(journal)
        assert results == EXPECTED
        assert computed == [key for key, _ in PIECES][-len(computed) :]
        counts.add(len(computed))
    assert counts == {1, 2, 3, 4}


def test_a_changed_byte_is_never_a_result(begun):
    records = begun / RECORDS
    whole = records.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 0x41
        begun.mkdir(exist_ok=True)
        records.write_bytes(changed)
        with opened(begun) as journal:
            results, computed = work(journal)
        assert results == EXPECTED and len(computed) >= 2


def test_a_full_disk_is_reported_and_loses_only_the_current_result(path):
    pieces = [(b"small", b"s" * 100), (b"large", b"l" * 5000)]
    told = pytest.raises(ResourceExhausted, match="out: no room left")
    with told, full_disk(1000), opened(path) as cut:
        work(cut, pieces)
    with opened(path) as journal:
        assert work(journal, pieces) == ([b"s" * 100, b"l" * 5000], [b"large"])
