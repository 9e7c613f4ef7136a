"""What is read is what was written, and of the kind that was asked for."""

import json

import pytest

from ance_cli.errors import BadInput, Mismatch
from ance_cli.formats import atomic, manifest
from ance_cli.formats.jsonl import STDIO
from ance_cli.formats.manifest import read_manifest
from tests.formats.test_plan import file_plan, folder_plan, write_file, write_folder

# ---------------------------------------------------------------- reading


def test_a_missing_artifact_says_what_makes_it(tmp_path):
    with pytest.raises(BadInput) as caught:
        read_manifest(tmp_path / "emb", "embeddings")
    assert caught.value.what == f"{tmp_path}/emb: no such embeddings"
    assert caught.value.hint == (
        "make it with: ance encode --ckpt CHECKPOINT --data DATASET -o DIR"
    )


def test_an_artifact_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(Mismatch) as caught:
        read_manifest(tmp_path, "index")
    assert caught.value.what == (
        f"{tmp_path}: has no manifest.json, so its model and data are unknown"
    )
    assert caught.value.hint == "make it with: ance index EMBEDDINGS -o DIR"
    assert caught.value.exit_code == 4


def test_a_damaged_manifest_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text('{"kind": "ind')
    with pytest.raises(BadInput) as caught:
        read_manifest(tmp_path, "index")
    assert caught.value.what.startswith(f"{tmp_path}/manifest.json: not valid JSON (")
    (tmp_path / "manifest.json").write_text("[1]")
    with pytest.raises(BadInput) as caught:
        read_manifest(tmp_path, "index")
    assert caught.value.what == (f"{tmp_path}/manifest.json: expected a JSON object, found array")


@pytest.mark.parametrize(("text", "found"), [('{"kind": "index"}', "'index'"), ("{}", "None")])
def test_an_artifact_of_another_kind_is_refused(tmp_path, text, found):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(Mismatch) as caught:
        read_manifest(tmp_path, "embeddings")
    assert caught.value.what == f"{tmp_path}: is of kind {found}, expected 'embeddings'"


def test_a_file_where_a_folder_is_expected_is_refused(tmp_path):
    (tmp_path / "emb").write_text("no folder")
    with pytest.raises((BadInput, Mismatch), match="emb: "):
        read_manifest(tmp_path / "emb", "embeddings")


# ---------------------------------------------------------------- edited by hand


@pytest.mark.parametrize(
    "edit",
    [
        lambda found: found["shaped_by"].update(depth=7),
        lambda found: found["inputs"].clear(),
        lambda found: found.pop("fingerprint"),
        lambda found: found.update(algorithm_version=99),
    ],
)
def test_a_manifest_that_was_edited_is_refused(tmp_path, edit):
    plan = folder_plan(tmp_path / "out")
    write_folder(plan)
    found = json.loads(plan.manifest.read_text())
    edit(found)
    plan.manifest.write_text(json.dumps(found))
    with pytest.raises(Mismatch, match="was edited after ance wrote it") as caught:
        read_manifest(plan.output, "candidates")
    assert "--force" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "expected a JSON object, found null"),
        ({}, "has no files"),
        ([], "expected a JSON object, found array"),
        ({"files": {"rows.npy": "1"}}, "'files[...]': expected int, found str"),
    ],
)
def test_a_manifest_without_its_content_is_refused(tmp_path, content, reason):
    plan = folder_plan(tmp_path / "out")
    write_folder(plan)
    found = json.loads(plan.manifest.read_text())
    plan.manifest.write_text(json.dumps({**found, "content": content}))
    with pytest.raises(BadInput) as caught:
        read_manifest(plan.output, "candidates")
    assert caught.value.what == f"{plan.manifest}: content: {reason}"


# ---------------------------------------------------------------- is what is read what was written?


def test_a_file_of_a_folder_is_compared_with_its_hash(tmp_path):
    plan = folder_plan(tmp_path / "out")
    write_folder(plan, **{"rows.npy": "12", "query_ids.txt": "q1"})
    manifest.check_files(plan.output, read_manifest(plan.output, "candidates"), "again")
    (plan.output / "rows.npy").write_text("21")
    with pytest.raises(BadInput) as caught:
        manifest.check_files(plan.output, read_manifest(plan.output, "candidates"), "again")
    assert caught.value.what == (
        f"{plan.output}/rows.npy: is damaged: its hash differs from the one in the manifest"
    )
    assert caught.value.hint == "again"
    with pytest.raises(BadInput, match="rows.npy: is damaged"):
        plan.published()


def test_a_file_with_a_sidecar_is_compared_when_it_is_read(tmp_path):
    plan = file_plan(tmp_path / "out.jsonl")
    write_file(plan)
    assert manifest.check_sidecar(plan.output)["fingerprint"] == plan.fingerprint
    plan.output.write_bytes(b"CONTENT\n")
    with pytest.raises(BadInput) as caught:
        manifest.check_sidecar(plan.output)
    assert caught.value.what.startswith(f"{plan.output}: differs from its manifest")
    assert f"remove {plan.manifest}: then it is read as a file of your own" in caught.value.hint
    with pytest.raises(BadInput, match="differs from its manifest"):
        plan.published()
    plan.manifest.unlink()
    assert manifest.check_sidecar(plan.output) is None


def test_files_without_a_manifest_of_ours_are_read_as_they_are(tmp_path):
    path = tmp_path / "other.trec"
    assert manifest.check_sidecar(STDIO) is manifest.check_sidecar(path) is None
    path.write_text("q Q0 d 1 1 t\n")
    assert manifest.check_sidecar(path) is None
    (tmp_path / "other.trec.manifest.json").write_text('{"made by": "another program"}')
    assert manifest.check_sidecar(path) is None


def test_a_reader_between_the_two_renames_finds_the_pending_manifest(tmp_path):
    plan = file_plan(tmp_path / "out.jsonl")
    write_file(plan)
    old = plan.manifest.read_bytes()
    write_file(plan, b"other\n")
    plan.manifest.rename(atomic.partial_name(plan.manifest))
    plan.manifest.write_bytes(old)
    assert manifest.check_sidecar(plan.output)["fingerprint"] == plan.fingerprint
