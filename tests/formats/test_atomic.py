"""A name on disk means a whole artifact, also where the writer fails or is killed."""

import errno
import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from ance_cli.errors import ResourceExhausted
from ance_cli.formats import atomic


@contextmanager
def full_disk(room):
    """No file may grow beyond `room` bytes: the kernel refuses the write, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def failing(code):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    return fail


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def killed(code, *arguments):
    """Run Python code that must end by its own SIGKILL."""
    found = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, timeout=60
    )
    assert found.returncode == -signal.SIGKILL, found.stderr.decode()


# ---------------------------------------------------------------- files


def test_new_file_takes_its_name_only_at_the_end(tmp_path):
    path = tmp_path / "deep" / "file"
    with atomic.new_file(path) as handle:
        handle.write(b"content")
        handle.flush()
        assert names(path.parent) == [".file.partial"]
    assert names(path.parent) == ["file"]
    assert path.read_bytes() == b"content"


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failure_in_the_middle_keeps_the_old_file(tmp_path, failure):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(failure), atomic.new_file(path) as handle:
        handle.write(b"half of the n")
        raise failure
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_write_on_a_full_disk_leaves_no_file(tmp_path):
    path = tmp_path / "file"
    with (
        pytest.raises(ResourceExhausted) as caught,
        full_disk(1000),
        atomic.new_file(path) as handle,
    ):
        handle.write(bytes(100_000))
    assert names(tmp_path) == []
    assert caught.value.exit_code == 5
    assert caught.value.what == (
        f"{path}: no room left on the disk; nothing was written under this name"
    )
    assert caught.value.hint == ("free some space and repeat the command; finished work is kept")


def test_a_write_on_a_full_disk_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(ResourceExhausted), full_disk(1000):
        atomic.write_bytes(path, bytes(100_000))
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_that_only_fsync_reports(tmp_path, monkeypatch, code):
    monkeypatch.setattr(os, "fsync", failing(code))
    with pytest.raises(ResourceExhausted):
        atomic.write_bytes(tmp_path / "file", b"content")
    assert names(tmp_path) == []


def test_another_disk_error_is_not_called_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(ResourceExhausted) as caught:
        atomic.write_bytes(tmp_path / "file", b"content")
    assert caught.value.what == f"{tmp_path}/file: cannot be read or written (Input/output error)"
    assert "check the disk" in caught.value.hint
    assert names(tmp_path) == []
    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))
    with pytest.raises(OSError, match="Invalid argument"):
        atomic.write_bytes(tmp_path / "file", b"content")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_the_full_disk_errors_of_libraries_are_recognised(tmp_path, code):
    with pytest.raises(ResourceExhausted), atomic.new_file(tmp_path / "file"):
        raise RuntimeError(f"SafetensorError: I/O error: {os.strerror(code)} (os error {code})")
    with pytest.raises(RuntimeError, match="something else"), atomic.new_file(tmp_path / "file"):
        raise RuntimeError("something else")
    assert names(tmp_path) == []


def test_a_killed_writer_leaves_the_old_file_and_the_next_one_replaces_it(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    killed(
        "import os, sys; from pathlib import Path; from ance_cli.formats import atomic\n"
        "with atomic.new_file(Path(sys.argv[1])) as handle:\n"
        "    handle.write(b'half'); handle.flush(); os.kill(os.getpid(), 9)",
        path,
    )
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == [".file.partial", "file"]
    atomic.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["file"]


# ---------------------------------------------------------------- ledgers


def test_append_line_adds_one_line_a_record(tmp_path):
    path = tmp_path / "deep" / "ledger"
    atomic.append_line(path, b"one")
    atomic.append_line(path, b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"


@pytest.mark.parametrize(
    ("left", "kept"), [(b"one\ntwo\nthr", b"one\ntwo\n"), (b"on", b""), (b"one\n", b"one\n")]
)
def test_append_line_removes_a_record_cut_short(tmp_path, left, kept):
    path = tmp_path / "ledger"
    path.write_bytes(left)
    atomic.append_line(path, b"next")
    assert path.read_bytes() == kept + b"next\n"


def test_append_line_on_a_full_disk_is_repaired_by_the_next_one(tmp_path):
    path = tmp_path / "ledger"
    atomic.append_line(path, b"a" * 989)
    with pytest.raises(ResourceExhausted), full_disk(1000):
        atomic.append_line(path, b"b" * 50)
    assert path.read_bytes() == b"a" * 989 + b"\n" + b"b" * 10
    atomic.append_line(path, b"c")
    assert path.read_bytes() == b"a" * 989 + b"\nc\n"


# ---------------------------------------------------------------- folders


def filled(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture(params=["exchange", "two renames"])
def exchange(request, monkeypatch):
    """Both ways of replacing a folder: with the kernel's exchange of names and without it."""
    if request.param == "two renames":
        monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)


def test_publish_folder_names_a_new_folder(tmp_path):
    partial = filled(tmp_path / ".out.partial", a="1", deep__b="2")
    atomic.publish_folder(partial, tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "deep" / "b").read_text() == "2"


