"""Killed at any instant and repeated: old or new, never half, and the same result."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from ance_cli.errors import ResourceExhausted
from ance_cli.formats.journal import RECORDS
from ance_cli.models import cross_encoder, extractive_reader, language_model
from tests.world import (
    AnceInside,
    jsonl,
    make_cross_encoder,
    make_dataset,
    make_reader,
    tree,
)


def wait_for(condition, process, seconds=90):
    """Wait until something has happened while the process runs."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.005)
    raise AssertionError("nothing happened in time")


def content_of(output):
    """The bytes of an output, of a folder without its manifest."""
    if output.is_file():
        return output.read_bytes()
    return {name: data for name, data in tree(output).items() if name != "manifest.json"}


TRAIN = ["train-segment", "bm25.jsonl", "--data", "data", "--steps", 30, "--batch-size", 8,
         "--lr", "1e-3", "--log-every", 1, "--state-minutes", "0.00001"]  # fmt: skip


@pytest.fixture
def negatives(inside, dataset):
    inside("bm25-negatives", "--data", "data", "--engine", "bm25s", "--depth", 20, "--negatives", 5,
           "-o", "bm25.jsonl")  # fmt: skip


def without_rates(records):
    rates = ("tokens_per_s", "steps_per_s", "mfu")
    return [{k: v for k, v in record.items() if k not in rates} for record in records]


RECIPES = {
    "plain": [],
    "everything": ["--optimizer", "lamb", "--accumulation", 2, "--grad-cache", 4, "--in-batch",
                   "random", "--towers", "two", "--negatives-per-positive", 2, "--schedule",
                   "cosine", "--warmup-steps", 5],
}  # fmt: skip


@pytest.mark.parametrize("recipe", ["plain", pytest.param("everything", marks=pytest.mark.long)])
def test_training_killed_is_training_uninterrupted(ance, negatives, checkpoint, recipe):
    """SIGKILL in the middle of the steps, then the same command: same losses, same bytes. Dropout
    is the checkpoint's."""
    train = [*TRAIN, "--ckpt", checkpoint, *RECIPES[recipe]]
    ance(*train, "-o", "whole")
    whole = jsonl(ance.cwd / "whole" / "metrics.jsonl")
    metrics = ance.cwd / "cut" / "metrics.jsonl"
    for lines in (4, 15):
        process = ance.start(*train, "-o", "cut")
        reached = wait_for(
            lambda n=lines: metrics.exists() and metrics.read_bytes().count(b"\n") >= n, process
        )
        assert reached, process.communicate()
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (ance.cwd / "cut" / "checkpoints" / "step-00000030").exists()
    ance(*train, "-o", "cut")
    assert without_rates(jsonl(metrics)) == without_rates(whole)
    last = "checkpoints/step-00000030"
    assert tree(ance.cwd / "cut" / last) == tree(ance.cwd / "whole" / last)
    begun, finished = jsonl(ance.cwd / "cut" / "segments.jsonl")
    assert (begun["segment"], finished) == (1, {"finished": 1})


@pytest.mark.long
def test_sigterm_saves_the_state_after_the_step_in_hand(ance, negatives, checkpoint):
    train = [*TRAIN[:-2], "--ckpt", checkpoint, "-o", "run"]
    process = ance.start(*train)
    metrics = ance.cwd / "run" / "metrics.jsonl"
    assert wait_for(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= 3, process)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143, stderr
    assert (
        "is saved" in stderr
        and "run the same command to continue" in stderr
        and "Traceback" not in stderr
    )
    steps = [json.loads((path / "state.json").read_text())["step"]
             for path in (ance.cwd / "run" / "state").iterdir()]  # fmt: skip
    assert steps == [jsonl(metrics)[-1]["step"]]
    ance(*train)
    assert [record["step"] for record in jsonl(metrics)] == list(range(1, 31))


