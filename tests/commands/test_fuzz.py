"""Arguments and files that nobody meant: no exit code is 1, and no traceback is printed.

The values are drawn from the declared settings, the bytes from the formats; the seeds are fixed.
Every call is a process of its own with a bound on memory and time, so an abort or a hang is a
failure of that call and of nothing else.
"""

import gzip
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
from pathlib import Path

import pytest
import zstandard

from ance_cli.cli.command import COMMANDS
from tests.commands.test_broken_inputs import made  # noqa: F401  (a fixture)
from tests.world import make_reader

pytestmark = pytest.mark.long

SECONDS, MEMORY = 120, 12 << 30
"""What one call may take."""

DENSE = ["--data", "data", "--ckpt", "ckpt", "--gpus", "none"]
CALLS = {
    "import": ["import", "beir:data", "-o", "out"],
    "merge": ["merge", "data", "other", "-o", "out"],
    "generate-queries": [
        "generate-queries", "--data", "data", "--model", "writer", "--engine", "bm25s",
        "--max-new-tokens", "4", "--temperature", "1", "--sample", "9", "--gpus", "none",
        "-o", "out",
    ],
    "bm25-negatives": ["bm25-negatives", "--data", "data", "--engine", "bm25s", "-o", "out"],
    "tokenize": ["tokenize", "--ckpt", "ckpt", "--data", "data", "-o", "out"],
    "encode": ["encode", *DENSE, "-o", "out"],
    "index": ["index", "emb", "-o", "out"],
    "mine": ["mine", *DENSE, "--embeddings", "emb", "-o", "out"],
    "search": ["search", *DENSE, "--split", "dev", "--embeddings", "emb", "-o", "out"],
    "fuse": ["fuse", "bm25.trec", "again.trec", "-o", "out"],
    "eval": ["eval", "bm25.trec", "--qrels", "data/qrels/dev.tsv"],
    "bench-search": ["bench-search", "emb", *DENSE, "--split", "dev", "--trials", "2"],
    "diagnose": ["diagnose", *DENSE, "--embeddings", "emb", "--engine", "bm25s", "-o", "out"],
    "report": ["report", "run", "-o", "out"],
    "status": ["status", "run"],
    "export": ["export", "tevatron", "n.jsonl", "--data", "data", "-o", "out"],
    "checkpoint": ["checkpoint", "inspect", "ckpt"],
    "init": ["init", "data"],
    "card": ["card", "run", "-o", "out"],
    "rerank": ["rerank", "bm25.trec", *DENSE, "-o", "out"],
    "read": ["read", "bm25.trec", "--data", "data", "--reader", "reader", "--depth", "2", "--gpus",
             "none", "-o", "out"],
    "refresh": ["refresh", "run", "--depth", "12", "--force", "--gpus", "none"],
    "train-segment": [
        "train-segment", "n.jsonl", *DENSE, "--steps", "1", "--batch-size", "2", "-o", "out",
    ],
    "loop": [
        "loop", *DENSE, "--refresh-every", "1", "--segments", "1", "--mode", "sync", "--batch-size",
        "2", "--depth", "12", "--max-restarts", "0", "-o", "out",
    ],
}  # fmt: skip
"""One whole call of each command."""

HEAVY = {"diagnose", "generate-queries", "train-segment", "refresh", "read", "loop"}
"""Commands that take seconds: one value of each setting is tried."""

TRIED_ELSEWHERE = {"loop": ("train-segment", "refresh")}
"""Commands that call others, which are tried with the same settings."""

WORDS = ["", " ", "nan", "-inf", "1e400", "9" * 5000, "-1", "0", "0x10", "1_0", "\u0661", "\ufeff1",
         "\N{SNOWMAN}", "\x1b[2J", "[red]", "a" * 3000, "../..", "-", "1,2", "0-3",
         "1:1", "a:nan", "@", "\udcff"]  # fmt: skip
NOT_TRIED = {
    "config", "cache_dir", "output", "watch", "follow", "ray", "rdzv_endpoint", "nnodes", "dry_run",
    "cpu_workers", "track", "steps", "interval", "quiet", "json", "batch_size", "accumulation",
    "negatives_per_positive",
}  # fmt: skip
"""Settings that wait, start other programs, write elsewhere or ask for that much work, and flags
without a value."""


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["ance_cli.cli.main", "faiss", "transformers.models.bert.modeling_bert", "bm25s"]
)


