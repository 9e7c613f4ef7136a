"""An artifact is used only if it is the one asked for, and is whole or absent after a kill."""

import errno
import gzip
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import xxhash

from ance_cli import __version__
from ance_cli.errors import BadInput, Busy, Mismatch, ResourceExhausted, UsageProblem
from ance_cli.formats import atomic, lease, manifest
from ance_cli.formats.jsonl import STDIO
from ance_cli.formats.manifest import manifest_name, read_manifest
from ance_cli.formats.plan import Plan

SHAPED_BY = {"depth": 100, "dtype": "fp32"}
INPUTS = {"corpus": "aaa"}


def file_plan(output, shaped_by=SHAPED_BY, inputs=INPUTS, **more):
    return Plan("negatives", output, dict(shaped_by), dict(inputs), **more)


def folder_plan(output, shaped_by=SHAPED_BY, inputs=INPUTS, **more):
    return Plan("candidates", output, dict(shaped_by), dict(inputs), **more)


def write_file(plan, data=b"content\n"):
    with plan.text_file({}) as handle:
        handle.write(data)


def write_folder(plan, **files):
    folder = plan.open_partial()
    for name, text in (files or {"data": "content"}).items():
        (folder / name).write_text(text)
    return plan.publish_folder({"rows": 1}, {"seconds": 2})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["file", "folder"])
def artifact(request, tmp_path):
    """(how to plan, how to write, output) of an artifact of each kind."""
    if request.param == "file":
        return file_plan, write_file, tmp_path / "out.jsonl"
    return folder_plan, write_folder, tmp_path / "out"


# ---------------------------------------------------------------- fingerprints


def test_the_manifest_is_next_to_a_file_and_inside_a_folder(tmp_path):
    assert manifest_name(tmp_path / "a.jsonl", "negatives") == tmp_path / "a.jsonl.manifest.json"
    assert manifest_name(tmp_path / "a", "embeddings") == tmp_path / "a" / "manifest.json"


def test_the_fingerprint_is_of_what_shapes_the_content(tmp_path):
    one = file_plan(tmp_path / "one")
    assert one.fingerprint == file_plan(tmp_path / "two", ran_with={"gpus": "all"}).fingerprint
    swapped = dict(reversed(SHAPED_BY.items()))
    assert one.fingerprint == file_plan(tmp_path / "one", swapped).fingerprint
    others = [
        file_plan(tmp_path / "one", {**SHAPED_BY, "depth": 101}),
        file_plan(tmp_path / "one", {**SHAPED_BY, "seed": 1}),
        file_plan(tmp_path / "one", inputs={"corpus": "bbb"}),
        file_plan(tmp_path / "one", {}, {**SHAPED_BY, **INPUTS}),
        folder_plan(tmp_path / "one"),
    ]
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 6


def test_another_algorithm_is_another_fingerprint(tmp_path, monkeypatch):
    before = file_plan(tmp_path / "out").fingerprint
    monkeypatch.setitem(manifest.ALGORITHM_VERSIONS, "negatives", 99)
    assert file_plan(tmp_path / "out").fingerprint != before


# ---------------------------------------------------------------- up to date?


def test_an_output_that_does_not_exist(artifact):
    plan, _, output = artifact
    assert plan(output).published() is None


def test_what_was_made_is_up_to_date(artifact):
    plan, write, output = artifact
    write(plan(output, ran_with={"gpus": "0"}))
    found = plan(output, ran_with={"gpus": "all"}).published()
    assert found["fingerprint"] == plan(output).fingerprint
    assert found["kind"] == plan(output).kind
    assert found["tool_version"] == __version__
    assert found["ran_with"] == {"gpus": "0"}
    assert found["shaped_by"] == SHAPED_BY
    assert found["inputs"] == INPUTS


def test_other_settings_are_named(artifact):
    plan, write, output = artifact
    write(plan(output))
    other = plan(output, {"depth": 200, "seed": 1}, {"corpus": "b" * 50})
    with pytest.raises(Mismatch) as caught:
        other.published()
    assert caught.value.what == (
        f'{output}: exists with other settings: depth 100 -> 200; dtype "fp32" -> null; '
        f'seed null -> 1; corpus "aaa" -> "{"b" * 11}...bbb"'
    )
    assert caught.value.hint == "choose another name with -o, or replace the output with --force"
    assert other.published(force=True) is None