@pytest.mark.usefixtures("exchange")
def test_publish_folder_replaces_an_existing_one(tmp_path):
    filled(tmp_path / "out", a="old", gone="old")
    partial = filled(tmp_path / ".out.partial", a="new")
    atomic.publish_folder(partial, tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["a"]
    assert (tmp_path / "out" / "a").read_text() == "new"


@pytest.mark.usefixtures("exchange")
def test_publish_folder_replaces_a_file(tmp_path):
    (tmp_path / "out").write_text("a file")
    atomic.publish_folder(filled(tmp_path / ".out.partial", a="new"), tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["a"]


@pytest.mark.usefixtures("exchange")
def test_publish_folder_replaces_a_link_and_not_what_it_names(tmp_path):
    filled(tmp_path / "elsewhere", a="keep me")
    (tmp_path / "out").symlink_to("elsewhere")
    atomic.publish_folder(filled(tmp_path / ".out.partial", a="new"), tmp_path / "out")
    assert names(tmp_path) == ["elsewhere", "out"]
    assert not (tmp_path / "out").is_symlink()
    assert (tmp_path / "elsewhere" / "a").read_text() == "keep me"


def test_publish_folder_clears_what_a_kill_between_two_renames_left(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    filled(tmp_path / ".out.replaced", a="older")
    filled(tmp_path / "out", a="old")
    atomic.publish_folder(filled(tmp_path / ".out.partial", a="new"), tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "new"


def test_publish_folder_on_a_full_disk_keeps_old_and_new(tmp_path, monkeypatch):
    filled(tmp_path / "out", a="old")
    partial = filled(tmp_path / ".out.partial", a="new")
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(ResourceExhausted, match="out: no room left on the disk"):
        atomic.publish_folder(partial, tmp_path / "out")
    assert (tmp_path / "out" / "a").read_text() == "old"
    assert (partial / "a").read_text() == "new"


# ---------------------------------------------------------------- links, removal


def test_point_makes_and_replaces_a_relative_link(tmp_path):
    for step in ("1", "2"):
        filled(tmp_path / "run" / "checkpoints" / step, facts=step)
    link = tmp_path / "run" / "latest"
    atomic.point(link, tmp_path / "run" / "checkpoints" / "1")
    assert os.readlink(link) == "checkpoints/1"
    (tmp_path / "run" / ".latest.partial").symlink_to("left by a kill")
    atomic.point(link, tmp_path / "run" / "checkpoints" / "2")
    assert os.readlink(link) == "checkpoints/2"
    assert names(tmp_path / "run") == ["checkpoints", "latest"]
    (tmp_path / "run").rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "latest" / "facts").read_text() == "2"


def test_remove_takes_files_folders_and_nothing(tmp_path):
    filled(tmp_path, file="1", folder__deep__file="2")
    atomic.remove(tmp_path / "file")
    atomic.remove(tmp_path / "folder")
    atomic.remove(tmp_path / "never there")
    assert names(tmp_path) == []


def test_remove_takes_a_link_and_not_what_it_names(tmp_path):
    filled(tmp_path / "folder", a="keep me")
    (tmp_path / "link").symlink_to("folder")
    atomic.remove(tmp_path / "link")
    assert names(tmp_path) == ["folder"]
    assert (tmp_path / "folder" / "a").read_text() == "keep me"


def test_remove_finishes_what_a_kill_left_half_removed(tmp_path):
    filled(tmp_path / ".out.removed", a="half removed")
    filled(tmp_path / "out", a="1")
    atomic.remove(tmp_path / "out")
    assert names(tmp_path) == []
    filled(tmp_path / ".out.removed", a="half removed")
    atomic.remove(tmp_path / ".out.removed")
    assert names(tmp_path) == []


def test_remove_takes_the_name_away_before_the_content(tmp_path, monkeypatch):
    filled(tmp_path / "out", a="1")
    seen = []

    def stop(path, **_):
        seen.append(names(tmp_path))

    monkeypatch.setattr(atomic.shutil, "rmtree", stop)
    atomic.remove(tmp_path / "out")
    assert seen[-1] == [".out.removed"]


def test_point_replaces_the_folder_that_a_copy_made_of_a_link(tmp_path):
    filled(tmp_path / "latest", content="old")
    filled(tmp_path / "step-2", content="new")
    atomic.point(tmp_path / "latest", tmp_path / "step-2")
    assert (tmp_path / "latest").is_symlink()
    assert names(tmp_path) == ["latest", "step-2"]


def test_sweep_takes_what_killed_writers_left_and_nothing_else(tmp_path):
    filled(tmp_path / ".a.partial", content="half")
    filled(tmp_path / ".b.removed", content="half")
    filled(tmp_path / "c.removed", content="whole")
    (tmp_path / ".d.lease").write_bytes(b"")
    atomic.sweep(tmp_path, "partial", "removed")
    assert names(tmp_path) == [".d.lease", "c.removed"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_umask_decides_the_modes_of_a_folder(tmp_path, umask, mode):
    """safetensors writes files that only their owner can read."""
    before = os.umask(umask)
    try:
        partial = tmp_path / ".out.partial"
        (partial / "module").mkdir(parents=True)
        for name in ("weights", "module/weights"):
            os.close(os.open(partial / name, os.O_CREAT | os.O_WRONLY, 0o600))
        (partial / "config.json").write_text("{}")
        atomic.publish_folder(partial, tmp_path / "out")
    finally:
        os.umask(before)
    modes = {
        path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*") if path.is_file()
    }
    assert modes == {mode}
