"""The GPU trial: the whole program on a CPU, and a runner that loses no number."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu_trial import table, wheels
from benchmarks.gpu_trial.__main__ import main
from benchmarks.gpu_trial.agreement import cosines, same_ranking
from benchmarks.gpu_trial.parts import Mark, Number, Part, parts_of
from benchmarks.gpu_trial.profiling import profile_of
from benchmarks.gpu_trial.records import ENDED, Records
from benchmarks.gpu_trial.runner import Run, run_parts
from benchmarks.gpu_trial.sizes import FULL, SIZES, TINY
from benchmarks.gpu_trial.table import NOT_RUN, markdown, rows_of, summary
from benchmarks.gpu_trial.train import largest_difference
from benchmarks.gpu_trial.trial import NEEDS_CUDA
from tests.world import jsonl

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_the_whole_trial_runs_on_a_cpu(tmp_path):
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_trial", "--size", "tiny", "--out", tmp_path / "out"],
        cwd=ROOT, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    log = (tmp_path / "out" / "trial.log").read_text()
    assert found.returncode == 0, f"{found.stdout}\n{found.stderr}\n{log[-5000:]}"
    parts = list(parts_of(TINY).values())
    lines = jsonl(tmp_path / "out" / "trial.jsonl")
    records = Records(tmp_path / "out" / "trial.jsonl", lines[0]["run"])
    rows = {(row.part, row.name): row for row in rows_of(parts, records.read(), full=False)}
    assert markdown(list(rows.values())) == (tmp_path / "out" / "table.md").read_text()
    assert (tmp_path / "out" / "table.md").read_text() in found.stdout
    no_reason = []
    for part in parts:
        assert rows[part.key, ENDED].value.startswith("yes")
        for number in part.numbers:
            row = rows[part.key, number.name]
            if number.needs_cuda:
                assert row.value == f"{NOT_RUN}: {NEEDS_CUDA}"
            elif row.verdict == NOT_RUN:
                no_reason.append((part.key, number.name, row.value))
            elif number.unit == "" and number.mark is None and row.verdict:
                assert (row.value, row.verdict) == ("yes", "pass")
            elif number.mark is not None and number.mark.any_size:
                assert row.verdict == "pass"
    allowed = ("flash-attn is not installed", "this CPU has no instructions for bf16")
    assert not [each for each in no_reason if not each[2].endswith(allowed)]


# ---------------------------------------------------------------- parts that fail


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Makes a part out of the body of its `run`, and runs parts."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def part(key: str, body: str, *numbers: str) -> Part:
        declared = ", ".join(f"Number({name!r}, 's')" for name in numbers)
        (tmp_path / f"part_{key}.py").write_text(
            "import os, sys, time\n"
            "from benchmarks.gpu_trial.parts import Number\n"
            f"NUMBERS = [{declared}]\n"
            f"def run(trial):\n{textwrap.indent(textwrap.dedent(body), '    ')}\n"
        )
        return Part(key, key, f"part_{key}", 60, tuple(Number(name, "s") for name in numbers))

    said: list[str] = []

    def run(*parts: Part, **options):
        records = Records(tmp_path / "trial.jsonl", "this")
        trial = Run(tmp_path, tmp_path, "tiny", records, said.append, **options)
        rows = run_parts(trial, parts, parts)
        return {(row.part, row.name): row for row in rows}, said

    part.run = run
    return part


def test_a_part_that_dies_or_fails_does_not_cost_the_others(fake):
    rows, said = fake.run(
        fake("dies", "trial.record('a', 1.5); print('last words'); sys.stdout.flush(); os.abort()",
             "a", "b"),
        fake("fails", "raise RuntimeError('no such card')", "c"),
        fake("works", "trial.record('d', 2.5)", "d"),
    )  # fmt: skip
    assert rows["dies", ENDED].value.startswith("no: signal SIGABRT")
    assert rows["dies", ENDED].verdict == "fail"
    assert rows["dies", "a"].value == "1.5 s", "what was measured before stays"
    assert (rows["dies", "b"].value, rows["dies", "b"].verdict) == (NOT_RUN, NOT_RUN)
    assert rows["fails", ENDED].value.startswith("no: exit code 1")
    assert rows["works", ENDED].verdict == "pass" and rows["works", "d"].value == "2.5 s"
    shown = "\n".join(said)
    assert "last words" in shown and "RuntimeError: no such card" in shown


def test_a_part_that_hangs_is_killed_with_what_it_started(fake, tmp_path):
    body = """
        import subprocess
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (trial.work / "pid").write_text(str(child.pid))
        trial.record("a", 1.0)
        time.sleep(600)
    """
    rows, _ = fake.run(
        fake("hangs", body, "a", "b"),
        fake("works", "trial.record('c', 3.0)", "c"),
        seconds=8,
    )
    assert rows["hangs", ENDED].value.startswith("no: killed at its limit of 8 s")
    assert [rows["hangs", name].value for name in "ab"] == ["1 s", NOT_RUN]
    assert rows["works", "c"].value == "3 s"
    status = Path("/proc", (tmp_path / "pid").read_text(), "status")
    assert not status.exists() or "Z (zombie)" in status.read_text()


def test_no_part_begins_after_the_limit_of_all(fake):
    rows, _ = fake.run(fake("late", "trial.record('a', 1.0)", "a"), total=0.0)
    assert rows["late", ENDED].value == f"{NOT_RUN}: no time was left"


def test_an_arm_that_fails_is_not_run_and_the_part_goes_on(fake):
    body = """
        with trial.arm("a", "b"):
            trial.record("a", 1.0)
            raise ValueError("odd shape")
        trial.record("c", 2.0)
    """
    rows, _ = fake.run(fake("arms", body, "a", "b", "c"))
    assert [rows["arms", name].value for name in "abc"] == [
        "1 s", f"{NOT_RUN}: ValueError: odd shape", "2 s"]  # fmt: skip
    assert rows["arms", ENDED].verdict == "pass"


# ---------------------------------------------------------------- numbers and the table


def test_a_torn_line_is_passed_over_and_spoils_no_other(tmp_path):
    path = tmp_path / "trial.jsonl"
    records = Records(path, "this")
    records.add("p", "a", 1.0, "s")
    with open(path, "ab") as handle:
        handle.write(b'{"part": "p", "name": "b", "val')
    assert [record.value for record in records.read().values()] == [1.0]
    records.add("p", "b", 2.0, "s", note="kept")
    Records(path, "another").add("p", "a", 9.0, "s")
    found = records.read()
    assert [found["p", name].value for name in "ab"] == [1.0, 2.0]
    assert found["p", "b"].more == {"note": "kept"}
    rows = rows_of([Part("p", "p", "m", 1, (Number("a", "s"), Number("b", "s")))], found, True)
    assert [row.value for row in rows] == [NOT_RUN, "1 s", "2 s"]


def verdicts(tmp_path, numbers, values, full=True):
    records = Records(tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl", "this")
    for name, value in values.items():
        records.add("p", name, value)
    rows = rows_of([Part("p", "p", "m", 1, tuple(numbers))], records.read(), full)[1:]
    return [(row.ratio, row.verdict) for row in rows]


def test_marks(tmp_path):
    rate = Number("rate", "passages/s", Mark(22_000, at_least=1.0))
    seconds = Number("seconds", "s", Mark(1.2, at_most=1.0))
    share = Number("share", "TFLOP/s", Mark("p/ceiling", at_least=0.55))
    cosine = Number("cosine", "", Mark(1.0, at_least=0.999, any_size=True))
    shown = Number("shown", "s", Mark("p/seconds"))
    every = [rate, seconds, share, cosine, shown, Number("ceiling"), Number("holds")]
    good = {"rate": 22_000, "seconds": 1.2, "share": 440.0, "cosine": 0.9991, "shown": 0.6,
            "ceiling": 800.0, "holds": True}  # fmt: skip
    assert verdicts(tmp_path, every, good) == [
        ("1.00", "pass"), ("1.00", "pass"), ("0.55", "pass"), ("", "pass"), ("0.50", ""), ("", ""),
        ("", "pass")]  # fmt: skip
    bad = {"rate": 21_000, "seconds": 1.3, "share": 439.0, "cosine": 0.998, "holds": False,
           "ceiling": 800.0}  # fmt: skip
    assert [verdict for _, verdict in verdicts(tmp_path, every, bad)] == [
        "fail", "fail", "fail", "fail", NOT_RUN, "", "fail"]  # fmt: skip
    tiny = verdicts(tmp_path, every, bad, full=False)
    assert [verdict for _, verdict in tiny] == ["", "", "", "fail", NOT_RUN, "", "fail"]
    assert verdicts(tmp_path, [share], {"share": 440.0}) == [("", NOT_RUN)], "no ceiling, no ratio"
    assert verdicts(tmp_path, [cosine], {"cosine": float("nan")}) == [("", "fail")]


def test_each_number_is_named_once_and_compared_with_one_that_exists():
    for sizes in SIZES.values():
        parts = parts_of(sizes)
        known = {f"{part.key}/{number.name}" for part in parts.values() for number in part.numbers}
        assert len(known) == sum(len(part.numbers) for part in parts.values())
        for part in parts.values():
            for number in part.numbers:
                against = number.mark.against if number.mark else 1.0
                assert not isinstance(against, str) or against in known
    assert sorted(part.number for part in parts_of(FULL).values() if part.number is not None) == [
        *range(8)]  # fmt: skip


def test_the_table_counts_and_keeps_what_is_not_run():
    rows = rows_of(list(parts_of(FULL).values()), {}, full=True)
    assert all(row.verdict == NOT_RUN for row in rows)
    assert summary(rows) == f"0 passed, 0 failed, {len(rows)} not run"
    lines = markdown(rows).splitlines()
    assert len(lines) == len(rows) + 2 and len({len(line) for line in lines}) == 1
    assert table.failures(rows) == 0


def test_the_full_size_is_refused_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch sees no CUDA device.*use --size tiny"):
        main(["--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="there is no part 9; they are 0 to 7"):
        main(["--out", str(tmp_path), "--size", "tiny", "--parts", "0,9"])


# ---------------------------------------------------------------- what the parts compute with


def test_a_profile_counts_overlapping_kernels_once():
    def event(category, name, start, duration):
        return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": duration}

    profile = profile_of(
        [
            event("kernel", "sm90_gemm", 0, 2000), event("kernel", "softmax", 1000, 2000),
            event("kernel", "sm90_gemm", 8000, 1000), event("gpu_memcpy", "HtoD", 8500, 100),
            event("cuda_runtime", "cudaLaunchKernel", 0, 10),
            event("cuda_runtime", "cudaStreamSynchronize", 100, 3000),
            {"ph": "M", "name": "process_name"},
        ],
        wall_ms=10.0,
    )  # fmt: skip
    assert profile.busy_ms == 4.0 and profile.busy_percent == 40.0
    assert (profile.waits, profile.wait_ms) == (1, 3.0)
    assert profile.milliseconds("gemm") == 3.0
    assert profile.top()[0] == ["sm90_gemm", 3.0, 2]


def test_rankings_may_differ_in_ties_alone():
    D = np.array([[3.0, 2.0, 2.0, 1.0, -np.inf]], np.float32)
    I = np.array([[5, 1, 2, 7, -1]], np.int32)  # noqa: E741
    assert same_ranking((D, I), (D, I))
    assert same_ranking((D, I), (D, np.array([[5, 2, 1, 7, -1]], np.int32)))
    assert not same_ranking((D, I), (D, np.array([[1, 5, 2, 7, -1]], np.int32)))
    assert not same_ranking((D, I), (D, np.array([[5, 1, 2, 7, 8]], np.int32)))
    other = D.copy()
    other[0, 0] = 3.1
    assert not same_ranking((D, I), (other, I))


def test_cosines_and_differences():
    one, other = np.array([[1.0, 0.0], [3.0, 4.0]]), np.array([[2.0, 0.0], [4.0, -3.0]])
    assert cosines(one, other) == pytest.approx([1.0, 0.0])
    log = [{"step": 1, "loss": 0.5, "grad_norm": 2.0}, {"step": 2, "loss": 0.25, "grad_norm": 1.0}]
    assert largest_difference(log, log) == 0
    assert largest_difference([log[0], {**log[1], "loss": 0.5}], log) == 0.25
    assert largest_difference([log[0], {**log[1], "grad_norm": 1.5}], log) == 0.5
    assert largest_difference(log[:1], log) == largest_difference([], []) == float("inf")


def test_what_is_too_large_to_travel_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(wheels, "download", lambda folder: None)
    (tmp_path / "a.whl").write_bytes(b"x" * 1000)
    assert wheels.main(["--to", str(tmp_path)]) == 0
    assert "1 wheels, 0.0 MiB; the working tree" in capsys.readouterr().out
    monkeypatch.setattr(wheels, "MOST_BYTES", 500)
    assert wheels.main(["--to", str(tmp_path)]) == 1
    assert "too large to travel" in capsys.readouterr().err
    assert json.dumps(wheels.ALONE + wheels.WITH_THEIR_NEEDS).count("faiss-gpu") == 0
