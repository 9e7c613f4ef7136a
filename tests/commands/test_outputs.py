"""Outputs that are no ordinary new file: devices, pipes, links, `.`, what ance did not make."""

import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

RUN = "q1 Q0 d1 1 3.0 a\nq1 Q0 d2 2 2.0 a\n"


@pytest.fixture
def runs(tmp_path):
    (tmp_path / "a.trec").write_text(RUN)
    (tmp_path / "b.trec").write_text(RUN.replace("3.0", "1.0"))
    (tmp_path / "q.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td2\t1\n")
    return tmp_path


FUSE = ("fuse", "a.trec", "b.trec", "-q", "-o")


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_pipe_is_written_into(inside, runs, force):
    pipe = runs / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    inside(*FUSE, "pipe", *force)
    reader.join(20)
    assert read[0].startswith("q1 Q0 ") and pipe.is_fifo()
    assert not list(runs.glob("*pipe*manifest*")) and not list(runs.glob(".pipe*"))


def test_per_query_values_go_into_a_pipe(inside, runs):
    pipe = runs / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    inside("eval", "a.trec", "--qrels", "q.tsv", "--per-query", "pipe")
    reader.join(20)
    assert read[0].startswith("run\tquery_id\t") and pipe.is_fifo()


def test_a_pipe_that_no_process_reads_is_refused(inside, runs, monkeypatch):
    monkeypatch.setattr("ance_cli.formats.atomic._READER_SECONDS", 0.1)
    os.mkfifo(runs / "pipe")
    found = inside(*FUSE, "pipe", code=2).stderr
    assert "pipe: no process reads this pipe" in found and "--force" not in found
    assert (runs / "pipe").is_fifo()


