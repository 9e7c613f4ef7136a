"""Arguments and files that nobody meant: no exit code is 1, and no traceback is printed.

The values come from the declared settings, the bytes from the formats. The seed is fixed. Takes
long and much memory, so it runs only where `ANCE_FUZZ` is set.
"""

import gzip
import json
import os
import random
import resource
import shutil
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path

import pytest
import zstandard

from ance_cli.cli.command import COMMANDS
from ance_cli.cli.exit import exit_code_of
from ance_cli.cli.main import app
from tests.commands.test_broken_inputs import made  # noqa: F401  (a fixture)

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif("ANCE_FUZZ" not in os.environ, reason="ANCE_FUZZ is not set"),
]

DENSE = ["--data", "data", "--ckpt", "ckpt", "--gpus", "none"]
CALLS = {
    "import": ["import", "beir:data", "-o", "out"],
    "merge": ["merge", "data", "other", "-o", "out"],
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
    "train-segment": [
        "train-segment", "n.jsonl", *DENSE, "--steps", "1", "--batch-size", "2", "-o", "out",
    ],
}  # fmt: skip
"""One whole call of each command that runs in this process."""

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


def run(folder, words):
    """(exit code, what was printed) of a call in this process; an exception is exit code 1."""
    out, err = TextIOWrapper(BytesIO()), StringIO()
    with chdir(folder), redirect_stdout(out), redirect_stderr(err):
        try:
            code = exit_code_of(lambda: app(list(words)))
        except Exception as error:
            import traceback

            code = 1
            err.write("".join(traceback.format_exception(error)[-4:]))
    shutil.rmtree(folder / "out", ignore_errors=True)
    for path in folder.glob("*out*"):
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
    return code, err.getvalue()


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


@pytest.fixture(autouse=True)
def _bounded_memory():
    """A call that wants all memory fails by itself, and does not take the machine along."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def world(made, tmp_path):  # noqa: F811
    folder = tmp_path / "w"
    shutil.copytree(made, folder, symlinks=True)
    facts = folder / "run" / "run.json"
    facts.write_text(facts.read_text().replace(str(made.resolve()), str(folder)))
    shutil.copy(folder / "bm25.trec", folder / "again.trec")
    return folder


@pytest.mark.parametrize("command", CALLS)
def test_no_value_of_a_setting_ends_in_a_traceback(world, command, request):
    rng = random.Random(f"values of {command}")
    tried = [each for each in COMMANDS[command].settings if each.name not in NOT_TRIED]
    failed = []
    for each in tried:
        if each.type is bool or not each.flags:
            continue
        whole = values(each)
        heavy = command in ("diagnose", "train-segment")
        for value in rng.sample(whole, min(len(whole), 1 if heavy else 3)):
            code, shown = run(world, [*CALLS[command], f"{each.flags[0]}={value}"])
            if code == 1 or "Traceback" in shown:
                failed.append(f"{each.flags[0]}={value[:60]!r}: {shown[-600:]}")
    assert not failed, "\n".join(failed)


# ---------------------------------------------------------------- files


FIELDS = [b"null", b"true", b"[]", b"{}", b"1e999", b"-0", b"9" * 400, b'"\\u0000"', b'"\\ud800"',
          b'"\x1b[2J"', b'"' + "\N{SNOWMAN}".encode() * 2000 + b'"']  # fmt: skip


def junk(rng, whole, name):
    """Bytes in place of a file: one of the ways in which files arrive broken."""
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
    "data/corpus.jsonl": ["bm25-negatives", "encode", "import", "merge", "search", "tokenize"],
    "data/queries.jsonl": ["bm25-negatives", "mine", "import", "search"],
    "data/qrels/dev.tsv": ["eval", "search", "import"],
    "data/qrels/train.tsv": ["bm25-negatives", "mine", "merge"],
    "bm25.trec": ["eval", "fuse"],
    "n.jsonl": ["export", "train-segment"],
    "ckpt/config.json": ["encode", "checkpoint"],
    "ckpt/modules.json": ["encode", "checkpoint"],
    "ckpt/tokenizer.json": ["tokenize", "checkpoint"],
    "ckpt/tokenizer_config.json": ["tokenize"],
    "emb/manifest.json": ["search", "index", "mine"],
    "emb/ids.txt": ["search", "index"],
    "run/run.json": ["status", "report"],
    "run/metrics.jsonl": ["status", "report"],
}


@pytest.mark.parametrize("name", FILES)
def test_no_bytes_of_a_file_end_in_a_traceback(world, name):
    rng = random.Random(f"bytes of {name}")
    path = world / name
    if not path.exists():
        pytest.skip(f"this version has no {name}")
    whole, failed = path.read_bytes(), []
    for nth in range(12):
        content = junk(rng, whole, name)
        path.write_bytes(content)
        command = rng.choice(FILES[name])
        skips = nth % 6 == 5 and any(s.name == "skip_bad" for s in COMMANDS[command].settings)
        code, shown = run(world, [*CALLS[command], *(["--skip-bad"] if skips else [])])
        if code == 1 or "Traceback" in shown:
            failed.append(f"{command} with {content[:80]!r}: {shown[-600:]}")
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("command", ["search", "import", "encode"])
def test_no_damaged_compressed_file_ends_in_a_traceback(world, ending, command):
    rng = random.Random(f"{command} {ending}")
    plain = world / "data" / "corpus.jsonl"
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
        code, shown = run(world, CALLS[command])
        if code == 1 or "Traceback" in shown:
            failed.append(f"{bytes(content[:40])!r}: {shown[-600:]}")
    assert not failed, "\n".join(failed)
