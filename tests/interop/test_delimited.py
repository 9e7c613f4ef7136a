"""Rows of CSV files, whatever their quotes do."""

import csv
import io
import random

import pytest

from ance_cli.call import SkippedLines
from ance_cli.errors import BadInput
from ance_cli.interop.delimited import quoted_rows


def test_rows_are_those_of_the_csv_module(tmp_path):
    """A brute-force twin: whatever `csv` writes is read back (but for lines of
    nothing but white space, which become empty)."""
    draw = random.Random(5)
    pieces = ["a", '"', ",", ";", "\n", "\n\n", "é", " b", "x y", "\tz"]
    for delimiter in (",", ";", "|"):
        rows = [
            ["".join(draw.choices(pieces, k=draw.randint(1, 6))) + "." for _ in range(3)]
            for _ in range(60)
        ]
        text = io.StringIO(newline="")
        csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
        path = tmp_path / "rows.csv"
        path.write_text(text.getvalue(), encoding="utf-8")
        assert [row for _, row in quoted_rows(path, delimiter, 3, None)] == rows


def test_a_row_is_numbered_by_its_first_line(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('a,b\n"x\n\ny",z\nlast,row\n')
    assert [*quoted_rows(path, ",", 2, None)] == [
        (1, ["a", "b"]), (2, ["x\n\ny", "z"]), (5, ["last", "row"]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('"open,b', "a quote that is not closed"),
        ("one", "found 1"),
        ("a,b,c", "found 3"),
        ('"a"b,c', "a quote that is not closed, or text after one"),
    ],
)
def test_a_broken_row_swallows_no_other(tmp_path, line, found):
    path = tmp_path / "rows.csv"
    path.write_text(f'a,b\n{line}\nc,d\n"e",f\n')
    with pytest.raises(BadInput, match=f"rows.csv:2: expected 2 cells .*{found}") as caught:
        list(quoted_rows(path, ",", 2, None))
    assert "--skip-bad" in caught.value.hint
    skipped = SkippedLines()
    rows = [row for _, row in quoted_rows(path, ",", 2, skipped)]
    assert rows == [["a", "b"], ["c", "d"], ["e", "f"]] and skipped.count == 1
