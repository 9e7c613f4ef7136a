"""How inputs open, and how a broken line is reported: `file:line: what was found`."""

import gzip
import io
import os
import random
import sys
import time
import tracemalloc

import pytest
import zstandard

from ance_cli.call import SkippedLines
from ance_cli.errors import BadInput, UsageProblem
from ance_cli.formats.jsonl import (
    STDIO,
    open_input,
    open_output,
    read_lines,
    read_records,
    refuse_stdio,
)

GOOD = b'{"_id": "d1", "text": "one"}\n'


def many_lines(count=3000):
    """Lines that do not compress to nothing, so that half of the file holds whole blocks."""
    letters = random.Random(5)
    return b"".join(
        b'{"_id": "d%d", "text": "%s"}\n' % (n, letters.randbytes(30).hex().encode())
        for n in range(count)
    )


def packed(name, data):
    return gzip.compress(data) if name.endswith(".gz") else zstandard.compress(data)


# ---------------------------------------------------------------- lines


def test_a_bom_crlf_and_blank_lines_are_no_content(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n\n{"a": 2}\r\n{"a": 3}')
    assert list(read_records(path)) == [(1, {"a": 1}), (4, {"a": 2}), (5, {"a": 3})]


def test_a_bom_is_removed_from_the_first_line_only(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\n\xef\xbb\xbftwo\n")
    assert list(read_lines(path)) == [(1, b"one"), (2, b"\xef\xbb\xbftwo")]


def test_an_empty_file_has_no_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"")
    assert list(read_lines(path)) == []


# ---------------------------------------------------------------- broken records


def test_a_line_cut_in_half_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + b'{"_id": "d2", "te\n' + GOOD)
    with pytest.raises(BadInput) as caught:
        list(read_records(path))
    assert caught.value.what.startswith(f"{path}:2: not valid JSON (")
    assert caught.value.what.endswith("""); the line begins '{"_id": "d2", "te'""")
    assert caught.value.hint == (
        f"look at the line with: sed -n 2p {path}; fix it, or skip bad lines with --skip-bad"
    )
    assert caught.value.exit_code == 3


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "caf\xe9"}\n')
    with pytest.raises(BadInput, match=r"a\.jsonl:1: not valid JSON \(.*the line begins"):
        list(read_records(path))


def test_only_the_beginning_of_a_long_line_is_shown(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * 100_000 + b"\n")
    with pytest.raises(BadInput) as caught:
        list(read_records(path))
    assert caught.value.what.endswith(f"the line begins {'x' * 60!r}")


@pytest.mark.parametrize(
    ("line", "kind"), [(b"[1, 2]", "list"), (b'"d1"', "str"), (b"7", "int"), (b"null", "NoneType")]
)
def test_a_line_that_is_no_object_is_named(tmp_path, line, kind):
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + line + b"\n")
    with pytest.raises(BadInput) as caught:
        list(read_records(path))
    assert caught.value.what == f"{path}:2: expected one JSON object per line, found {kind}"
    assert caught.value.hint == ('a line looks like {"_id": "d1", "text": "..."}')