def test_a_device_is_written_into(inside, runs):
    try:  # one of its own: a fault here would replace the machine's
        os.mknod(runs / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")
    (runs / "link").symlink_to("null")
    inside(*FUSE, "link", "--force")
    inside(*FUSE, "null")
    inside("eval", "a.trec", "--qrels", "q.tsv", "--per-query", "null")
    assert (runs / "null").is_char_device() and (runs / "link").is_symlink()


def test_the_data_of_a_link_is_where_it_points(inside, runs):
    (runs / "disk").mkdir()
    (runs / "out.trec").symlink_to("disk/there.trec")
    inside(*FUSE, "out.trec")
    inside(*FUSE, "out.trec", "--rrf-k", 10, "--force")
    assert (runs / "out.trec").is_symlink()
    assert sorted(each.name for each in (runs / "disk").iterdir()) == [
        "there.trec", "there.trec.manifest.json"
    ]  # fmt: skip
    again = json.loads(inside(*FUSE[:3], "--rrf-k", 10, "--json", "-o",
                              "out.trec").stdout)  # fmt: skip
    assert again["up_to_date"]


@pytest.mark.parametrize("manifest", [None, "{}", '{"kind": "app"}', "[", '{"kind": 3}'])
def test_force_replaces_only_what_ance_made(inside, runs, manifest):
    (runs / "thesis").write_text("ten years of work")
    if manifest:
        (runs / "thesis.manifest.json").write_text(manifest)
    for force in ([], ["--force"]):
        found = inside("fuse", "a.trec", "b.trec", "-o", "thesis", *force,
                       code=3 if manifest in ("{}", "[", '{"kind": 3}') else 4)  # fmt: skip
        assert "or remove it first if you do not need it; --force does not" in found.stderr
        assert (runs / "thesis").read_text() == "ten years of work"


def test_force_keeps_a_folder_that_ance_did_not_make(inside, runs, dataset):
    (runs / "thesis").mkdir()
    (runs / "thesis" / "thesis.tex").write_text("ten years of work")
    inside("import", "beir:data", "-o", "thesis", "--force", code=4)
    shutil.copytree(dataset, runs / "more")
    inside("merge", "data", "more", "-o", "thesis", "--force", code=4)
    assert (runs / "thesis" / "thesis.tex").read_text() == "ten years of work"


def test_force_keeps_the_files_of_others_in_a_folder_of_ours(inside, runs, dataset):
    inside("import", "beir:data", "-o", "made")
    (runs / "made" / "notes.txt").write_text("ten years of work")
    inside("import", "beir:data", "-o", "made")
    found = inside("import", "beir:data", "-o", "made", "--force", code=4).stderr
    assert "would also remove 1 file that is not a part of it: notes.txt\n" in found
    (runs / "made" / "notes.txt").rename(runs / "made" / ".env")
    assert "not a part of it: .env\n" in inside("import", "beir:data", "-o", "made", "--force",
                                         code=4).stderr  # fmt: skip
    assert (runs / "made" / ".env").read_text() == "ten years of work"
    (runs / "made" / ".env").rename(runs / "made" / ".made.lease")
    inside("import", "beir:data", "-o", "made", "--force")


def test_init_replaces_only_its_own_settings(inside, runs, dataset):
    settings = runs / "data" / "ance.toml"
    settings.write_text("[shared]\ndepth = 7\n")
    found = inside("init", "data", "--force", code=4).stderr
    assert "data/ance.toml: exists and was not written by ance init" in found
    assert settings.read_text() == "[shared]\ndepth = 7\n"
    settings.write_text("# Settings of the ance commands in this folder. The command line goes\n")
    inside("init", "data", "--force")  # written by version 0.1.0
    settings.unlink()
    settings.symlink_to("../there.toml")
    inside("init", "data")
    inside("init", "data", "--force")
    assert settings.is_symlink() and "Settings of the ance" in (runs / "there.toml").read_text()


def test_per_query_replaces_only_its_own_table(inside, runs):
    words = ("eval", "a.trec", "--qrels", "q.tsv", "--per-query")
    inside(*words, "values.tsv")
    inside(*words, "values.tsv")
    inside(*words, "values.tsv.gz")
    inside(*words, "values.tsv.gz")
    for name in ("notes.txt", "notes.gz"):
        (runs / name).write_text("mine")
        assert "was not written by --per-query" in inside(*words, name, code=2).stderr
        assert (runs / name).read_text() == "mine"


@pytest.mark.parametrize("output", [".", "..", "/", "../out", ""])
@pytest.mark.parametrize("command", ["import", "search"])
def test_the_working_folder_cannot_be_the_output(inside, runs, dataset, output, command):
    (runs / "out").mkdir()
    inside.cwd = runs / "out"
    words = {
        "import": ["import", "beir:../data"],
        "search": ["search", "--engine", "bm25s", "--data", "../data", "--split", "train"],
    }[command]
    found = inside(*words, "-o", output, "--force", code=2).stderr
    reason = "which this command reads" if output in ("..", "/") else "the working folder"
    assert reason in found
    assert inside.cwd.is_dir() and dataset.is_dir()


def test_a_folder_that_one_is_in_can_be_an_input(inside, runs, dataset, checkpoint):
    inside("encode", "--ckpt", checkpoint, "--data", "data", "-o", "emb", "--gpus", "none", "-q")
    inside.cwd = runs / "emb"
    inside("search", "--embeddings", ".", "--ckpt", checkpoint, "--data", "../data", "--split",
           "train", "--gpus", "none", "-q", "-o", "../s.trec")  # fmt: skip
    found = inside("search", "--embeddings", "/", "--ckpt", checkpoint, "--data", "../data",
                   "--split", "train", "--gpus", "none", "-o", "../t.trec", code=4)  # fmt: skip
    assert "/: has no manifest.json" in found.stderr


@pytest.mark.parametrize("length", [201, 240, 255, 300])
def test_a_name_that_is_too_long_is_refused_with_its_length(inside, runs, length):
    found = inside(*FUSE, "x" * length, code=2).stderr
    assert f"the name has {length} bytes, expected at most 200" in found
    assert "hint: choose a shorter name" in found
    found = inside("eval", "a.trec", "--qrels", "q.tsv", "--per-query", "x" * 300, code=2).stderr
    assert "choose a shorter name" in found


def test_a_name_of_200_bytes_is_taken(inside, runs):
    inside(*FUSE, "x" * 200)
    inside(*FUSE, "x" * 200)


@pytest.mark.parametrize("where", ["argument", "cwd", "cache", "inside"])
def test_a_name_that_is_not_utf8_is_refused(ance, runs, dataset, where):
    odd = os.fsdecode(os.fsencode(runs) + b"/caf\xe9")
    os.mkdir(odd)
    words, env = [*FUSE, "f.trec"], {}
    if where == "argument":
        words[1] = "caf\udce9/a.trec"
    elif where == "cache":
        env["ANCE_CACHE_DIR"] = odd
    elif where == "cwd":
        words[1:3] = ["../a.trec", "../b.trec"]
        ance.cwd = Path(odd)
    else:
        shutil.move(dataset, Path(odd) / "data")
        (runs / "link").symlink_to(Path(odd) / "data")
        words = ["import", "beir:link", "-o", "made"]
    assert "not valid UTF-8" in ance(*words, code=2, **env).stderr


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_an_error_only_for_who_needs_it(ance, runs, closed):
    program = f"{sys.executable} -m ance_cli"
    found = subprocess.run(["sh", "-c", f"{program} {' '.join(FUSE)} out.trec {closed}"],
                           cwd=runs)  # fmt: skip
    assert found.returncode == 0 and (runs / "out.trec").read_text().startswith("q1 Q0 ")
    for words in ("eval a.trec --qrels q.tsv", "fuse a.trec b.trec -o -"):
        shown = subprocess.run(
            ["sh", "-c", f"{program} {words} {closed}"], cwd=runs, capture_output=True, text=True
        )
        lost = " >&-" in f" {closed}"  # what nobody can read is not called a success
        assert shown.returncode == (2 if lost else 0), (words, shown)
        assert shown.stderr.count("error: stdout is closed: what was printed is lost") == (
            lost and "2>&-" not in closed
        )


def test_a_closed_stdin_cannot_be_read(ance, runs):
    found = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m ance_cli fuse - b.trec -o out.trec <&-"],
        cwd=runs, capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 2 and "error: stdin is closed" in found.stderr


def test_nothing_is_opened_through_a_planted_link(inside, runs):
    (runs / "private").write_text("mine")
    (runs / ".out.trec.partial").symlink_to("private")
    (runs / ".out.trec.manifest.json.partial").symlink_to("private")
    inside(*FUSE, "out.trec")
    (runs / ".more.trec.lease").symlink_to("private")
    found = inside(*FUSE, "more.trec", code=2).stderr
    assert ".more.trec.lease: is a symbolic link" in found and "hint: remove the link" in found
    assert (runs / "private").read_text() == "mine"


def test_a_working_folder_that_was_removed_is_named(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    command = f"rmdir {folder}; exec {sys.executable} -P -m ance_cli fuse a b -o c"
    found = subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, text=True)
    assert found.returncode == 2 and "the working folder was removed" in found.stderr
