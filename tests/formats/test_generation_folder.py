"""The names of a generation's parts, and what is said of a manifest there that is broken."""

import json

import pytest

from ance_cli.errors import BadInput, Mismatch
from ance_cli.formats.generation_folder import LARGE, GenerationFolder
from ance_cli.formats.hashing import hash_json
from ance_cli.formats.run_folder import RunFolder
from ance_cli.formats.state_folder import StateFolder

IDENTITY = {"kind": "generation", "format_version": 1, "algorithm_version": 1, "shaped_by": {},
            "inputs": {}}  # fmt: skip


@pytest.fixture
def generation(tmp_path):
    (tmp_path / "0007").mkdir()
    return GenerationFolder(tmp_path / "0007")


def write_manifest(generation, **changes):
    manifest = {
        **IDENTITY,
        "fingerprint": hash_json(IDENTITY),
        "content": {"files": {"dev.json": 1}},
        "stats": {"checkpoint_step": 5, "dev": {"RR@10": 1, "R@100": 0.5}},
        **changes,
    }
    generation.manifest.write_text(json.dumps(manifest))
    return manifest


def test_names(generation):
    names = {
        generation.embeddings: "embeddings",
        generation.index: "index",
        generation.candidates: "candidates",
        generation.negatives: "negatives.jsonl",
        generation.negatives_manifest: "negatives.jsonl.manifest.json",
        generation.audit: "negatives.audit.json",
        generation.dev: "dev.json",
        generation.dev_run: "dev.trec",
        generation.guard: "guard.json",
        generation.guard_run: "guard.trec",
        generation.guard_embeddings: "guard-embeddings",
        generation.probe: "probe.json",
        generation.manifest: "manifest.json",
    }
    assert names == {path: path.name for path in names}
    assert {path.parent for path in names} == {generation.path}
    assert [path.name for path in generation.large_parts] == list(LARGE)
    assert set(generation.large_parts) == {
        generation.embeddings, generation.index, generation.candidates,
    }  # fmt: skip


def test_number_and_partial_folder(generation):
    assert generation.number == 7
    assert generation.partial.path == generation.path.with_name(".0007.partial")
    assert generation.partial.embeddings.name == "embeddings"


def test_a_run_hands_out_its_folders(tmp_path):
    run = RunFolder(tmp_path)
    assert run.generation(3) == GenerationFolder(tmp_path / "generations" / "0003")
    assert run.checkpoint(5).settings == tmp_path / "checkpoints" / "step-00000005" / "ance.json"
    assert run.state(5).progress == tmp_path / "state" / "step-00000005" / "state.json"
    for name in ("0010", "0009", "10000", ".0011.partial", "notes", "12x"):
        (run.generations / name).mkdir(parents=True)
    assert [each.number for each in run.all_generations()] == [9, 10, 10000]


def test_names_of_a_resume_state(tmp_path):
    state = StateFolder(tmp_path)
    assert [path.relative_to(tmp_path).as_posix()
            for path in (state.weights, state.optimizer, state.progress)] == [
        "weights.safetensors", "optimizer.safetensors", "state.json"]  # fmt: skip


def test_the_manifest_is_read_with_further_keys(generation):
    manifest = write_manifest(generation, later=1)
    assert generation.read_manifest() == manifest


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"stats": {}}, "stats: has no checkpoint_step"),
        ({"stats": None}, "stats: expected a JSON object, found null"),
        ({"stats": {"checkpoint_step": "5", "dev": {}}},
         "stats: 'checkpoint_step': expected int, found str"),
        ({"stats": {"checkpoint_step": 5, "dev": {"RR@10": "x"}}},
         "stats: 'dev[...]': expected float, found str"),
        ({"content": {}}, "content: has no files"),
    ],
)  # fmt: skip
def test_a_manifest_of_another_shape_is_refused(generation, change, reason):
    write_manifest(generation, **change)
    with pytest.raises(BadInput) as caught:
        generation.read_manifest()
    assert caught.value.what == f"{generation.manifest}: {reason}"
    assert caught.value.hint is not None


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_manifest_that_is_no_object_is_refused(generation, text):
    generation.manifest.write_text(text)
    with pytest.raises(BadInput) as caught:
        generation.read_manifest()
    assert caught.value.what.startswith(f"{generation.manifest}: ")


def test_a_manifest_of_another_kind_is_refused(generation):
    write_manifest(generation, kind="run")
    with pytest.raises(Mismatch, match="is of kind 'run', expected 'generation'"):
        generation.read_manifest()


def test_a_generation_without_a_manifest_is_refused(generation):
    with pytest.raises(Mismatch, match=r"has no manifest\.json"):
        generation.read_manifest()
