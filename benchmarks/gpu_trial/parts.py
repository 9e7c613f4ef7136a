"""The parts of the trial, the numbers that each must measure, and the marks that they must reach.

The marks come from the roofline of an H100: 170 MFLOP and 0.4 MB of elementwise traffic for each
token of BERT-base, and passages of 75 tokens. They hold for the full size alone; what must be true
on any device at any size (`holds`) is a mark of its own kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.gpu_trial.records import ENDED
from benchmarks.gpu_trial.sizes import Shape, Sizes


@dataclass(frozen=True)
class Mark:
    """What a number is divided by, and what the ratio must be.

    `against` is a constant, or another number of the same run as PART/NAME. Without `at_least` and
    `at_most` the ratio is only shown.
    """

    against: float | str = 1.0
    at_least: float | None = None
    at_most: float | None = None
    any_size: bool = False

    def reached(self, ratio: float) -> bool | None:
        """Whether the ratio is as it must be; None if nothing is asked of it."""
        if self.at_least is None and self.at_most is None:
            return None
        low = self.at_least is None or ratio >= self.at_least
        return low and (self.at_most is None or ratio <= self.at_most)


@dataclass(frozen=True)
class Number:
    """Something to measure. A number that is true or false must be true."""

    name: str
    unit: str = ""
    mark: Mark | None = None
    needs_cuda: bool = False


@dataclass(frozen=True)
class Part:
    """A module with a function `run(trial)`, which gets a process of its own for `seconds`."""

    key: str
    title: str
    module: str
    seconds: float
    numbers: tuple[Number, ...]
    number: int | None = None
    """None: it only prepares what the others need, and runs first."""

    @property
    def rows(self) -> tuple[Number, ...]:
        """The numbers, and how the part ended."""
        return (Number(ENDED), *self.numbers)


BF16 = "facts/bf16 matrix products"
FP16 = "facts/fp16 matrix products"


def parts_of(sizes: Sizes) -> dict[str, Part]:
    """Every part by its key, in the order in which they run: what decides most comes first."""
    home = "benchmarks.gpu_trial"
    return {
        part.key: part
        for part in (
            Part("inputs", "Models, passages and negatives", f"{home}.inputs", 90, _INPUTS),
            Part("facts", "Facts and ceilings", f"{home}.facts", 60, _FACTS, 0),
            Part("attention", "Attention", f"{home}.attention", 60, tuple(_attention()), 1),
            Part("encode", "Encoding", f"{home}.encode", 150, tuple(_encode(sizes)), 2),
            Part("search", "Exact search", f"{home}.search", 90, tuple(_search(sizes)), 3),
            Part("train", "Training", f"{home}.train", 180, tuple(_train()), 4),
            Part("loop", "Loop", f"{home}.loop", 120, tuple(_loop()), 5),
            Part("rest", "Reranking, search, devices", f"{home}.rest", 60, _REST, 6),
            Part(
                "captured",
                "A compiled or captured step",
                f"{home}.captured",
                180,
                tuple(_captured(sizes)),
                7,
            ),
        )
    }


def shape_name(shape: Shape) -> str:
    """BERT-base, MiniLM, or the sizes of another encoder."""
    named = {(12, 768): "BERT-base", (6, 384): "MiniLM"}
    return named.get((shape.layers, shape.width), f"BERT {shape.layers} x {shape.width}")


def _holds(name: str, needs_cuda: bool = False) -> Number:
    """A statement that must be true."""
    return Number(name, needs_cuda=needs_cuda)


def _at_least(name: str, unit: str, least: float, needs_cuda: bool = False) -> Number:
    """A value with a lower limit on any device, such as a cosine."""
    return Number(name, unit, Mark(1.0, at_least=least, any_size=True), needs_cuda)


def _at_most(name: str, unit: str, most: float, needs_cuda: bool = False) -> Number:
    """A value with an upper limit on any device, such as the difference of two losses."""
    return Number(name, unit, Mark(1.0, at_most=most, any_size=True), needs_cuda)


_INPUTS = (
    Number("models", "s"), Number("docstrings and negatives", "s"), Number("passages", "s"),
    Number("tokens per passage"), Number("tokenizing", "passages/s"),
)  # fmt: skip

_FACTS = (
    Number("machine"),
    Number("packages"),
    Number("GPU", needs_cuda=True),
    Number("CUDA, cuDNN, driver", needs_cuda=True),
    Number("cuDNN attention is enabled", "yes or no", needs_cuda=True),
    Number("bf16 matrix products", "TFLOP/s"),
    Number("fp32 matrix products", "TFLOP/s"),
    Number("fp16 matrix products", "TFLOP/s", needs_cuda=True),
    Number("copy on the device, read and written", "GB/s"),
    Number("pinned memory to the device", "GB/s", needs_cuda=True),
    Number("pageable memory to the device", "GB/s", needs_cuda=True),
    _holds("ance doctor says that a loop can run"),
    Number("ance doctor --bench", "s"),
)


def _attention() -> Iterator[Number]:
    for arm in ATTENTION_ARMS:
        cuda = arm != DEFAULT_ATTENTION and "cuDNN" in arm
        yield Number(f"{arm}: kernel", needs_cuda=True)
        yield Number(f"{arm}: a block", "ms", needs_cuda=cuda)
        built = Mark(5.0, at_most=1.0)
        yield Number(f"{arm}: plan of a shape, median", "ms", built, needs_cuda=cuda)
        yield Number(f"{arm}: plan of a shape, longest", "ms", needs_cuda=cuda)
    yield Number("packed: a block", "ms", Mark("attention/mask, without cuDNN: a block"), True)
    yield Number("plan of a shape in a new thread, median", "ms", Mark(5.0, at_most=1.0))
    for dropout in (0.0, 0.1):
        yield Number(f"backward, dropout {dropout:g}", "ms")
        against = Mark(f"attention/backward, dropout {dropout:g}")
        yield Number(f"backward, dropout {dropout:g}, without cuDNN", "ms", against, True)


DEFAULT_ATTENTION = "no mask"
ATTENTION_ARMS = (
    DEFAULT_ATTENTION,
    "mask",
    "no mask, without cuDNN",
    "mask, without cuDNN",
    "mask, widths in eights",
)


def _encode(sizes: Sizes) -> Iterator[Number]:
    for shape, mark, share in ((sizes.base, 22_000, 0.55), (sizes.small, 70_000, None)):
        name = shape_name(shape)
        default = f"encode/{name}: encode"
        rate = "passages/s"
        yield Number(f"{name}: encode", rate, Mark(mark, at_least=1.0))
        yield Number(f"{name}: matrix rate of encode", "TFLOP/s", Mark(BF16, at_least=share))
        yield Number(f"{name}: padding", "%")
        yield Number(f"{name}: peak memory", "MiB", needs_cuda=True)
        yield _holds(f"{name}: batches are packed", needs_cuda=True)
        for arm in PADDED_ARMS:
            yield Number(f"{name}: {arm}", rate, Mark(default), needs_cuda=True)
        yield Number(f"{name}: one call for all blocks", rate, Mark(default))
        for tokens in sizes.batch_tokens[1:]:
            yield Number(f"{name}: {tokens:,} tokens a batch", rate, Mark(default))
        yield Number(f"{name}: GPU busy", "%", needs_cuda=True)
        yield Number(f"{name}: waits for the GPU in a block", "calls", needs_cuda=True)
        yield Number(f"{name}: host time of a batch", "ms", needs_cuda=True)
    yield Number("ance encode, disk and hashes included", "passages/s",
                 Mark(f"encode/{shape_name(sizes.base)}: encode", at_least=0.9))  # fmt: skip
    yield Number("from texts: ance", "passages/s")
    twice = Mark("encode/from texts: ance", at_most=0.5)
    for name in PEERS:
        yield Number(f"from texts: {name}", "passages/s", twice)
    for dtype, cosine in (("fp32", 0.999999), ("bf16", 0.999), ("fp16", 0.9999)):
        yield _at_least(f"{dtype}: least cosine to the CPU's fp32", "", cosine, dtype == "fp16")
    yield _at_least("least cosine of packed to padded batches, bf16", "", 0.999, needs_cuda=True)
    yield _holds("the nearest of the CPU's vectors is that of the same text")
    yield _at_least("least cosine of a row alone to the row in a batch, fp32", "", 0.999999)
    yield Number("batches shrink when memory runs out, and the vectors stay", needs_cuda=True)


PADDED_ARMS = ("padded", "padded, with cuDNN attention")
"""What encoding does where a family cannot be packed, and what torch would do by itself."""

PEERS = {
    "sentence-transformers bf16, SDPA, batch 32": ("sdpa", 32),
    "sentence-transformers bf16, SDPA, batch 256": ("sdpa", 256),
    "sentence-transformers bf16, FlashAttention, batch 256": ("flash_attention_2", 256),
}
"""Name -> attention and batch size; 32 is the library's default."""


