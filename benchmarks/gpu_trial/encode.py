"""Part 2: the rate of encoding against the matrix-product rate and against the library's own
`encode`, and whether every number format gives the CPU's vectors."""

from __future__ import annotations

import importlib.util
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ance_cli.call import Call
from ance_cli.config import EncodeConfig
from ance_cli.config.sets import Dtype
from ance_cli.encoding.encode import encode
from ance_cli.formats.tokens import TokenRows, join_rows
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.devices import choose_dtype, torch_dtype
from ance_cli.models.encoder import load_encoder
from ance_cli.models.flops import forward_flops
from ance_cli.models.inference import BatchSize, InferenceEngine
from ance_cli.models.tokens import Tokenizer
from ance_cli.progress import Silent
from benchmarks.gpu_trial.agreement import Floats, cosines
from benchmarks.gpu_trial.attention import padded, with_cudnn
from benchmarks.gpu_trial.parts import PADDED_ARMS, PEERS, shape_name
from benchmarks.gpu_trial.places import Inputs
from benchmarks.gpu_trial.profiling import profiled
from benchmarks.gpu_trial.trial import Trial

_ALONE = 8
"""Rows that are encoded alone."""
_ROOM = 1 << 30
"""Bytes that a card has left when memory is to run out."""


@dataclass
class Engine:
    """An encoder as `ance encode` has it on a device, and what the engine says."""

    checkpoint: Checkpoint
    device: torch.device
    config: EncodeConfig
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokenizer = Tokenizer(self.checkpoint)
        dtype = torch_dtype(choose_dtype(self.config.dtype, self.device))
        encoder = load_encoder(self.checkpoint, "passage", dtype)
        pad_id = self.tokenizer.pad_id_of("passage")
        self._engine = InferenceEngine(
            encoder, pad_id, [self.device], self.config, self.said.append
        )

    @property
    def packs(self) -> bool:
        return self._engine.packs

    def __call__(self, rows: TokenRows, **more: Any) -> Floats:
        return self._engine.encode(rows, **more)

    def of_texts(self, texts: Sequence[str]) -> Floats:
        return self(self.tokenizer(texts, "passage"))


@dataclass(frozen=True)
class Measured:
    """Seconds of each block, and the padding in all."""

    seconds: list[float]
    rows: int
    padding: float

    @property
    def rate(self) -> float:
        """Rows a second."""
        return self.rows / sum(self.seconds)


def run(trial: Trial) -> None:
    inputs, sizes = Inputs(trial.work), trial.sizes
    cache = inputs.cache()
    blocks = [cache.block(block) for block in range(cache.num_blocks)]
    base = inputs.checkpoint(inputs.base, sizes)
    name = shape_name(sizes.base)
    with trial.arm(*_names(trial, name)):
        _rates(trial, name, base, blocks)
    with trial.arm(*(name for name in trial.numbers if name.startswith("from texts"))):
        _peers(trial, base, inputs.texts(sizes.peer_texts))
    with trial.arm("ance encode, disk and hashes included"):
        _command(trial, inputs, base)
    _agreement(trial, base, inputs.texts(sizes.compared_texts))
    name = shape_name(sizes.small)
    with trial.arm(*_names(trial, name)):
        _rates(trial, name, inputs.checkpoint(inputs.small, sizes), blocks)
    shrink = "batches shrink when memory runs out, and the vectors stay"
    if trial.cuda:
        with trial.arm(shrink):
            trial.record(shrink, _shrinks(trial, base, blocks[0]))


def _names(trial: Trial, shape: str) -> list[str]:
    return [name for name in trial.numbers if name.startswith(f"{shape}: ")]


# ---------------------------------------------------------------- rates