def _call(folder, words):
    """What a process does: one call of the program, its output in `folder/../shown`."""
    os.setsid()
    os.chdir(folder)
    shown = os.open("../shown", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(shown, stream)
    sys.stdin = open(os.devnull)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.argv = ["ance", *words]
    from ance_cli.cli.main import run as program

    program()


def run(kept, words):
    """(exit code, what was printed) of a call in a new copy of the folder `kept`; the code is
    negative after a signal, None after a hang."""
    folder = kept.parent / "w"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(kept, folder, symlinks=True)
    process = FORKS.Process(target=_call, args=(folder, [str(word) for word in words]))
    process.start()
    process.join(SECONDS)
    code = process.exitcode
    if code is None:  # with the processes that it started
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    return code, (kept.parent / "shown").read_text(errors="replace")


def problem_of(code, shown):
    """Whether the program ended as it never should."""
    return code is None or code == 1 or code < 0 or "Traceback" in shown


def numbers(each):
    """Values in, at and outside of the range of a setting."""
    setting, whole = each.setting, each.type is int
    ends = [
        end
        for end in (setting.at_least, setting.above, setting.at_most, setting.below)
        if end is not None
    ]
    step = 1 if whole else 1e-9
    near = [value for end in ends for value in (end - step, end, end + step)]
    huge = [2**31 - 1, 2**31, -(2**31), 2**63, 2**64, 10**30] if whole else [3.3e38, 3.5e38, 1e-300]
    return [str(int(v) if whole else v) for v in (*near, *huge)]


def values(each):
    if each.choices:
        return [*each.choices[:2], "", "nothing"]
    if each.type in (int, float):
        return [*numbers(each), *WORDS[:9]]
    return WORDS


@pytest.fixture
def kept(made, tmp_path):  # noqa: F811
    """The world that every call gets a copy of; its run reads the data of the copy."""
    folder = tmp_path / "kept"
    shutil.copytree(made, folder, symlinks=True)
    facts = folder / "run" / "run.json"
    facts.write_text(facts.read_text().replace(str(made.resolve()), str(tmp_path / "w")))
    (folder / "run" / "switches.jsonl").write_text('{"step":4,"generation":1}\n')
    shutil.copy(folder / "bm25.trec", folder / "again.trec")
    make_reader(folder / "reader", "extractive")
    return folder


@pytest.mark.parametrize("command", CALLS)
def test_no_value_of_a_setting_ends_in_a_traceback(kept, command):
    rng = random.Random(f"values of {command}")
    tried = [each for each in COMMANDS[command].settings if each.name not in NOT_TRIED]
    for other in TRIED_ELSEWHERE.get(command, ()):
        theirs = {each.name for each in COMMANDS[other].settings}
        tried = [each for each in tried if each.name not in theirs]
    failed = []
    for each in tried:
        if each.type is bool or not each.flags:
            continue
        whole = values(each)
        for value in rng.sample(whole, min(len(whole), 1 if command in HEAVY else 3)):
            code, shown = run(kept, [*CALLS[command], f"{each.flags[0]}={value}"])
            if problem_of(code, shown):
                failed.append(f"{each.flags[0]}={value[:60]!r}: {code}: {shown[-600:]}")
    assert not failed, "\n".join(failed)


# ---------------------------------------------------------------- files


FIELDS = [b"null", b"true", b"[]", b"{}", b"1e999", b"-0", b"9" * 400, b'"\\u0000"', b'"\\ud800"',
          b'"\x1b[2J"', b'"' + "\N{SNOWMAN}".encode() * 2000 + b'"']  # fmt: skip


def with_another_value(rng, value):
    """A JSON value with one of its parts, at any depth, replaced."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        return {**value, key: with_another_value(rng, value[key])}
    return rng.choice([None, True, [], {}, -1, 0, 1e300, 2**63 - 1, "", "1", "\x00\x1b[2J", [[]]])


def junk(rng, whole, name):
    """Bytes in place of a file: one of the ways in which files arrive broken."""
    if name.endswith(".json") and rng.random() < 0.5:
        return json.dumps(with_another_value(rng, json.loads(whole))).encode()
    lines = whole.split(b"\n")
    place = rng.randrange(max(1, len(lines) - 1))
    field = rng.choice(FIELDS)

    def one_value(line):
        try:
            record = json.loads(line)
            key = rng.choice(list(record))
        except (ValueError, IndexError, TypeError):
            return b"\t".join(rng.choice([field, part]) for part in line.split(b"\t"))
        parts = (json.dumps(k).encode() + b":" + (field if k == key else json.dumps(v).encode())
                 for k, v in record.items())  # fmt: skip
        return b"{" + b",".join(parts) + b"}"

    kind = rng.randrange(8)
    if kind == 0:
        return whole[: rng.randrange(len(whole))]
    if kind == 1:
        return b"\xef\xbb\xbf" + whole
    if kind == 2:
        return whole.replace(b"\n", b"\r\n") + b"\x00\x1a"
    if kind == 3:
        return bytes(rng.randrange(256) for _ in range(200))
    if kind == 4:
        return b"[" * 3000 + b"\n" + whole
    if kind == 5:
        return b""
    lines[place] = one_value(lines[place])
    return b"\n".join(lines)


FILES = {
    "data/corpus.jsonl": [
        "bm25-negatives",
        "encode",
        "generate-queries",
        "import",
        "merge",
        "search",
        "tokenize",
    ],
    "data/queries.jsonl": ["bm25-negatives", "mine", "import", "search"],
    "data/qrels/dev.tsv": ["eval", "search", "import"],
    "data/qrels/train.tsv": ["bm25-negatives", "mine", "merge"],
    "bm25.trec": ["eval", "fuse"],
    "n.jsonl": ["export", "train-segment"],
    "ckpt/config.json": ["encode", "checkpoint"],
    "ckpt/modules.json": ["encode", "checkpoint"],
    "ckpt/ance.json": ["encode", "checkpoint"],
    "ckpt/config_sentence_transformers.json": ["encode", "checkpoint"],
    "ckpt/tokenizer.json": ["tokenize", "checkpoint"],
    "ckpt/tokenizer_config.json": ["tokenize"],
    "emb/manifest.json": ["search", "index", "mine"],
    "emb/ids.txt": ["search", "index"],
    "run/run.json": ["status", "report"],
    "run/metrics.jsonl": ["status", "report"],
    "run/events.jsonl": ["status", "report"],
    "run/segments.jsonl": ["status", "report", "refresh"],
    "run/switches.jsonl": ["status", "report"],
    "run/negatives.json": ["status", "report", "refresh"],
    "run/refresh.json": ["status", "report", "refresh"],
    "run/generations/0001/manifest.json": ["status", "report", "refresh"],
    "run/generations/0001/dev.json": ["report"],
    "run/generations/0001/negatives.jsonl.manifest.json": ["report"],
}


@pytest.mark.parametrize("name", FILES)
def test_no_bytes_of_a_file_end_in_a_traceback(kept, name):
    rng = random.Random(f"bytes of {name}")
    path = kept / name
    whole, failed = path.read_bytes(), []
    for nth in range(12):
        content = junk(rng, whole, name)
        path.write_bytes(content)
        command = rng.choice(FILES[name])
        skips = nth % 6 == 5 and any(s.name == "skip_bad" for s in COMMANDS[command].settings)
        code, shown = run(kept, [*CALLS[command], *(["--skip-bad"] if skips else [])])
        if problem_of(code, shown):
            failed.append(f"{command} with {content[:80]!r}: {code}: {shown[-600:]}")
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("command", ["search", "import", "encode"])
def test_no_damaged_compressed_file_ends_in_a_traceback(kept, ending, command):
    rng = random.Random(f"{command} {ending}")
    plain = kept / "data" / "corpus.jsonl"
    pack = gzip.compress if ending == ".gz" else zstandard.ZstdCompressor().compress
    whole, path = pack(plain.read_bytes()), Path(f"{plain}{ending}")
    plain.unlink()
    failed = []
    for nth in range(12):
        content = bytearray(whole[: rng.randrange(len(whole))] if nth % 2 else whole)
        for _ in range(nth % 3 + 1):
            if content:
                content[rng.randrange(min(len(content), 40 if nth < 6 else 10**9))] ^= 255
        path.write_bytes(content)
        code, shown = run(kept, CALLS[command])
        if problem_of(code, shown):
            failed.append(f"{bytes(content[:40])!r}: {code}: {shown[-600:]}")
    assert not failed, "\n".join(failed)
