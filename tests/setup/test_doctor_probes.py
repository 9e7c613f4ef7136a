"""Probes run in another process, so that a broken package does no harm."""

import pytest

from ance_cli.setup.doctor_probes import importing, run_probes


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Puts modules with the given code first on the path of the processes that the test starts."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")

    def write(name, code):
        (tmp_path / f"{name}.py").write_text(code)
        return importing(name)

    return write


def test_each_probe_has_its_own_outcome_in_the_order_given(module):
    names = [
        importing("json"),
        module("raises", "print('words of its own')\nraise RuntimeError('no such instruction')"),
        module("dies", "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)"),
        importing("not_there_at_all"),
        module("leaves", "raise SystemExit(3)"),
        importing("string"),
    ]
    outcomes = run_probes(names, limit_seconds=60)
    assert list(outcomes) == names
    assert [outcome.error for outcome in outcomes.values()] == [
        None,
        "RuntimeError: no such instruction",
        "the process that tried it died of SIGSEGV",
        "ModuleNotFoundError: No module named 'not_there_at_all'",
        "the process that tried it ended with exit code 3",
        None,
    ]


def test_a_probe_that_hangs_is_ended_and_the_others_still_run(module):
    names = [importing("json"), module("hangs", "import time\ntime.sleep(600)"),
             importing("string")]  # fmt: skip
    outcomes = run_probes(names, limit_seconds=3)
    assert outcomes[names[1]].error == "the process that tried it did not end within 3 s"
    assert outcomes[names[0]].error is None and outcomes[names[2]].error is None


def test_an_engine_that_is_not_installed_names_its_fix(module):
    module("Stemmer", "raise ImportError('gone')")
    outcome = run_probes(["bm25s"], limit_seconds=60)["bm25s"]
    assert outcome.error == "--engine bm25s is not installed"
    assert outcome.hint == "pip install 'ance-cli[bm25s]'"


def test_the_ceiling_of_a_matrix_product_is_measured():
    found = run_probes(["devices", "ceilings"], limit_seconds=120)
    cpu, *_ = found["devices"].facts
    dtypes = {each["dtype"] for each in found["ceilings"].facts if each["device"] == "cpu"}
    assert cpu["device"] == "cpu" and dtypes == {"fp32", cpu["dtype"]}
    assert all(each["gflops"] > 0 for each in found["ceilings"].facts)
