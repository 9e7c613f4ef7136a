"""`--config` and `ance.toml`: what they set, what overrides them, and who must not read them."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ance_cli.errors import BadInput, UsageProblem
from ance_cli.loop import supervisor
from ance_cli.models.checkpoint import Checkpoint
from tests.world import jsonl


@pytest.fixture
def settings(ance):
    def write(text, name="ance.toml"):
        path = ance.cwd / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_the_command_line_goes_before_its_table_and_that_before_the_shared_one(
    inside, settings, dataset, checkpoint
):
    settings(f'''
        [all]
        data = "data"
        ckpt = "{checkpoint}"
        passage-length = 10
        query_length = 5
        output-dtype = "float32"

        [encode]
        output = "emb"
        passage_length = 11
    ''')
    found = inside("encode", "--output-dtype", "float16")
    shown = found.stderr.splitlines()[0]
    assert shown == "settings from ance.toml: ckpt, data, output, passage-length, query-length"
    manifest = json.loads((inside.cwd / "emb" / "manifest.json").read_text())
    assert manifest["shaped_by"]["output_dtype"] == "float16"
    assert manifest["shaped_by"]["passage_length"] == 11


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("all", "force", "true"), ("encode", "quiet", "true"), ("all", "cache-dir", '"caches"'),
        ("all", "cache_dir", '"caches"'), ("all", "ray", '"203.0.113.7:6379"'),
        ("encode", "output", '"../home"'), ("encode", "output", '"/home"'),
        ("encode", "output", '"."'), ("all", "output", '"link/out"'),
        ("encode", "tokens", '"../tokens"'),
    ],
)  # fmt: skip
def test_a_file_that_was_not_named_cannot_replace_hide_or_connect(
    inside, settings, tmp_path, table, key, value
):
    (tmp_path / "link").symlink_to(tmp_path.parent)
    settings(f"[{table}]\n{key} = {value}\n")
    found = inside("encode", "--ckpt", "x", "-o", "y", code=2).stderr
    assert f"error: ance.toml:2: {key.replace('_', '-')} " in found
    assert "hint: give --" in found and "or name the file: --config ance.toml" in found
    assert "x: no such" in inside("encode", "--ckpt", "x", "-o", "y", "--config", "ance.toml",
                                  code=3).stderr  # fmt: skip


def test_what_other_commands_take_and_a_flag_that_is_off_are_harmless(inside, settings):
    settings("[all]\nforce = false\n[mine]\nforce = true\n")
    assert "x: no such" in inside("encode", "--ckpt", "x", "-o", "y", code=3).stderr


def test_quiet_says_nothing_of_the_file(inside, settings, dataset):
    settings('[all]\ndata = "data"\n[bm25-negatives]\nengine = "bm25s"\n')
    found = inside("bm25-negatives", "--depth", 6, "--negatives", 2, "-o",
                   "n.jsonl", "--quiet")  # fmt: skip
    assert found.stderr == "" and jsonl(inside.cwd / "n.jsonl")


def test_a_file_that_gives_a_command_nothing_is_not_named(inside, settings):
    settings("[loop]\nsegments = 3\n")
    assert "settings from" not in inside("encode", "--ckpt", "x", "-o", "y", code=3).stderr


def test_paths_are_those_from_the_files_folder(inside, settings, dataset):
    settings('[bm25-negatives]\ndata = "../data"\noutput = "n.jsonl"\nengine = "bm25s"\n'
             'depth = 5\n', "conf/mine.toml")  # fmt: skip
    found = inside("bm25-negatives", "--config", "conf/mine.toml")
    assert "settings from" not in found.stderr, "a file named with --config is not reported"
    assert jsonl(inside.cwd / "conf" / "n.jsonl")


def test_lists_are_repeated_flags(inside, settings, dataset, checkpoint):
    settings(f'[loop]\ndata = ["data:0.5", "other:0.5"]\nckpt = "{checkpoint}"\noutput = "run"\n')
    found = inside("loop", "--dry-run", code=2)
    assert "it cannot merge several --data" in found.stderr
    assert "ance merge data:0.5 other:0.5 -o run.data" in found.stderr


def test_streams_stay_streams(ance, settings, dataset, checkpoint):
    settings('[all]\ndata = "data"\n[search]\nqueries = "-"\nengine = "bm25s"\ndepth = 2\n')
    found = ance("search", stdin="river word0\n")
    assert len(found.stdout.splitlines()) == 2


def test_positional_arguments_are_no_settings(inside, settings):
    settings("[train-segment]\nnegatives = 3\n")
    found = inside("train-segment", "-o", "run", code=2)
    assert "ance.toml:2: ance train-segment does not take 'negatives'" in found.stderr
    settings('[all]\nnegatives = 3\nembeddings = "emb"\n')
    assert "Missing argument 'EMBEDDINGS'" in inside("index", "-o", "index", code=2).stderr


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        ("[encode]\nbatch-token = 3\n", "ance.toml:2: ance encode does not take 'batch-token'",
         "did you mean 'batch-tokens'?"),
        ("[all]\nlearning = 3\n", "ance.toml:2: no command takes 'learning'",
         "ance COMMAND --help lists the names"),
        ("[mien]\ndepth = 3\n", "ance.toml: [mien] names no command that takes settings",
         "did you mean 'mine'?"),
        ("[status]\njson = true\n", "ance.toml: [status] names no command that takes settings",
         "the tables are all, "),
        ('[mine]\nconfig = "x"\n', "ance.toml:2: ance mine does not take 'config'", None),
        ('[encode]\nthreads = "two"\n', "ance.toml:2: threads = 'two': ", None),
        ("[encode]\nthreads = 1.5\n", "ance.toml:2: threads = 1.5: ", None),
        ("[encode]\nthreads = true\n", "ance.toml:2: threads = True: expected one string or number",
         None),
        ("[encode]\nthreads = [1, 2]\n",
         "ance.toml:2: threads = [1, 2]: expected one string or number", None),
        ("[encode.threads]\none = 2\n", "ance.toml: threads = {'one': 2}: expected one string or",
         None),
        ("[encode]\nforce = 1\n", "ance.toml:2: force = 1: expected true or false", None),
        ('[encode]\nside = "pasage"\n', "ance.toml:2: side = 'pasage': ", None),
        ("[encode]\nside = 2024-01-01\n", "expected one string or number", None),
        ("[encode\n", "ance.toml:1: not valid TOML: ", None),
    ],
)  # fmt: skip
def test_a_mistake_is_reported_with_its_place(inside, settings, text, what, hint):
    settings(text)
    found = inside("encode", "--ckpt", "x", "-o", "y", code=2).stderr
    assert what in found and (hint is None or f"hint: {hint}" in found), found
    assert "Traceback" not in found


def test_the_example_of_the_docs_is_taken(inside, settings):
    page = (Path(__file__).parents[2] / "docs" / "reference" / "files.md").read_text()
    settings(page.split("```toml\n")[1].split("```")[0])
    found = inside("encode", "--ckpt", "runs/ance/latest", code=3).stderr
    assert "settings from ance.toml: data, output, gpus\n" in found
    assert "data/medquad: no such" in inside("loop", "--dry-run", code=3).stderr


def test_none_reads_no_file(inside, settings):
    settings("[encode\n")
    assert "x: no such" in inside("encode", "--ckpt", "x", "-o", "y", "--config", "none",
                                  code=3).stderr  # fmt: skip
    assert "no.toml: No such file" in inside("mine", "--config", "no.toml", code=2).stderr


def test_help_works_with_a_broken_file(inside, settings):
    settings("[encode\n")
    assert "--ckpt" in inside("encode", "--help").stdout


@pytest.mark.parametrize("table", ["all", "loop"])
def test_flags_with_other_words_than_their_settings(inside, settings, dataset, checkpoint, table):
    given = {"query-prompt": "query: ", "passage_prompt": "- ", "query-length": "9"}
    lines = [f'{key} = "{value}"' for key, value in given.items()]
    settings("\n".join([f"[{table}]", *lines]))
    found = inside(
        "loop", "--data", "data", "--ckpt", checkpoint, "-o", "run", "--dry-run", "--json"
    )
    shown = "settings from ance.toml: query-length, query-prompt, passage-prompt"
    assert found.stderr.splitlines()[0] == shown
    prepare, *others = (shlex.split(each) for each in json.loads(found.stdout)["commands"])
    for key, value in given.items():
        flag = f"--{key.replace('_', '-')}"
        assert prepare[prepare.index(flag) + 1] == value
        assert not any(flag in words for words in others)
    inside(*prepare[1:])
    made = Checkpoint(inside.cwd / "run" / "latest").settings
    assert (made.query_prefix, made.passage_prefix, made.query_length) == ("query: ", "- ", 9)


def test_a_loops_child_reads_no_file(ance, settings, monkeypatch):
    settings("[all\n")
    monkeypatch.chdir(ance.cwd)
    assert supervisor.start(["index", "nowhere", "-o", "x"]).wait() == BadInput.exit_code
    assert ance.start("index", "nowhere", "-o", "x").wait() == UsageProblem.exit_code


def test_workers_and_ranks_are_no_command_lines():
    code = (
        "import sys, ance_cli.cli.train_worker, ance_cli.encoding.workers\n"
        "sys.exit('ance_cli.cli.config_file' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.long
def test_a_loop_has_only_its_own_table(ance, settings, dataset, checkpoint):
    settings(f'''
        [loop]
        data = "data"
        ckpt = "{checkpoint}"
        output = "run"
        lr = 1e-3
        refresh-every = 1

        [train-segment]
        lr = 0.5
        log-every = 0

        [refresh]
        depth = 5
    ''')
    ance("loop", "--segments", 1, "--negatives", 3, "--batch-size", 8, "--cpu-workers", 2)
    identity = json.loads((ance.cwd / "run" / "run.json").read_text())["identity"]
    refresh = json.loads((ance.cwd / "run" / "refresh.json").read_text())
    assert identity["lr"] == 1e-3 and refresh["depth"] == 200