def _search(sizes: Sizes) -> Iterator[Number]:
    first, *others = sizes.queries
    yield Number(f"{first:,} queries", "s", Mark(1.2, at_most=1.0))
    yield Number("matrix rate", "TFLOP/s", Mark(FP16))
    yield Number("waiting for the next chunk", "s", Mark(f"search/{first:,} queries"))
    yield Number("matrix products", "s", Mark(f"search/{first:,} queries"), needs_cuda=True)
    yield Number("other kernels", "s", Mark(f"search/{first:,} queries"), needs_cuda=True)
    yield Number("GPU busy", "%", needs_cuda=True)
    yield Number("waits for the GPU", "calls", needs_cuda=True)
    for count in others:
        yield Number(f"{count:,} queries", "s")
    yield Number(
        f"{first:,} queries, depth {sizes.deeper:,}", "s", Mark(f"search/{first:,} queries")
    )
    yield Number(f"{first:,} queries, MaxP", "s", Mark(f"search/{first:,} queries"))
    yield Number("500,000 queries x 8.84M rows, extrapolated", "s", Mark(70.0))
    yield _holds("large corpus: ranked as on the CPU")
    for what in COMPARED_SEARCHES:
        yield _holds(f"{what}: ranked as on the CPU")
    yield _holds("a document twice: both copies next to each other, the first one before")
    yield _holds("repeated: identical bytes")