def test_an_output_that_is_brought_up_to_date(artifact):
    """With --append other inputs of some names are no obstacle; without it the hint names it."""
    plan, write, output = artifact
    write(plan(output))
    other = plan(output, inputs={"corpus": "b"})
    other.outdated_by = ["corpus"]
    with pytest.raises(Mismatch) as caught:
        other.published()
    assert caught.value.hint == (
        "bring it up to date with --append, choose another name with -o, or replace the output "
        "with --force"
    )
    other.append = True
    assert other.published() is None and other.exists
    other.shaped_by = {"depth": 200}
    with pytest.raises(Mismatch, match="depth 100 -> 200") as caught:
        other.published()
    assert "--force instead of --append" in caught.value.hint
    same = plan(output)
    same.outdated_by, same.append = ["corpus"], True
    assert same.published()


def test_auto_agrees_with_anything_that_was_made(artifact):
    plan, write, output = artifact
    write(plan(output))
    assert plan(output, {"depth": 100, "dtype": "auto"}).published()
    with pytest.raises(Mismatch) as caught:
        plan(output, {"depth": "auto", "dtype": "bf16"}).published()
    assert caught.value.what == (f'{output}: exists with other settings: dtype "fp32" -> "bf16"')


def test_an_older_algorithm_is_named(artifact, monkeypatch):
    plan, write, output = artifact
    write(plan(output))
    kind = plan(output).kind
    now = manifest.ALGORITHM_VERSIONS[kind]
    monkeypatch.setitem(manifest.ALGORITHM_VERSIONS, kind, now + 1)
    with pytest.raises(Mismatch) as caught:
        plan(output).published()
    assert caught.value.what == (
        f"{output}: exists with other settings: algorithm_version {now} -> {now + 1}"
    )


def test_a_file_that_was_changed_is_refused(tmp_path):
    plan = file_plan(tmp_path / "out.jsonl")
    write_file(plan)
    with open(plan.output, "ab") as handle:
        handle.write(b"edited\n")
    with pytest.raises(Mismatch) as caught:
        plan.published()
    assert caught.value.what == f"{plan.output}: was changed after ance wrote it"


@pytest.mark.parametrize("change", ["cut", "removed"])
def test_a_folder_in_which_a_file_was_changed_is_refused(tmp_path, change):
    plan = folder_plan(tmp_path / "out")
    write_folder(plan, one="1", two="22")
    if change == "cut":
        os.truncate(plan.output / "two", 1)
    else:
        (plan.output / "two").unlink()
    with pytest.raises(Mismatch) as caught:
        plan.published()
    assert caught.value.what == f"{plan.output}/two: was changed after ance wrote it"


def test_a_removed_output_is_made_again(tmp_path):
    plan = file_plan(tmp_path / "out.jsonl")
    write_file(plan)
    plan.output.unlink()
    assert plan.published() is None


def test_what_ance_did_not_make_is_not_overwritten(artifact):
    plan, _, output = artifact
    output.mkdir()
    (output / "thesis.tex").write_text("years of work")
    with pytest.raises(Mismatch) as caught:
        plan(output).published()
    assert caught.value.what in (
        f"{output}: exists and has no manifest, so ance may not have made it",
        f"{output}: is a folder, expected a file (negatives)",
    )
    assert "-o" in caught.value.hint


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "out").mkdir()
    plan = folder_plan(tmp_path / "out")
    assert plan.published() is None
    write_folder(plan)
    assert plan.published()


def test_an_empty_folder_in_place_of_a_file_is_refused_before_the_work(tmp_path):
    (tmp_path / "out.jsonl").mkdir()
    with pytest.raises((BadInput, Mismatch)):
        file_plan(tmp_path / "out.jsonl").published()


def test_stdout_is_never_up_to_date():
    assert file_plan(STDIO).published() is None


# ---------------------------------------------------------------- files


def test_a_file_takes_its_name_with_its_manifest(tmp_path):
    plan = file_plan(tmp_path / "deep" / "out.jsonl")
    stats = {"early": 1}
    with plan.text_file(stats) as handle:
        handle.write(b"content\n")
        stats["late"] = 2
        assert not plan.output.exists()
    assert plan.output.read_bytes() == b"content\n"
    assert names(tmp_path / "deep") == ["out.jsonl", "out.jsonl.manifest.json"]
    found = read_manifest(plan.output, "negatives")
    assert found["stats"] == {"early": 1, "late": 2}
    assert found["content"] == {
        "files": {"out.jsonl": 8},
        "xxh3": xxhash.xxh3_128_hexdigest(b"content\n"),
    }