def test_a_second_writer_is_refused(ance, negatives, checkpoint):
    train = [*TRAIN, "--ckpt", checkpoint, "-o", "run"]
    process = ance.start(*train)
    lease = ance.cwd / "run" / "lease" / "trainer"
    assert wait_for(lambda: lease.exists() and lease.stat().st_size, process)
    found = ance(*train, code=6)
    assert f"is being written by process {process.pid} on" in found.stderr
    process.kill()
    process.wait()


def encode_killed(ance, checkpoint, data, output, at, begun="."):
    process = ance.start("encode", "--ckpt", checkpoint, "--data", data, "-o", output)
    partial = ance.cwd / f".{output}.partial"
    wait_for(lambda: (partial / begun).exists(), process)
    time.sleep(at)
    process.kill()
    process.wait()
    return partial


@pytest.mark.long
def test_encode_killed_is_encode_uninterrupted(ance, dataset, checkpoint):
    ance("encode", "--ckpt", checkpoint, "--data", "data", "-o", "whole")
    for at in (0.0, 0.01, 0.1):
        encode_killed(ance, checkpoint, "data", "cut", at)
        assert not (ance.cwd / "cut").exists() or (ance.cwd / "cut" / "manifest.json").exists()
    ance("encode", "--ckpt", checkpoint, "--data", "data", "-o", "cut")
    for name in ("embeddings.npy", "ids.txt", "doc_offsets.npy"):
        assert (ance.cwd / "cut" / name).read_bytes() == (ance.cwd / "whole" / name).read_bytes()
    assert not (ance.cwd / ".cut.partial").exists()


def test_only_missing_blocks_are_encoded(ance, dataset, checkpoint, monkeypatch, tmp_path):
    """In process, with small blocks: a crash in the third leaves two, which are not redone."""
    from ance_cli.encoding import encode as stage
    from ance_cli.encoding import tokenize
    from ance_cli.formats.dataset import locate
    from ance_cli.models import inference
    from ance_cli.models.checkpoint import Checkpoint

    monkeypatch.setattr(tokenize, "BLOCK_DOCS", 10)
    real = inference.InferenceEngine.encode
    calls = []

    def crashing(self, rows, **listeners):
        calls.append(rows.num_rows)
        if len(calls) == 3:
            raise RuntimeError("power cut")
        return real(self, rows, **listeners)

    arguments = (Checkpoint(checkpoint), locate(dataset))
    stage.encode(*arguments, tmp_path / "whole")
    monkeypatch.setattr(inference.InferenceEngine, "encode", crashing)
    with pytest.raises(RuntimeError):
        stage.encode(*arguments, tmp_path / "cut")
    assert not (tmp_path / "cut").exists()
    calls[:] = [0] * 10
    found = stage.encode(*arguments, tmp_path / "cut")
    assert calls[10:] == [10, 10, 10, 10, 4] and found["rows"] == 64
    for name in ("embeddings.npy", "ids.txt", "doc_offsets.npy"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


DATA = ["--data", "data"]
SLOW_READERS = {
    "rerank": ["rerank", "bm25.trec", *DATA, "--depth", 20, "--cross-encoder", "{cross}"],
    "mine": ["mine", *DATA, "--embeddings", "emb", "--depth", 20, "--mix", "ann:1,random:1",
             "--ckpt", "{ckpt}", "--teacher", "{cross}", "--teacher-max", 0.5],
    "bm25-negatives": ["bm25-negatives", *DATA, "--engine", "bm25s", "--depth", 20, "--teacher",
                       "{cross}"],
    "read": ["read", "bm25.trec", *DATA, "--split", "dev", "--depth", 2, "--reader", "{reader}"],
    "generate-queries": ["generate-queries", *DATA, "--model", "writer", "--round-trip-depth", 0,
                         "--max-new-tokens", 4, "--batch-size", 5, "--temperature", 1],
}  # fmt: skip


class Slow:
    """Commands in which a model reads texts piece by piece: how many it has read, and a stop."""

    def __init__(self, places):
        self._places = places
        self.pieces, self._room = 0, sys.maxsize

    def __call__(self, stage):
        return self.filled(SLOW_READERS[stage])

    def filled(self, words):
        return [self._places.get(word, word) for word in words]

    def stop_after(self, count):
        """End the command with the piece after the next `count`."""
        self._room = self.pieces + count

    def counting(self, real):
        def read(*arguments, **settings):
            if self.pieces >= self._room:
                raise ResourceExhausted("power cut")
            self.pieces += 1
            return real(*arguments, **settings)

        return read


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, checkpoint):
    """What such commands read, with two cross-encoders that differ in one weight."""
    folder = tmp_path_factory.mktemp("prepared")
    make_dataset(folder / "data")
    made_everything(AnceInside(folder), checkpoint)
    other = shutil.copytree(make_cross_encoder(folder / "cross"), folder / "other-cross")
    weights = load_file(other / "model.safetensors")
    weights["classifier.bias"] += 1.0
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    make_reader(folder / "reader", "extractive")
    return folder