COMPARED_SEARCHES = (
    "float16", "float32", "every row twice", "MaxP", "3 queries", "depth beyond the rows",
)  # fmt: skip


DIFFERENCE = "losses and gradient norms: "
"""Of two ways to the same steps: the largest difference of a loss, or of a gradient norm as a share
of the norm."""


def _train() -> Iterator[Number]:
    bare = Mark("train/bare loop, adamw, dropout 0.1", at_least=0.9)
    yield Number("adamw, dropout 0.1", "tokens/s", bare)
    yield Number("bare loop, adamw, dropout 0.1", "tokens/s")
    yield Number("steps", "steps/s")
    yield Number("MFU", "%")
    yield Number("peak memory", "MiB", needs_cuda=True)
    yield Number("GPU busy", "%", needs_cuda=True)
    yield Number("waits for the GPU in a step", "calls", needs_cuda=True)
    for ways, most in (("GPU and CPU, fp32", 1e-3), ("--grad-cache and all at once", 1e-4),
                       ("two segments and one", 1e-4),
                       ("--gradient-checkpointing and not", 1e-4)):  # fmt: skip
        yield _at_most(f"{DIFFERENCE}{ways}", "", most, needs_cuda=ways.startswith("GPU"))
    yield _holds("stopped, killed and repeated: each step is logged once")
    yield _at_most(f"{DIFFERENCE}stopped, killed and repeated, and not", "", 1e-3)
    yield _holds("--freeze-passages trains on live negatives")
    default = Mark("train/adamw, dropout 0.1")
    yield Number("adamw, dropout 0.1, with cuDNN attention", "tokens/s", default, needs_cuda=True)
    yield Number("adamw, dropout 0, padded", "tokens/s", default, needs_cuda=True)
    for arm in ("adamw, dropout 0", "lamb, dropout 0", "lamb, dropout 0.1"):
        yield Number(arm, "tokens/s", default)
    yield _holds("a batch beyond memory: exit code 5 and a hint", needs_cuda=True)


def _loop() -> Iterator[Number]:
    for mode in ("sync", "async"):
        cuda = mode == "async"  # both at the same time on one GPU, which a CPU does not stand for
        yield _holds(f"{mode}: ends with exit code 0", cuda)
        yield Number(f"{mode}: whole loop", "s", needs_cuda=cuda)
        yield Number(f"{mode}: generations", needs_cuda=cuda)
        yield Number(f"{mode}: stages of a refresh", "s", needs_cuda=cuda)
        yield Number(f"{mode}: training", "steps/s", needs_cuda=cuda)
        yield Number(f"{mode}: outside of refreshes and steps", "s", needs_cuda=cuda)
        yield Number(f"{mode}: memory in use on the GPU", "MiB", needs_cuda=True)


OUR_STEP = "our step"
CAPTURED_ARMS = {
    "on the device": False, "captured": True, "compiled": False, "compiled and captured": True,
}  # fmt: skip
"""Ways to the same step on fixed shapes -> whether they need CUDA."""


def _captured(sizes: Sizes) -> Iterator[Number]:
    for shape in (sizes.small, sizes.base):
        name = shape_name(shape)
        yield Number(f"{name}: {OUR_STEP}", "steps/s")
        ours = Mark(f"captured/{name}: {OUR_STEP}")
        for arm, cuda in CAPTURED_ARMS.items():
            yield Number(f"{name}: {arm}", "steps/s", ours, cuda)
            difference = f"{name}: {arm}: last loss from ours, share of the first"
            yield _at_most(difference, "", 0.02, cuda)


_REST = (
    Number("rerank", "pairs/s"),
    Number("rerank: GPU busy", "%", needs_cuda=True),
    Number("ance search of 20 queries, from start to end", "s"),
    _holds("--gpus with a number that is not there: exit code 2, and says so"),
    _holds("without a visible GPU: the CPU encodes"),
    _at_least("least cosine of those vectors to the device's", "", 0.999),
)  # fmt: skip