def test_a_file_is_compressed_as_its_name_asks(tmp_path):
    plan = file_plan(tmp_path / "out.jsonl.gz")
    write_file(plan, b"content\n")
    packed = plan.output.read_bytes()
    assert gzip.decompress(packed) == b"content\n"
    assert plan.published()["content"]["files"] == {"out.jsonl.gz": len(packed)}


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), file_plan(tmp_path / "out.jsonl").text_file({}) as handle:
        handle.write(b"half")
        raise RuntimeError
    assert names(tmp_path) == []


def test_a_failure_keeps_the_old_file_and_its_manifest(tmp_path):
    plan = file_plan(tmp_path / "out.jsonl")
    write_file(plan, b"old\n")
    other = file_plan(tmp_path / "out.jsonl", {"depth": 200})
    with pytest.raises(RuntimeError), other.text_file({}) as handle:
        handle.write(b"half")
        raise RuntimeError
    assert names(tmp_path) == ["out.jsonl", "out.jsonl.manifest.json"]
    assert plan.published()
    assert plan.output.read_bytes() == b"old\n"


def test_a_full_disk_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(ResourceExhausted) as caught:
            write_file(file_plan(tmp_path / "out.jsonl"), bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.what == (
        f"{tmp_path}/out.jsonl: no room left on the disk; nothing was written under this name"
    )
    assert names(tmp_path) == []


def test_stdout_gets_the_content_alone(tmp_path, monkeypatch, capfdbinary):
    monkeypatch.chdir(tmp_path)
    write_file(file_plan(STDIO))
    assert capfdbinary.readouterr().out == b"content\n"
    assert names(tmp_path) == []


KILLED_AT_RENAME = """
import os, sys
from pathlib import Path
from ance_cli.formats.plan import Plan
left = int(sys.argv[2])
replace = os.replace
def dying(source, target):
    global left
    if str(source).startswith(os.path.dirname(sys.argv[1])):
        if left == 0:
            os.kill(os.getpid(), 9)
        left -= 1
    replace(source, target)
os.replace = dying
with Plan("negatives", Path(sys.argv[1]), {"depth": 100}, {}).text_file({}) as handle:
    handle.write(b"new content\\n")
"""


def kill_at_rename(output, number):
    """Write an artifact in another process that is killed before its `number`-th rename."""
    found = subprocess.run(
        [sys.executable, "-c", KILLED_AT_RENAME, output, str(number)],
        capture_output=True,
        timeout=60,
    )
    assert found.returncode == -signal.SIGKILL, found.stderr.decode()


def test_a_kill_between_the_two_renames_is_rolled_forward(tmp_path):
    output = tmp_path / "out.jsonl"
    kill_at_rename(output, 1)
    assert output.read_bytes() == b"new content\n"
    assert names(tmp_path) == [".out.jsonl.manifest.json.partial", "out.jsonl"]
    assert file_plan(output, {"depth": 100}, {}).published()
    assert names(tmp_path) == ["out.jsonl", "out.jsonl.manifest.json"]


def test_a_kill_between_the_two_renames_over_an_old_file_is_rolled_forward(tmp_path):
    output = tmp_path / "out.jsonl"
    write_file(file_plan(output, {"depth": 7}, {}), b"old\n")
    kill_at_rename(output, 1)
    assert output.read_bytes() == b"new content\n"
    found = file_plan(output, {"depth": 100}, {}).published()
    assert found["shaped_by"] == {"depth": 100}
    assert names(tmp_path) == ["out.jsonl", "out.jsonl.manifest.json"]


def test_a_kill_before_the_first_rename_leaves_the_old_artifact(tmp_path):
    output = tmp_path / "out.jsonl"
    old = file_plan(output, {"depth": 7}, {})
    write_file(old, b"old\n")
    kill_at_rename(output, 0)
    assert ".out.jsonl.manifest.json.partial" in names(tmp_path)
    assert old.published()["shaped_by"] == {"depth": 7}
    assert output.read_bytes() == b"old\n"
    assert ".out.jsonl.manifest.json.partial" not in names(tmp_path)


def test_a_kill_before_the_first_rename_of_a_new_artifact_leaves_none(tmp_path):
    output = tmp_path / "out.jsonl"
    kill_at_rename(output, 0)
    plan = file_plan(output, {"depth": 100}, {})
    assert plan.published() is None
    write_file(plan)
    assert names(tmp_path) == ["out.jsonl", "out.jsonl.manifest.json"]
    assert plan.published()


@pytest.mark.parametrize("pending", [b"", b"{", b"[]", b"{}", b'{"content": {"xxh3": "other"}}'])
def test_a_pending_manifest_of_other_content_is_dropped(tmp_path, pending):
    plan = file_plan(tmp_path / "out.jsonl")
    write_file(plan)
    atomic.partial_name(plan.manifest).write_bytes(pending)
    assert plan.published()
    assert names(tmp_path) == ["out.jsonl", "out.jsonl.manifest.json"]


def test_what_another_process_is_about_to_rename_is_left_to_it(tmp_path):
    """It holds the lease, and is between the renames of the file and of its manifest."""
    plan = file_plan(tmp_path / "out.jsonl")
    write_file(plan)
    pending = atomic.partial_name(plan.manifest)
    pending.write_bytes(b"{}")
    child = subprocess.Popen(
        [sys.executable, "-P", "-c",
         "import sys; from pathlib import Path; from ance_cli.formats import lease\n"
         "with lease.of_output(Path('out.jsonl')): print(flush=True), sys.stdin.read()"],
        cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    child.stdout.readline()
    (tmp_path / "out.jsonl").write_bytes(b"the new one\n")
    with pytest.raises(Busy, match=f"out.jsonl is being written by process {child.pid}"):
        plan.published()
    assert pending.exists()
    write_file(plan)
    pending.write_bytes(b"{}")
    child.communicate(b"")
    assert plan.published() and not pending.exists()


# ---------------------------------------------------------------- folders


def test_a_folder_takes_its_name_with_its_manifest(tmp_path):
    plan = folder_plan(tmp_path / "out", ran_with={"threads": 4})
    folder = plan.open_partial()
    assert not plan.output.exists()
    (folder / "one").write_text("1")
    (folder / "deep").mkdir()
    (folder / "deep" / "two").write_text("22")
    returned = plan.publish_folder({"rows": 3}, {"seconds": 1.5})
    assert names(tmp_path) == ["out"]
    assert names(plan.output) == ["deep", "manifest.json", "one"]
    found = read_manifest(plan.output, "candidates")
    assert found == returned
    assert found["content"] == {"rows": 3, "files": {"one": 1, "deep/two": 2}}
    assert found["stats"] == {"seconds": 1.5}
    assert found["ran_with"] == {"threads": 4}


def test_the_lease_of_a_reader_that_was_killed_inside_is_no_part_of_a_folder(tmp_path):
    """Whoever prunes removes it later; the folder is then still what its manifest says."""
    plan = folder_plan(tmp_path / "out")
    folder = plan.open_partial()
    (folder / "embeddings").mkdir()
    (folder / "embeddings" / "data").write_text("content")
    stale = f".embeddings.reader-{'0' * 32}"
    (folder / stale).write_text("")
    plan.publish_folder({}, {})
    assert not lease.has_readers(tmp_path / "out" / "embeddings")
    assert not (tmp_path / "out" / stale).exists()
    found = folder_plan(tmp_path / "out").published()
    assert list(found["content"]["files"]) == ["embeddings/data"]


def test_a_folder_is_replaced_whole(tmp_path):
    write_folder(folder_plan(tmp_path / "out"), old="1")
    plan = folder_plan(tmp_path / "out", {"depth": 200})
    write_folder(plan, new="2")
    assert names(tmp_path) == ["out"]
    assert names(plan.output) == ["manifest.json", "new"]
    assert plan.published()


def test_an_interrupted_folder_is_continued(tmp_path):
    (folder_plan(tmp_path / "out").open_partial() / "block").write_text("hours of work")
    folder = folder_plan(tmp_path / "out", ran_with={"gpus": "0"}).open_partial()
    assert (folder / "block").read_text() == "hours of work"
    folder = folder_plan(tmp_path / "out", {**SHAPED_BY, "dtype": "auto"}).open_partial()
    assert (folder / "block").read_text() == "hours of work"


def test_an_interrupted_folder_of_other_settings_is_refused(tmp_path):
    (folder_plan(tmp_path / "out").open_partial() / "block").write_text("hours of work")
    other = folder_plan(tmp_path / "out", {**SHAPED_BY, "depth": 200})
    with pytest.raises(Mismatch) as caught:
        other.open_partial()
    assert caught.value.what == (
        f"{tmp_path}/.out.partial: exists as an unfinished candidates with other settings: "
        "depth 100 -> 200"
    )
    assert caught.value.hint == "finish it with its own settings, or discard it with --force"
    assert (other.partial / "block").exists()


@pytest.mark.parametrize("how", [{"force": True}, {"abandon_other": True}])
def test_an_interrupted_folder_of_other_settings_can_be_dropped(tmp_path, how):
    (folder_plan(tmp_path / "out").open_partial() / "block").write_text("hours of work")
    other = folder_plan(tmp_path / "out", {**SHAPED_BY, "depth": 200})
    assert names(other.open_partial(**how)) == ["plan.json"]
    assert json.loads((other.partial / "plan.json").read_bytes()) == other.identity


def test_abandoning_others_keeps_ones_own(tmp_path):
    plan = folder_plan(tmp_path / "out")
    (plan.open_partial() / "block").write_text("hours of work")
    assert (plan.open_partial(abandon_other=True) / "block").exists()
    assert names(plan.open_partial(force=True)) == ["plan.json"]


def test_a_partial_folder_without_a_plan_is_started_again(tmp_path):
    plan = folder_plan(tmp_path / "out")
    plan.partial.mkdir()
    (plan.partial / "block").write_text("of what?")
    assert names(plan.open_partial()) == ["plan.json"]


def test_a_partial_folder_with_a_damaged_plan_is_refused(tmp_path):
    plan = folder_plan(tmp_path / "out")
    (plan.open_partial() / "plan.json").write_text("{")
    with pytest.raises(Mismatch, match="exists as an unfinished candidates with other settings"):
        plan.open_partial()


def test_a_full_disk_while_publishing_keeps_what_was_finished(tmp_path, monkeypatch):
    plan = folder_plan(tmp_path / "out")
    (plan.open_partial() / "block").write_text("hours of work")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(ResourceExhausted) as caught:
            plan.publish_folder({}, {})
    assert caught.value.hint.endswith("finished work is kept")
    assert not plan.output.exists()
    assert "block" in names(plan.open_partial())


@pytest.mark.parametrize("stopped_at", ["done.json", "plan.json"])
def test_a_stop_between_the_rename_and_the_tidying_is_finished(tmp_path, monkeypatch, stopped_at):
    plan = folder_plan(tmp_path / "out")
    for name in ("block", "done.json"):
        (plan.open_partial() / name).write_text(name)
    unlink = Path.unlink

    def stopping(path, missing_ok=False):
        if path.name == stopped_at:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", stopping)
        with pytest.raises(KeyboardInterrupt):
            plan.publish_folder({}, {}, unfinished_only=["done.json"])
    assert "plan.json" in names(plan.output)
    (plan.output / ".a.lease").touch()
    assert plan.published()
    assert names(plan.output) == [".a.lease", "block", "manifest.json"]


# ---------------------------------------------------------------- inputs, and caches


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("place", ["out", "out/inside", "link"])
def test_an_output_never_takes_the_place_of_what_it_is_made_from(tmp_path, force, place):
    (tmp_path / "out" / "inside").mkdir(parents=True)
    (tmp_path / "link").symlink_to("out")
    plan = folder_plan(tmp_path / "out", reads=[None, tmp_path / place])
    with pytest.raises(UsageProblem, match="this command reads"):
        plan.published(force)
    inside = folder_plan(tmp_path / "out" / "other", reads=[tmp_path / "out"])
    assert inside.published(force) is None


def test_a_manifest_without_hashes_of_files_is_still_up_to_date(tmp_path):
    """As version 0.1.0 wrote it."""
    plan = folder_plan(tmp_path / "out")
    write_folder(plan, **{"rows.npy": "12"})
    found = json.loads(plan.manifest.read_text())
    del found["content"]["files_xxh3"]
    plan.manifest.write_text(json.dumps(found))
    assert plan.published() == found
    manifest.check_files(plan.output, found, None)


def test_a_damaged_cache_is_made_again_and_said(tmp_path):
    plan, said = folder_plan(tmp_path / "out"), []
    write_folder(plan, **{"rows.npy": "12"})
    assert plan.cached(said.append) and not said
    (plan.output / "rows.npy").write_text("21")
    assert plan.cached(said.append) is None
    assert said == [
        f"{plan.output}/rows.npy: is damaged: its hash differs from the one in the manifest; "
        "making it again"
    ]
