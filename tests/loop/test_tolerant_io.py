"""Reading what may be absent, half there or damaged."""

import json
from typing import Required, TypedDict

import pytest

from ance_cli.loop.tolerant_io import object_in, records_in


def test_what_is_absent_is_empty_and_no_damage(tmp_path):
    damage = []
    assert object_in(tmp_path / "a.json", damage=damage) == {}
    assert records_in(tmp_path / "a.jsonl", damage=damage) == []
    assert damage == []


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"a": 1', b"\xff"])
def test_no_object(tmp_path, content):
    path, damage = tmp_path / "a.json", []
    path.write_bytes(content)
    assert object_in(path) == {} == object_in(path, damage=damage)
    assert len(damage) == 1 and damage[0].startswith(f"{path}: ")


class Line(TypedDict, total=False):
    step: Required[int]
    loss: float


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ('{"step": 1, "loss": 2, "more": null}', None),
        ('{"step": null}', "'step': expected int, found null"),
        ('{"step": 1, "loss": "2"}', "'loss': expected float, found str"),
        ('{"loss": 2}', "has no step"),
    ],
)
def test_a_field_of_another_type_is_damage(tmp_path, record, what):
    path, damage = tmp_path / "a.jsonl", []
    path.write_text(f'{record}\n{{"step": 5}}\n')
    found = records_in(path, Line, damage)
    assert found == ([json.loads(record)] if what is None else []) + [{"step": 5}]
    assert damage == ([f"{path}:1: {what} (1 broken lines)"] if what else [])
    path.write_text(record)
    assert object_in(path, Line) == ({} if what else json.loads(record))


def test_what_cannot_be_read(tmp_path):
    damage = []
    assert (object_in(tmp_path, damage=damage), records_in(tmp_path, damage=damage)) == ({}, [])
    assert damage == [f"{tmp_path}: could not be read (Is a directory)"] * 2


def test_a_ledger_with_broken_lines(tmp_path):
    path, damage = tmp_path / "a.jsonl", []
    path.write_text('{"n": 1}\n\nno\n[2]\n{"n": 3}\n{"n": ')
    assert records_in(path, damage=damage) == [{"n": 1}, {"n": 3}]
    assert damage[0].startswith(f"{path}:3: not valid JSON (")
    assert damage[0].endswith(") (2 broken lines)") and len(damage) == 1


def test_the_last_line_may_be_cut_short_or_lack_its_end(tmp_path):
    path, damage = tmp_path / "a.jsonl", []
    for end in ('{"n"', '{"n": 2}'):
        path.write_text('{"n": 1}\n' + end)
        assert records_in(path, damage=damage)[0] == {"n": 1}
    assert damage == []


def test_the_end_of_a_long_ledger(tmp_path):
    path, damage = tmp_path / "a.jsonl", []
    path.write_text("".join(json.dumps({"n": n}) + "\n" for n in range(100)))
    assert records_in(path, damage=damage, last_bytes=30) == [{"n": 98}, {"n": 99}]
    assert damage == []
