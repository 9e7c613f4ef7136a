"""Reading what may be absent, half there or damaged."""

import json

import pytest

from ance_cli.formats.tolerant_io import object_in, records_in


def test_what_is_absent_is_empty_and_no_damage(tmp_path):
    damage = []
    assert object_in(tmp_path / "a.json", damage) == {}
    assert records_in(tmp_path / "a.jsonl", damage=damage) == []
    assert damage == []


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"a": 1', b"\xff"])
def test_no_object(tmp_path, content):
    path, damage = tmp_path / "a.json", []
    path.write_bytes(content)
    assert object_in(path) == {} == object_in(path, damage)
    assert damage == [f"{path}: is not a JSON object"]


def test_what_cannot_be_read(tmp_path):
    damage = []
    assert (object_in(tmp_path, damage), records_in(tmp_path, damage=damage)) == ({}, [])
    assert damage == [f"{tmp_path}: could not be read (Is a directory)"] * 2


def test_a_ledger_with_broken_lines(tmp_path):
    path, damage = tmp_path / "a.jsonl", []
    path.write_text('{"n": 1}\n\nno\n[2]\n{"n": 3}\n{"n": ')
    assert records_in(path, damage=damage) == [{"n": 1}, {"n": 3}]
    assert damage == [f"{path}:3: is not a JSON object (2 broken lines)"]


def test_the_last_line_may_be_cut_short_or_lack_its_end(tmp_path):
    path, damage = tmp_path / "a.jsonl", []
    for end in ('{"n"', '{"n": 2}'):
        path.write_text('{"n": 1}\n' + end)
        assert records_in(path, damage=damage)[0] == {"n": 1}
    assert damage == []


def test_the_end_of_a_long_ledger(tmp_path):
    path, damage = tmp_path / "a.jsonl", []
    path.write_text("".join(json.dumps({"n": n}) + "\n" for n in range(100)))
    assert records_in(path, 30, damage) == [{"n": 98}, {"n": 99}]
    assert damage == []