def _rates(trial: Trial, name: str, checkpoint: Checkpoint, blocks: list[TokenRows]) -> None:
    """Every arm of one encoder; the default comes first."""
    engine = Engine(checkpoint, trial.device, EncodeConfig())
    engine(blocks[0])  # the first call loads kernels
    _reset_peak(trial)
    default = _measure(engine, blocks)
    trial.record(f"{name}: encode", default.rate, seconds=default.seconds)
    backbone = load_encoder(checkpoint, "passage").backbone
    lengths = np.concatenate([rows.lengths for rows in blocks])
    flops = forward_flops(backbone, int(lengths.sum()), int((lengths**2).sum()))
    trial.record(f"{name}: matrix rate of encode", flops / sum(default.seconds) / 1e12)
    trial.record(f"{name}: padding", 100 * default.padding)
    if trial.cuda:
        peak = torch.cuda.max_memory_allocated(trial.device) >> 20
        trial.record(f"{name}: peak memory", peak)
        trial.record(f"{name}: batches are packed", engine.packs, said=engine.said)
        for arm, context in zip(PADDED_ARMS, (nullcontext, with_cudnn), strict=True):
            with trial.arm(f"{name}: {arm}"):
                with padded():
                    other = Engine(checkpoint, trial.device, EncodeConfig())
                with context():  # after the engine, which turns cuDNN's attention off
                    other(blocks[0])
                    found = _measure(other, blocks)
                trial.record(f"{name}: {arm}", found.rate, seconds=found.seconds)
    whole = _measure(engine, [join_rows(blocks)])
    trial.record(f"{name}: one call for all blocks", whole.rate)
    for tokens in trial.sizes.batch_tokens[1:]:
        label = f"{name}: {tokens:,} tokens a batch"
        with trial.arm(label):
            larger = Engine(checkpoint, trial.device, EncodeConfig(batch_tokens=tokens))
            larger(blocks[0])
            _reset_peak(trial)
            found = _measure(larger, blocks)
            trial.record(label, found.rate, padding=found.padding, peak_mib=_peak(trial))
    if trial.cuda:
        _profile(trial, name, engine, blocks[0])


def _measure(engine: Engine, blocks: list[TokenRows]) -> Measured:
    """One call for each block, as `ance encode` does."""
    computed = 0

    def on_batch(batch: npt.NDArray[np.int64], size: BatchSize) -> None:
        nonlocal computed
        computed += size.tokens

    seconds = []
    for rows in blocks:
        started = time.perf_counter()
        engine(rows, on_batch=on_batch)
        seconds.append(time.perf_counter() - started)
    tokens = sum(int(rows.lengths.sum()) for rows in blocks)
    return Measured(seconds, sum(rows.num_rows for rows in blocks), computed / tokens - 1)


def _profile(trial: Trial, name: str, engine: Engine, rows: TokenRows) -> None:
    """What the GPU does during one block, which the engine has encoded before."""
    sizes: list[BatchSize] = []
    profile = profiled(lambda: engine(rows, on_batch=lambda _, size: sizes.append(size)))
    trial.record(f"{name}: GPU busy", profile.busy_percent, kernels=profile.top())
    label = f"{name}: waits for the GPU in a block"
    trial.record(label, profile.waits, wait_ms=profile.wait_ms, batches=len(sizes))
    host = (profile.wall_ms - profile.wait_ms) / len(sizes)
    trial.record(f"{name}: host time of a batch", host)


def _reset_peak(trial: Trial) -> None:
    if trial.cuda:
        torch.cuda.reset_peak_memory_stats(trial.device)


