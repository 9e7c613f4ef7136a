"""Tables of every kind are read to the same rows."""

import json

import pytest

from ance_cli.errors import BadInput
from ance_cli.interop.records import Head
from ance_cli.interop.table_files import open_table

pa = pytest.importorskip("pyarrow")

ROWS = [{"question": f"why, {n}?", "answer": f'because "{n}"', "note": "x"} for n in range(3000)]


def written(kind, folder):
    import pyarrow.feather
    import pyarrow.parquet

    path = folder / f"rows.{kind}"
    table = pa.Table.from_pylist(ROWS)
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=700)
    elif kind == "feather":
        pyarrow.feather.write_feather(table, str(path))
    elif kind == "arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table, max_chunksize=700)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif kind == "json":
        path.write_text(json.dumps(ROWS, indent=1))
    else:
        import csv

        with open(path, "w", newline="") as handle:
            delimiter = "\t" if kind == "tsv" else ","
            writer = csv.DictWriter(handle, [*ROWS[0]], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(ROWS)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet", "arrow", "feather"])
def test_a_table_is_read(kind, tmp_path):
    path = written(kind, tmp_path)
    table = open_table(path, Head(path))
    assert table.columns == ("question", "answer", "note")
    numbers, rows = zip(*table.read(None), strict=True)
    assert list(rows) == ROWS
    first = 1 if table.by_row or kind == "jsonl" else 2  # a line of a CSV file follows the header
    assert numbers == tuple(range(first, first + 3000))
    assert table.count in (None, 3000) and (kind != "parquet" or table.count == 3000)


@pytest.mark.parametrize(
    ("lines", "named", "columns"),
    [
        ("question;answer\nwhat?;that", (), ("question", "answer")),
        (",question,answer\n0,what?,that", (), ("column 1", "question", "answer")),
        ("What is it?,A thing.\nwho?,me", (), ("1", "2")),
        ("What is it?,A thing.\nwho?,me", ("What is it?",), ("What is it?", "A thing.")),
        ("a,a\n1,2", (), ("1", "2")),
    ],
)
def test_a_header_is_found_or_not(lines, named, columns, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(lines + "\n")
    table = open_table(path, Head(path), frozenset(named))
    assert table.columns == columns
    assert len([*table.read(None)]) == (1 if table.has_header else 2)


def test_what_is_no_table(tmp_path):
    for name, text in (("a.bin", "x,y"), ("b.csv", "one column"), ("c.jsonl", "words")):
        (tmp_path / name).write_text(text)
        assert open_table(tmp_path / name, Head(tmp_path / name)) is None


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_damaged_file(kind, tmp_path):
    path = written(kind, tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(BadInput, match=f"rows.{kind}: cannot be read as Parquet or Arrow"):
        table = open_table(path, Head(path))
        list(table.read(None))


def test_a_broken_list(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[{"query": "q", "answer": "a"},\n {"query": ')
    table = open_table(path, Head(path))
    with pytest.raises(BadInput, match="row 2: not valid JSON"):
        list(table.read(None))