@pytest.fixture
def slow(inside, prepared, checkpoint, monkeypatch):
    shutil.copytree(prepared, inside.cwd, dirs_exist_ok=True)
    found = Slow({"{ckpt}": checkpoint, "{cross}": "cross", "{other}": "other-cross",
                  "{reader}": "reader"})  # fmt: skip
    monkeypatch.setattr(cross_encoder, "_BLOCK", 5)
    counted = ((cross_encoder.CrossEncoder, "_logits"), (extractive_reader._SpanReader, "_spans"),
               (language_model.LanguageModel, "generate"))  # fmt: skip
    for owner, name in counted:
        monkeypatch.setattr(owner, name, found.counting(getattr(owner, name)))
    return found


@pytest.mark.parametrize("stage", SLOW_READERS)
def test_what_a_model_has_read_is_not_read_again(inside, slow, stage):
    """Stopped twice: each piece is read once, the output is that of a call that nothing stopped,
    and of the work nothing is left."""
    command = slow(stage)
    inside(*command, "-o", "whole.out")
    total = slow.pieces
    assert total >= 7
    left = inside.cwd / ".cut.out.journal.partial" / RECORDS
    for count in (3, 2):
        slow.stop_after(count)
        inside(*command, "-o", "cut.out", code=5)
        assert not (inside.cwd / "cut.out").exists() and left.stat().st_size
    slow.stop_after(total - 5)
    found = inside(*command, "-o", "cut.out")
    assert "cut.out: continuing an interrupted call" in found.stderr
    assert slow.pieces == 2 * total
    assert content_of(inside.cwd / "cut.out") == content_of(inside.cwd / "whole.out")
    assert not left.parent.exists()