def _peak(trial: Trial) -> int:
    """MiB of the device's memory; on a CPU of the process."""
    if trial.cuda:
        return int(torch.cuda.max_memory_allocated(trial.device) >> 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


class _Clock(Silent):
    """Notes when tokens were encoded, so that loading the model can be left out."""

    def __init__(self) -> None:
        self.encoded: list[tuple[float, int]] = []

    def advance(self, amount: int = 1) -> None:
        self.encoded.append((time.perf_counter(), amount))

    def describe(self, text: str) -> None:
        pass

    @contextmanager
    def task(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[_Clock]:
        yield self


def _command(trial: Trial, inputs: Inputs, checkpoint: Checkpoint) -> None:
    """The stage itself, which reads tokens, hashes, rounds and writes: from its first batch on."""
    clock = _Clock()
    output = trial.scratch("embeddings")
    made = encode(
        checkpoint, inputs.corpus, output, EncodeConfig(gpus=trial.gpus), tokens=inputs.tokens,
        call=Call(reporter=clock),
    )  # fmt: skip
    ended = time.perf_counter()
    started, first = clock.encoded[0]
    rest = sum(amount for _, amount in clock.encoded) - first
    rate = rest / (ended - started) * made["rows"] / made["tokens"] if rest else made["rows_per_s"]
    trial.record("ance encode, disk and hashes included", rate,
                 with_loading=made["rows_per_s"], mfu=made.get("mfu"))  # fmt: skip


# ---------------------------------------------------------------- the library's own encode


def _peers(trial: Trial, checkpoint: Checkpoint, texts: list[str]) -> None:
    """The same texts by `ance` and by sentence-transformers, tokenizing included; each the faster
    of two runs after one to warm up."""
    engine = Engine(checkpoint, trial.device, EncodeConfig(dtype="bf16"))
    seconds = _best(trial, lambda: engine.of_texts(texts))
    trial.record("from texts: ance", len(texts) / seconds)
    for name, (attention, batch_size) in PEERS.items():
        label = f"from texts: {name}"
        if attention.startswith("flash") and importlib.util.find_spec("flash_attn") is None:
            trial.not_run(label, "flash-attn is not installed")
            continue
        with trial.arm(label):
            seconds = _best(trial, _library(trial, checkpoint, texts, attention, batch_size))
            trial.record(label, len(texts) / seconds)


def _library(
    trial: Trial, checkpoint: Checkpoint, texts: list[str], attention: str, batch_size: int
) -> Callable[[], object]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        str(checkpoint.path), device=str(trial.device),
        model_kwargs={"dtype": torch.bfloat16, "attn_implementation": attention},
    ).to(torch.bfloat16)  # fmt: skip
    model.max_seq_length = trial.sizes.longest
    return lambda: model.encode(
        texts, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False
    )


def _best(trial: Trial, work: Callable[[], object]) -> float:
    work()
    found = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        if trial.cuda:
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return min(found)


# ---------------------------------------------------------------- agreement


def _agreement(trial: Trial, checkpoint: Checkpoint, texts: list[str]) -> None:
    """Vectors of every number format against those of the library on the CPU in float32."""
    nearest = "the nearest of the CPU's vectors is that of the same text"
    alone = "least cosine of a row alone to the row in a batch, fp32"
    dtypes: list[Dtype] = ["fp32", "bf16", *(["fp16"] if trial.cuda else [])]  # type: ignore[list-item]
    labels = {dtype: f"{dtype}: least cosine to the CPU's fp32" for dtype in dtypes}
    with trial.arm(nearest, alone, *labels.values()):
        reference = _on_the_cpu(trial, checkpoint.path, texts)
        found_itself = True
        for dtype, label in labels.items():
            with trial.arm(label):
                engine = Engine(checkpoint, trial.device, EncodeConfig(dtype=dtype))
                vectors = engine.of_texts(texts)
                trial.record(label, float(cosines(vectors, reference).min()))
                found_itself &= _finds_itself(vectors, reference)
                if dtype == "fp32":
                    single = np.concatenate([engine.of_texts([text]) for text in texts[:_ALONE]])
                    trial.record(alone, float(cosines(single, vectors[:_ALONE]).min()))
        trial.record(nearest, found_itself)
    packed = "least cosine of packed to padded batches, bf16"
    if trial.cuda:
        with trial.arm(packed):
            vectors = Engine(checkpoint, trial.device, EncodeConfig(dtype="bf16")).of_texts(texts)
            with padded():
                other = Engine(checkpoint, trial.device, EncodeConfig(dtype="bf16"))
            trial.record(packed, float(cosines(vectors, other.of_texts(texts)).min()))


def _on_the_cpu(trial: Trial, folder: Path, texts: list[str]) -> Floats:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = trial.sizes.longest
    return np.asarray(model.encode(texts, show_progress_bar=False), np.float32)


def _finds_itself(vectors: Floats, reference: Floats) -> bool:
    """Whether each vector is nearest to the reference of its own text."""
    scaled = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (vectors, reference)]
    return bool(((scaled[0] @ scaled[1].T).argmax(1) == np.arange(len(vectors))).all())


def _shrinks(trial: Trial, checkpoint: Checkpoint, rows: TokenRows) -> bool:
    """With little memory left, encoding ends with smaller batches, says so, and gives the same."""
    tokens = trial.sizes.batch_tokens[-1]
    expected = Engine(checkpoint, trial.device, EncodeConfig())(rows)
    engine = Engine(checkpoint, trial.device, EncodeConfig(batch_tokens=tokens))
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(trial.device).total_memory
    fraction = (torch.cuda.memory_reserved(trial.device) + _ROOM) / total
    torch.cuda.set_per_process_memory_fraction(fraction, trial.device)
    try:
        found = engine(rows)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, trial.device)
    print(engine.said)
    said = any("continuing with batches of" in text for text in engine.said)
    return said and float(cosines(found, expected).min()) > 0.999
