"""The token cache as a stage: made once, found again, never taken for another one."""

import json
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from ance_cli.call import Call, SkippedLines
from ance_cli.config import EncodeConfig
from ance_cli.encoding import tokenize as stage
from ance_cli.encoding.encode import encode
from ance_cli.encoding.tokenize import corpus_tokens, tokenize
from ance_cli.errors import BadInput, Mismatch
from ance_cli.formats import lease
from ance_cli.formats.dataset import locate, read_corpus
from ance_cli.formats.jsonl import open_output
from ance_cli.formats.tokens import TokenCache
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.dual import load_dual, save_dual
from ance_cli.models.tokens import Tokenizer
from ance_cli.progress import Silent


@pytest.fixture
def opened(checkpoint, dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("ANCE_CACHE_DIR", str(tmp_path / "cache"))
    return Checkpoint(checkpoint), locate(dataset)


@pytest.fixture
def calls(monkeypatch):
    """How often the tokenizer was called."""
    found = []
    real = Tokenizer.__call__

    def counted(self, texts, side):
        found.append(side)
        return real(self, texts, side)

    monkeypatch.setattr(Tokenizer, "__call__", counted)
    return found


class Said(list):
    """A reporter that remembers what was said."""

    def say(self, text):
        self.append(text)

    warn = say

    def task(self, *_, **__):
        from ance_cli.progress import Silent

        return Silent().task("", 0, "")


MAXP = {"passage_length": 8, "max_segments": 3}


@pytest.mark.parametrize(
    "settings", [{}, {**MAXP, "segmentation": "special"}, {**MAXP, "segmentation": "slice"}]
)
@pytest.mark.parametrize("block_docs", [16_384, 10])
def test_the_cache_holds_what_the_tokenizer_makes(opened, monkeypatch, settings, block_docs):
    monkeypatch.setattr(stage, "BLOCK_DOCS", block_docs)
    checkpoint, dataset = opened[0].with_settings(**settings), opened[1]
    cache = corpus_tokens(checkpoint, dataset)
    passages = list(read_corpus(dataset.corpus))
    expected = Tokenizer(checkpoint)([p.joined(" ") for p in passages], "passage")
    assert cache.num_blocks == -(-64 // block_docs)
    start = 0
    for block in range(cache.num_blocks):
        found = cache.block(block)
        for row in range(found.num_rows):
            np.testing.assert_array_equal(found.row(row), expected.row(start + row))
        start += found.num_rows
    assert start == expected.num_rows
    np.testing.assert_array_equal(np.diff(cache.doc_offsets), expected.row_counts)
    assert list(cache.doc_ids()) == [p.doc_id for p in passages]


@pytest.mark.parametrize("query_length", [12, 60])
def test_a_checkpoint_with_other_weights_takes_the_same_cache(
    opened, calls, tmp_path, query_length
):
    checkpoint, dataset = opened
    first = corpus_tokens(checkpoint, dataset)
    dual = load_dual(checkpoint)
    dual.query.chain[2].linear.bias.data += 1
    settings = replace(checkpoint.settings, query_length=query_length)
    save_dual(dual, settings, tmp_path / "trained")
    trained = Checkpoint(tmp_path / "trained")
    assert trained.tower_hash("passage") != checkpoint.tower_hash("passage")
    del calls[:]
    assert corpus_tokens(trained, dataset).folder == first.folder
    assert calls == []


@pytest.mark.parametrize(
    "settings",
    [
        {"passage_length": 23},
        {"separator": " : "},
        {"lowercase": True},
        {"passage_prefix": "passage: "},
        {"segmentation": "special"},
        {"segmentation": "slice", "max_segments": 2},
        {"segmentation": "slice", "max_segments": 3},
    ],
)
def test_what_shapes_the_tokens_is_in_the_key(opened, settings):
    checkpoint, dataset = opened
    plain = stage.tokens_plan(checkpoint, dataset, None, None)
    assert stage.tokens_plan(checkpoint.with_settings(**settings), dataset, None, None).output != (
        plain.output
    )
    queries = checkpoint.with_settings(query_length=5, query_prefix="query: ")
    assert stage.tokens_plan(queries, dataset, None, None).output == plain.output


def test_another_corpus_or_tokenizer_is_another_cache(opened, tmp_path):
    import shutil

    checkpoint, dataset = opened
    plain = stage.tokens_plan(checkpoint, dataset, None, None).output
    changed = shutil.copytree(checkpoint.path, tmp_path / "changed")
    text = (changed / "tokenizer.json").read_text()
    (changed / "tokenizer.json").write_text(text.replace("river", "RIVER"))
    assert stage.tokens_plan(Checkpoint(changed), dataset, None, None).output != plain
    with open(dataset.corpus, "a") as handle:
        handle.write('{"_id": "more", "text": "bread"}\n')
    assert stage.tokens_plan(checkpoint, dataset, None, None).output != plain


def test_a_second_process_waits_for_the_first(opened, calls, monkeypatch):
    monkeypatch.setattr(lease, "WAIT_SECONDS", 0.01)
    checkpoint, dataset = opened
    plan = stage.tokens_plan(checkpoint, dataset, None, None)
    said, found = Said(), []

    def second():
        found.append(corpus_tokens(checkpoint, dataset, call=Call(reporter=said)))

    with lease.hold(lease.lease_name(plan.output), "the cache"):
        waiting = threading.Thread(target=second)
        waiting.start()
        until = time.monotonic() + 30
        while not said and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.05)
        assert not found and calls == []
    waiting.join(60)
    waited, cut = said
    assert "is being written by process" in waited and waited.endswith("waiting for that process")
    assert " of 64 passages have more than 24 tokens and are cut" in cut
    assert found[0].num_docs == 64


def test_of_two_at_once_one_makes_it(opened, calls, monkeypatch):
    monkeypatch.setattr(lease, "WAIT_SECONDS", 0.01)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(corpus_tokens(*opened))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({cache.fingerprint for cache in found}) == 1 and len(found) == 4
    assert len(calls) == 1


def test_what_a_killed_call_left_is_made_again(opened):
    checkpoint, dataset = opened
    plan = stage.tokens_plan(checkpoint, dataset, None, None)
    (plan.open_partial() / "tokens.npy").write_bytes(b"the first half")
    assert corpus_tokens(checkpoint, dataset).num_docs == 64
    assert not plan.partial.exists()


def test_broken_lines_do_not_poison_the_cache(opened):
    checkpoint, dataset = opened
    with open(dataset.corpus, "a") as handle:
        handle.write('not json\n{"_id": "d3", "text": "again"}\n')
    for _ in range(2):  # made, then found: the same lines are reported
        skipped = SkippedLines()
        assert corpus_tokens(checkpoint, dataset, call=Call(skipped=skipped)).num_docs == 64
        assert skipped.count == 2 and "not valid JSON" in next(iter(skipped.reasons))
    with pytest.raises(BadInput, match=r"corpus\.jsonl:65: not valid JSON"):
        corpus_tokens(checkpoint, dataset)


def test_a_corpus_that_changes_meanwhile_is_not_kept(opened, monkeypatch):
    checkpoint, dataset = opened
    real = stage.write_tokens

    def changing(*arguments):
        with open(dataset.corpus, "a") as handle:
            handle.write('{"_id": "more", "text": "bread"}\n')
        return real(*arguments)

    monkeypatch.setattr(stage, "write_tokens", changing)
    with pytest.raises(BadInput, match="changed while it was read"):
        corpus_tokens(checkpoint, dataset)
    assert not list((dataset.corpus.parent.parent / "cache" / "tokens").glob("[!.]*"))


OPENED = []
"""Files that were opened since the hook was installed; a hook of Python's cannot be removed."""


@pytest.fixture
def reads_of_the_corpus(opened):
    """How often the corpus was opened since the last call of this function."""
    if not OPENED:
        sys.addaudithook(lambda event, args: OPENED.append(args[0]) if event == "open" else None)
    corpus = opened[1].corpus

    def count():
        found = sum(str(path) == str(corpus) for path in OPENED)
        OPENED[:] = [""]
        return found

    count()
    return count


def test_the_corpus_is_read_once_for_its_hash_and_once_for_its_texts(
    opened, reads_of_the_corpus, tmp_path
):
    encode(*opened, tmp_path / "emb", EncodeConfig(gpus="none"))
    assert reads_of_the_corpus() == 2
    encode(*opened, tmp_path / "emb", EncodeConfig(gpus="none"))
    encode(*opened, tmp_path / "emb32", EncodeConfig(gpus="none", output_dtype="float32"))
    assert reads_of_the_corpus() == 0  # hash and tokens are in the cache folder


def test_a_skipped_line_costs_no_other_read(opened, reads_of_the_corpus, tmp_path):
    with open(opened[1].corpus, "a") as handle:
        handle.write("not json\n")
    reads_of_the_corpus()
    skipped = SkippedLines()
    encode(*opened, tmp_path / "emb", EncodeConfig(gpus="none"), call=Call(skipped=skipped))
    assert reads_of_the_corpus() == 2 and skipped.count == 1


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_the_bar_counts_the_bytes_of_the_corpus(opened, tmp_path, suffix):
    checkpoint, dataset = opened
    corpus = tmp_path / f"corpus.jsonl{suffix}"
    with open_output(corpus) as handle:
        handle.write(dataset.corpus.read_bytes())
    bars = []

    class Bar:
        def __init__(self, total):
            self.total, self.done = total, 0

        def advance(self, amount=1):
            self.done += amount

    class Counting(Silent):
        @contextmanager
        def task(self, name, total, unit, done=0):
            bars.append((name, unit, Bar(total)))
            yield bars[-1][2]

    corpus_tokens(checkpoint, replace(dataset, corpus=corpus), call=Call(reporter=Counting()))
    [(name, unit, bar)] = bars
    assert (name, unit) == ("tokenising", "byte")
    assert bar.done == bar.total == corpus.stat().st_size


def test_a_changed_cache_is_refused_with_the_way_out(opened):
    checkpoint, dataset = opened
    folder = corpus_tokens(checkpoint, dataset).folder
    with open(folder / "tokens.npy", "ab") as handle:
        handle.write(b"x")
    with pytest.raises(Mismatch) as caught:
        corpus_tokens(checkpoint, dataset)
    assert "was changed after ance wrote it" in caught.value.what
    assert "ance tokenize --force" in caught.value.hint
    tokenize(checkpoint, dataset, call=Call(force=True))
    assert corpus_tokens(checkpoint, dataset).block(0).num_rows == 64


def test_the_stage(opened, tmp_path):
    checkpoint, dataset = opened
    planned = tokenize(checkpoint, dataset, tmp_path / "tokens", call=Call(dry_run=True))
    assert planned["dry_run"] and not (tmp_path / "tokens").exists()
    made = tokenize(checkpoint, dataset, tmp_path / "tokens")
    assert (made["docs"], made["rows"], made["up_to_date"]) == (64, 64, False)
    assert tokenize(checkpoint, dataset, tmp_path / "tokens")["up_to_date"]
    assert TokenCache(tmp_path / "tokens").num_tokens == made["tokens"]
    with pytest.raises(Mismatch, match="passage_length 24 -> 9"):
        corpus_tokens(checkpoint.with_settings(passage_length=9), dataset, tmp_path / "tokens")


def test_the_command(ance, dataset, checkpoint):
    call = ["tokenize", "--ckpt", checkpoint, "--data", "data", "--cache-dir", "cache"]
    made = json.loads(ance(*call, "--json").stdout)
    assert made["docs"] == 64 and "cache/tokens/" in made["output"]
    assert "up to date" in ance(*call).stderr
