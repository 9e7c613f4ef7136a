"""Content hashes, and the cache that spares reading a file twice."""

import os

import pytest
import xxhash

from ance_cli.errors import BadInput
from ance_cli.formats import hashing


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ANCE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def path(tmp_path):
    found = tmp_path / "data"
    found.write_bytes(b"first")
    return found


def rewrite_unseen(path, data):
    """Change a file's bytes and keep its size and times."""
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_parts_do_not_run_into_each_other():
    assert hashing.hash_bytes(b"ab", b"c") != hashing.hash_bytes(b"a", b"bc")
    assert hashing.hash_bytes(b"ab") != hashing.hash_bytes(b"ab", b"")
    assert hashing.hash_lines(["ab", "c"]) != hashing.hash_lines(["a", "bc"])
    assert hashing.hash_lines(["a", "b"]) != hashing.hash_lines(["b", "a"])


def test_hash_json_is_blind_to_the_order_of_keys_and_to_nothing_else():
    assert hashing.hash_json({"a": 1, "b": [1, 2]}) == hashing.hash_json({"b": [1, 2], "a": 1})
    assert hashing.hash_json({"a": 1}) != hashing.hash_json({"a": "1"})
    assert hashing.hash_json([1, 2]) != hashing.hash_json([2, 1])


def test_hash_file_is_xxh3_of_the_bytes(cache, path):
    assert hashing.hash_file(path) == xxhash.xxh3_128_hexdigest(b"first")


def test_hash_file_is_remembered_until_size_or_time_change(cache, path):
    first = hashing.hash_file(path)
    rewrite_unseen(path, b"other")
    assert hashing.hash_file(path) == first, "not read again"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert hashing.hash_file(path) == xxhash.xxh3_128_hexdigest(b"other")
    path.write_bytes(b"longer than before")
    assert hashing.hash_file(path) == xxhash.xxh3_128_hexdigest(b"longer than before")


@pytest.mark.parametrize("damage", [b"", b'{"path": ', b"[]", b"{}"])
def test_a_damaged_cache_entry_only_costs_time(cache, path, damage):
    hashing.hash_file(path)
    (entry,) = (cache / "hashes").iterdir()
    entry.write_bytes(damage)
    rewrite_unseen(path, b"other")
    assert hashing.hash_file(path) == xxhash.xxh3_128_hexdigest(b"other")


def test_a_cache_that_cannot_be_written_only_costs_time(path, monkeypatch):
    monkeypatch.setenv("ANCE_CACHE_DIR", str(path / "not a folder"))
    assert hashing.hash_file(path) == xxhash.xxh3_128_hexdigest(b"first")


def test_what_cannot_be_hashed_is_refused(cache, tmp_path):
    with pytest.raises(BadInput) as caught:
        hashing.hash_file(tmp_path / "none")
    assert caught.value.what == f"{tmp_path}/none: no such file"
    with pytest.raises(BadInput) as caught:
        hashing.hash_file(tmp_path)
    assert caught.value.what == f"{tmp_path}: is a folder, expected a file"