OTHERS = {
    "length": ["--pair-length", 12],
    "dtype": ["--dtype", "fp32"],
    "depth": ["--depth", 19],
    "model": ["--cross-encoder", "{other}"],
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_was_read_is_not_taken_for_other_settings_and_not_dropped(inside, slow, what):
    """The scores of another model, length or number format, of the same texts."""
    command = [*slow("rerank"), "--dtype", "bf16"]
    inside(*command, "-o", "whole.trec")
    total = slow.pieces
    slow.stop_after(3)
    inside(*command, "-o", "cut.trec", code=5)
    other = slow.filled(OTHERS[what])
    refused = inside(*command, *other, "-o", "cut.trec", code=4)
    assert "exists as an unfinished run with other settings" in refused.stderr
    assert "--force" in refused.stderr
    slow.stop_after(total - 3)
    inside(*command, "-o", "cut.trec")
    assert (inside.cwd / "cut.trec").read_bytes() == (inside.cwd / "whole.trec").read_bytes()


def test_smaller_batches_continue_where_larger_ones_stopped(inside, slow):
    """As the advice is where memory runs out."""
    command = slow("rerank")
    slow.stop_after(3)
    inside(*command, "-o", "cut.trec", code=5)
    slow.stop_after(sys.maxsize)
    one_by_one = [*command, "--batch-tokens", 8]
    before = slow.pieces
    found = inside(*one_by_one, "-o", "cut.trec")
    assert "continuing an interrupted call" in found.stderr
    left, before = slow.pieces - before, slow.pieces
    inside(*one_by_one, "-o", "whole.trec")
    assert slow.pieces - before == left + 3 * cross_encoder._BLOCK


def test_force_drops_what_was_read(inside, slow):
    command = slow("rerank")
    slow.stop_after(3)
    inside(*command, "-o", "cut.trec", code=5)
    before = slow.pieces
    slow.stop_after(sys.maxsize)
    inside(*command, "-o", "whole.trec")
    total, before = slow.pieces - before, slow.pieces
    found = inside(*command, "-o", "cut.trec", "--force")
    assert slow.pieces - before == total and "going on" not in found.stderr
    assert not (inside.cwd / ".cut.trec.journal.partial").exists()


def test_scores_that_are_not_finite_are_not_kept(inside, slow, monkeypatch):
    from ance_cli.models.cross_encoder import CrossEncoder

    command = slow("rerank")
    real = CrossEncoder._logits
    monkeypatch.setattr(CrossEncoder, "_logits", lambda *given: real(*given) * np.nan)
    inside(*command, "-o", "out.trec", code=3)
    monkeypatch.setattr(CrossEncoder, "_logits", real)
    inside(*command, "-o", "out.trec")


@pytest.mark.long
def test_reranking_killed_is_reranking_uninterrupted(ance, slow):
    """SIGKILL of the program while its model reads."""
    run = [f"q{query} Q0 d{doc} {doc + 1} {99 - doc} t\n"
           for query in range(24) for doc in range(64)]  # fmt: skip
    (ance.cwd / "bm25.trec").write_text("".join(run))
    (ance.cwd / "bm25.trec.manifest.json").unlink()  # it is a run of our own now
    command = [*slow("rerank"), "--depth", 64, "--batch-tokens", 64, "--gpus", "none"]
    ance(*command, "-o", "whole.trec")
    left = ance.cwd / ".cut.trec.journal.partial" / RECORDS
    process = ance.start(*command, "-o", "cut.trec")
    assert wait_for(lambda: left.exists() and left.stat().st_size > 500, process)
    process.kill()
    process.wait()
    assert left.exists() and not (ance.cwd / "cut.trec").exists()
    found = ance(*command, "-o", "cut.trec")
    assert "continuing an interrupted call" in found.stderr
    assert (ance.cwd / "cut.trec").read_bytes() == (ance.cwd / "whole.trec").read_bytes()
    assert not left.exists()


def test_an_unfinished_output_of_other_settings_is_refused(ance, inside, dataset, checkpoint):
    partial = encode_killed(ance, checkpoint, "data", "emb", 0.0, begun="plan.json")
    assert (partial / "plan.json").exists()
    arguments = [
        "encode",
        "--ckpt",
        checkpoint,
        "--data",
        "data",
        "-o",
        "emb",
        "--passage-length",
        9,
    ]
    found = inside(*arguments, code=4)
    assert "exists as an unfinished embeddings with other settings" in found.stderr
    inside(*arguments, "--force")


def test_head_closes_the_pipe_early(ance, dataset):

    command = (
        f"set -o pipefail; {sys.executable} -m ance_cli bm25-negatives --data data --engine bm25s "
        "--with-text -o - | head -c 100"
    )
    found = subprocess.run(
        ["bash", "-c", command], cwd=ance.cwd, env=ance.environment(), capture_output=True
    )
    assert found.returncode == 0 and len(found.stdout) == 100, found.stderr


def made_everything(inside, checkpoint):
    """What the later stages read."""
    shutil.copytree(inside.cwd / "data", inside.cwd / "other")
    shutil.copytree(inside.cwd / "data", inside.cwd / "single")
    (inside.cwd / "single" / "qrels" / "dev.tsv").unlink()
    inside("encode", "--ckpt", checkpoint, "--data", "data", "-o", "emb")
    inside("search", "--data", "data", "--split", "dev", "--engine", "bm25s", "-o", "bm25.trec")
    make_reader(inside.cwd / "writer", "seq2seq")


def every_writer(checkpoint):
    """(output, command) of each stage that makes something."""
    dense = ["--data", "data", "--ckpt", checkpoint, "--embeddings", "emb"]
    return {
        "tokenize": ("tok", ["tokenize", "--ckpt", checkpoint, "--data", "data"]),
        "encode": ("emb", ["encode", "--ckpt", checkpoint, "--data", "data", "--output-dtype",
                           "float32"]),
        "index": ("idx", ["index", "emb"]),
        "mine": ("ann.jsonl", ["mine", *dense, "--depth", 60]),
        "search": ("dev.trec", ["search", "--split", "dev", *dense]),
        "merge": ("both", ["merge", "data", "other"]),
        "split": ("divided", ["split", "single"]),
        "generate-queries": ("gen", ["generate-queries", "--data", "data", "--model", "writer",
                                     "--round-trip-depth", 0, "--max-new-tokens", 4,
                                     "--temperature", 1, "--batch-size", 4]),
        "bm25-negatives": ("big.jsonl", ["bm25-negatives", "--data", "data", "--engine", "bm25s",
                                         "--with-text", "--depth", 60, "--negatives", 60]),
        "train-segment": ("run", ["train-segment", "--steps", 0, "--total-steps", 5, "--data",
                                  "data", "--ckpt", checkpoint]),
    }  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_full_disk(inside, dataset, checkpoint):
    """A tmpfs without room: exit 5, a hint, nothing under the output's name; the same command when
    there is room again, on what the first call left, makes it."""
    made_everything(inside, checkpoint)
    small = inside.cwd / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small])
    if mounted.returncode:
        pytest.skip("this machine does not let us mount a tmpfs")
    try:
        for output, arguments in every_writer(checkpoint).values():
            filler = small / "filler"
            filler.write_bytes(bytes(shutil.disk_usage(small).free - 4096))
            found = inside(*arguments, "-o", small / output, code=5)
            assert "no room left on the disk" in found.stderr and "hint:" in found.stderr
            assert not (small / output).exists()
            filler.unlink()
            inside(*arguments, "-o", small / output)
            for path in small.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.long
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize(
    "stage",
    [
        "tokenize",
        "encode",
        "index",
        "mine",
        "search",
        "merge",
        "generate-queries",
        "bm25-negatives",
    ],
)
def test_a_stage_that_was_stopped_makes_the_bytes_of_one_that_was_not(
    ance, inside, dataset, checkpoint, stage, signum
):
    """Stopped as soon as a byte is on the disk, then later: old or new, never half."""
    made_everything(inside, checkpoint)
    output, arguments = every_writer(checkpoint)[stage]
    inside(*arguments, "-o", f"whole-{output}")
    for at in (0.0, 0.02, 0.1):
        before = set(os.listdir(ance.cwd))
        process = ance.start(*arguments, "-o", f"cut-{output}", "--force")
        wait_for(lambda: set(os.listdir(ance.cwd)) - before, process)  # noqa: B023
        time.sleep(at)
        process.send_signal(signum)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode in (0, -signum, 128 + signum), stderr
        assert "Traceback" not in stderr
    inside(*arguments, "-o", f"cut-{output}")
    whole, cut = ance.cwd / f"whole-{output}", ance.cwd / f"cut-{output}"
    assert content_of(cut) == content_of(whole)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["search", "--corpus", "data/corpus.jsonl", "--engine", "bm25s", "--queries", "-"],
         "stdin: there is no query"),
        (["train-segment", "-", "--data", "data", "--ckpt", "{ckpt}", "--steps", 2, "-o", "run"],
         "the file has no negatives"),
    ],
)  # fmt: skip
def test_stdin_that_was_closed_early(ance, dataset, checkpoint, arguments, words):
    filled = [checkpoint if word == "{ckpt}" else word for word in arguments]
    found = ance(*filled, stdin="", code=3)
    assert words in found.stderr and "hint:" in found.stderr
    assert os.listdir(ance.cwd) == ["data"]
