"""Part 6: reranking, a short search from start to end, and what `--gpus` says of a wrong device."""

from __future__ import annotations

import time
from itertools import islice

import numpy as np
import torch

from ance_cli.config import ComputeConfig, EncodeConfig, RerankConfig
from ance_cli.encoding.encode import encode
from ance_cli.formats.dataset import locate, queries_of_split, read_corpus
from ance_cli.formats.embeddings import Embeddings
from ance_cli.formats.manifest import read_manifest
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.retrieval.rerank import CrossScoring, rerank
from benchmarks.gpu_trial.agreement import cosines
from benchmarks.gpu_trial.places import Inputs
from benchmarks.gpu_trial.profiling import profiled
from benchmarks.gpu_trial.trial import Trial

_QUERIES = 20
_DEPTH = 5


def run(trial: Trial) -> None:
    inputs = Inputs(trial.work)
    _rerank(trial, inputs)
    vectors = trial.scratch("vectors")
    search = "ance search of 20 queries, from start to end"
    with trial.arm(search):
        encode(Checkpoint(inputs.small), inputs.train(), vectors, EncodeConfig(gpus=trial.gpus))
        queries = trial.scratch("queries.tsv")
        texts = islice(queries_of_split(locate(inputs.docstrings, "test")).items(), _QUERIES)
        queries.write_text("".join(f"{query}\t{text}\n" for query, text in texts))
        done = trial.ance(
            "search", "--ckpt", inputs.small, "--data", inputs.docstrings, "--embeddings", vectors,
            "--queries", queries, "--depth", _DEPTH, "-o", trial.scratch("hits.trec"), "--gpus",
            trial.gpus, "--quiet",
        )  # fmt: skip
        trial.record(search, done.seconds)
    hidden = "without a visible GPU: the CPU encodes"
    same = "least cosine of those vectors to the device's"
    with trial.arm(hidden, same):
        on_cpu = trial.scratch("cpu-vectors")
        trial.ance("encode", "--ckpt", inputs.small, "--data", inputs.docstrings, "-o", on_cpu,
                   "--quiet", CUDA_VISIBLE_DEVICES="")  # fmt: skip
        devices = read_manifest(on_cpu, "embeddings")["ran_with"]["devices"]
        trial.record(hidden, devices == ["cpu"], devices=devices)
        both = (np.asarray(Embeddings(each).vectors, np.float32) for each in (on_cpu, vectors))
        trial.record(same, float(cosines(*both).min()))
    wrong = "--gpus with a number that is not there: exit code 2, and says so"
    with trial.arm(wrong):
        number = torch.cuda.device_count()
        done = trial.ance("encode", "--ckpt", inputs.small, "--data", inputs.docstrings, "-o",
                          trial.scratch("nothing"), "--gpus", number, expect=None)  # fmt: skip
        trial.record(wrong, done.code == 2 and f"there is no GPU {number}" in done.output,
                     code=done.code, said=done.output[-300:])  # fmt: skip


def _rerank(trial: Trial, inputs: Inputs) -> None:
    """Pairs a second of the cross-encoder, loading included, and how busy the GPU is meanwhile."""
    with trial.arm("rerank", "rerank: GPU busy"):
        num_queries, depth = trial.sizes.reranked
        run = trial.scratch("given.trec")
        corpus = read_corpus(inputs.docstrings / "corpus.jsonl")
        docs = [passage.doc_id for passage in islice(corpus, num_queries + depth)]
        queries = list(islice(queries_of_split(inputs.train()), num_queries))
        run.write_text("".join(
            f"{query} Q0 {docs[nth + place]} {place + 1} {depth - place} given\n"
            for nth, query in enumerate(queries) for place in range(depth)
        ))  # fmt: skip

        def work(name: str) -> None:
            rerank(run, inputs.train(), trial.scratch(name), CrossScoring(inputs.cross_encoder),
                   RerankConfig(depth=depth), ComputeConfig(gpus=trial.gpus))  # fmt: skip

        work("first.trec")
        started = time.perf_counter()
        work("second.trec")
        trial.record("rerank", num_queries * depth / (time.perf_counter() - started))
        if trial.cuda:
            profile = profiled(lambda: work("third.trec"))
            trial.record("rerank: GPU busy", profile.busy_percent, kernels=profile.top())