def test_skipped_lines_are_counted_and_listed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{\n" + GOOD + b"[]\n" + GOOD)
    skipped = SkippedLines()
    assert [number for number, _ in read_records(path, skipped)] == [2, 4]
    assert skipped.count == 2
    first, second = skipped.reasons
    assert first.startswith(f"{path}:1: not valid JSON (")
    assert second == f"{path}:3: expected one JSON object per line, found list"


def test_a_line_that_is_read_twice_is_skipped_once(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(b"[]\n" * 3)
    skipped = SkippedLines()
    for name in ("a.jsonl", "b.jsonl", "a.jsonl"):
        assert list(read_records(tmp_path / name, skipped)) == []
    assert skipped.count == 6


# ---------------------------------------------------------------- compression


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_compressed_inputs_open_by_their_name(tmp_path, name):
    data = many_lines()
    (tmp_path / name).write_bytes(packed(name, data))
    assert b"".join(line + b"\n" for _, line in read_lines(tmp_path / name)) == data


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_parts_compressed_one_by_one_and_joined_are_read_whole(tmp_path, name):
    data = many_lines()
    cut = data.index(b"\n", len(data) // 2) + 1
    (tmp_path / name).write_bytes(packed(name, data[:cut]) + packed(name, data[cut:]))
    assert sum(1 for _ in read_lines(tmp_path / name)) == 3000


def test_a_gz_file_cut_short_is_named_with_the_line_that_is_missing(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    whole = packed(path.name, many_lines())
    path.write_bytes(whole[: len(whole) // 2])
    seen = []
    with pytest.raises(BadInput) as caught:
        seen.extend(number for number, _ in read_lines(path))
    assert len(seen) > 100
    assert caught.value.what.startswith(
        f"{path}:{seen[-1] + 1}: the compressed file is cut short or damaged ("
    )
    assert caught.value.hint == "download or compress the file again"


@pytest.mark.parametrize("left", [0.5, -1])
def test_a_zst_file_cut_short_is_named(tmp_path, left):
    path = tmp_path / "a.jsonl.zst"
    whole = packed(path.name, many_lines())
    path.write_bytes(whole[:left] if left < 0 else whole[: int(left * len(whole))])
    with pytest.raises(BadInput, match="the compressed file is cut short or damaged"):
        list(read_lines(path))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_plain_file_with_a_compressed_name_is_refused(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(GOOD)
    with pytest.raises(BadInput) as caught:
        list(read_lines(path))
    assert caught.value.what.startswith(f"{path}:1: the compressed file is cut short or damaged (")


def test_a_damaged_gz_file_is_named(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    data = bytearray(packed(path.name, many_lines()))
    data[10] = 0xFF  # the header of the first block asks for a block type that there is not
    path.write_bytes(data)
    with pytest.raises(BadInput, match="the compressed file is cut short or damaged"):
        list(read_lines(path))


# ---------------------------------------------------------------- opening


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(BadInput) as caught, open_input(tmp_path / "none"):
        pass
    assert (caught.value.what, caught.value.hint) == (
        f"{tmp_path}/none: no such file",
        "check the path",
    )
    with pytest.raises(BadInput) as caught, open_input(tmp_path):
        pass
    assert caught.value.what == f"{tmp_path}: is a folder, expected a file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD)
    path.chmod(0)
    with pytest.raises(BadInput, match="a.jsonl: permission denied"), open_input(path):
        pass


def test_a_dash_reads_stdin(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(GOOD)))
    assert list(read_records(STDIO)) == [(1, {"_id": "d1", "text": "one"})]


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.jsonl.zst"])
def test_what_is_written_is_read_again(tmp_path, name):
    data = many_lines()
    with open_output(tmp_path / name) as handle:
        handle.write(data[:1000])
        handle.write(data[1000:])
    assert b"".join(line + b"\n" for _, line in read_lines(tmp_path / name)) == data
    compressed = name != "out.jsonl"
    assert ((tmp_path / name).stat().st_size < len(data)) == compressed


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.jsonl.zst"])
def test_a_failed_output_leaves_nothing(tmp_path, name):
    with pytest.raises(RuntimeError), open_output(tmp_path / name) as handle:
        handle.write(GOOD)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_equal_content_is_compressed_to_equal_bytes(tmp_path, monkeypatch, ending):
    for hour, name in enumerate(("one", "two")):
        monkeypatch.setattr(time, "time", lambda hour=hour: 3600.0 * hour)
        with open_output(tmp_path / f"{name}{ending}") as handle:
            handle.write(GOOD)
    assert (tmp_path / f"one{ending}").read_bytes() == (tmp_path / f"two{ending}").read_bytes()


def test_a_dash_writes_stdout(capfdbinary):
    with open_output(STDIO) as handle:
        handle.write(GOOD)
    assert capfdbinary.readouterr().out == GOOD


def test_a_folder_cannot_be_written_to_stdout(tmp_path):
    with pytest.raises(UsageProblem) as caught:
        refuse_stdio(STDIO, "an index folder")
    assert caught.value.what == (
        "an index folder cannot be written to stdout: the output is a folder"
    )
    assert caught.value.hint == "name a folder with -o DIR"
    refuse_stdio(tmp_path, "an index folder")


@pytest.mark.parametrize("name", ["long.jsonl", "long.jsonl.gz", "long.jsonl.zst"])
def test_a_line_that_is_too_long_is_refused_before_it_is_in_memory(tmp_path, monkeypatch, name):
    monkeypatch.setenv("ANCE_LONGEST_LINE", "1")
    path = tmp_path / name
    with open_output(path) as handle:
        handle.write(b'{"text": "' + b"a" * ((1 << 20) - 13) + b'"}\n')
        handle.write(b'{"text": "' + b"a" * (8 << 20) + b'"}\n')
    lines = read_lines(path)
    assert next(lines)[0] == 1
    tracemalloc.start()
    with pytest.raises(BadInput, match=rf"{name}:2: the line is longer than 1 MiB") as caught:
        next(lines)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "--longest-line" in caught.value.hint
    assert peak < (24 << 20 if name.endswith(".zst") else 6 << 20)  # zstd unpacks blocks at once
    monkeypatch.setenv("ANCE_LONGEST_LINE", "9")
    assert len(list(read_lines(path))) == 2
