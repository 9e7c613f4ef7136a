"""FAISS indexes on GPUs: which of them FAISS has a GPU version of, where one fits, and the copies.

FAISS finds some of its limits only while it searches, ends the process for others, and copies an
index of another type to the CPU without a word. So everything is decided here before a copy is
made. The limits are those of FAISS 1.15 without cuVS, as on PyPI; its source does not name them in
Python.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import faiss

from ance_cli.errors import is_out_of_memory

if TYPE_CHECKING:
    import torch

MAX_SELECTED = 2_048
"""The most rows that a GPU finds for a query, and the most inverted lists that it visits."""

_FLAT = (faiss.IndexFlat, faiss.IndexFlatIP)
_IVF = (faiss.IndexIVFFlat, faiss.IndexIVFPQ, faiss.IndexIVFScalarQuantizer)
_PQ_BITS = 8
_PQ_CODES = (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96)
_MOST_FLOAT32_CODES = 48
"""Tables of 256 floats for each code are in shared memory, of which a block of threads has 48 KiB:
with more codes they hold 16-bit floats."""
_SCALARS = (
    faiss.ScalarQuantizer.QT_8bit,
    faiss.ScalarQuantizer.QT_8bit_uniform,
    faiss.ScalarQuantizer.QT_8bit_direct,
    faiss.ScalarQuantizer.QT_6bit,
    faiss.ScalarQuantizer.QT_4bit,
    faiss.ScalarQuantizer.QT_4bit_uniform,
    faiss.ScalarQuantizer.QT_fp16,
)

_TEMP_BYTES = 1 << 30
"""Memory on each GPU for intermediate results, allocated with the copy."""
_SPARE_BYTES = _TEMP_BYTES + (1 << 29)
"""What must stay free next to the index: also results and cuBLAS's workspace."""
_GROWTH = 2
"""An index that grows row by row takes up to twice its memory: lists grow to the next power of
two."""
_LIST_BLOCK = 32
"""Inverted lists are padded to a multiple of so many rows."""
_ID_BYTES = 8


# ---------------------------------------------------------------- deciding


@dataclass(frozen=True)
class Gpu:
    """A GPU that the command may use."""

    number: int
    free: int
    """Bytes."""


@dataclass(frozen=True)
class Placement:
    """The GPUs of an index; none: it stays on the CPU, and if GPUs were named, `reason` is why."""

    gpus: tuple[int, ...] = ()
    is_sharded: bool = False
    """Whether each GPU has a part of the rows, instead of all of them."""
    reason: str = ""

    @property
    def devices(self) -> str:
        """As torch names them: `cpu`, or for instance `cuda:0, cuda:1`."""
        return ", ".join(f"cuda:{gpu}" for gpu in self.gpus) or "cpu"


def obstacle(index: Any) -> str:
    """Why FAISS cannot have an index on a GPU; empty if it can."""
    index = faiss.downcast_index(index)
    kind = type(index)
    if kind is faiss.IndexPreTransform:  # its transforms stay on the CPU
        return obstacle(index.index)
    if kind in _FLAT:
        return ""
    if kind not in _IVF:
        return f"FAISS has no GPU version of {kind.__name__}"
    quantizer = type(faiss.downcast_index(index.quantizer))
    if quantizer not in _FLAT:
        return f"FAISS has no GPU version of the coarse quantizer {quantizer.__name__}"
    if kind is faiss.IndexIVFPQ and index.pq.nbits != _PQ_BITS:
        return f"FAISS has no GPU version of PQ with {index.pq.nbits} bits per code"
    if kind is faiss.IndexIVFPQ and index.pq.M not in _PQ_CODES:
        return f"FAISS has no GPU version of PQ with {index.pq.M} codes"
    if kind is faiss.IndexIVFScalarQuantizer and index.sq.qtype not in _SCALARS:
        return "FAISS has no GPU version of this scalar quantizer"
    if index.nprobe > MAX_SELECTED:  # some versions refuse even to copy such an index
        return (
            f"a query visits {index.nprobe:,} inverted lists, and FAISS visits at most "
            f"{MAX_SELECTED:,} on a GPU"
        )
    return ""


def bytes_on_gpu(index: Any, num_rows: int) -> int:
    """The most bytes that an index over `num_rows` rows takes, if there is no obstacle to it."""
    index = _innermost(index)
    num_lists = _num_lists(index)
    if not num_lists:
        return num_rows * int(index.code_size)
    padded = num_rows + num_lists * (_LIST_BLOCK - 1)
    return padded * (int(index.code_size) + _ID_BYTES) + 4 * num_lists * int(index.d)


def place_search(index: Any, k: int, gpus: Sequence[Gpu]) -> Placement:
    """Where to search for the best k rows: on a copy on each GPU, on a part of the rows on each, or
    on the CPU."""
    if reason := obstacle(index):
        return Placement(reason=reason)
    if k > MAX_SELECTED:
        return Placement(
            reason=f"a query finds {k:,} rows (depth x rows of a document), and FAISS finds at "
            f"most {MAX_SELECTED:,} on a GPU"
        )
    num_bytes = bytes_on_gpu(index, int(index.ntotal))
    if num_bytes + _SPARE_BYTES <= min(gpu.free for gpu in gpus):
        return Placement(tuple(gpu.number for gpu in gpus))
    return _sharded(num_bytes, gpus)


def place_build(index: Any, num_rows: int, gpus: Sequence[Gpu]) -> Placement:
    """Where to train an empty index and add `num_rows` rows: divided among the GPUs, or on the
    CPU."""
    if reason := obstacle(index):
        return Placement(reason=reason)
    if not _num_lists(_innermost(index)):
        return Placement(reason="a flat index is only a copy of its rows")
    return _sharded(_GROWTH * bytes_on_gpu(index, num_rows), gpus)


def _sharded(num_bytes: int, gpus: Sequence[Gpu]) -> Placement:
    """A part on each GPU, if it fits."""
    free = min(gpu.free for gpu in gpus)
    each = -(-num_bytes // len(gpus))
    if each + _SPARE_BYTES <= free:
        return Placement(tuple(gpu.number for gpu in gpus), is_sharded=len(gpus) > 1)
    needed = (each + _SPARE_BYTES) / 1e9
    return Placement(
        reason=f"it needs {needed:.1f} GB on each GPU, and {free / 1e9:.1f} GB are free"
    )


def _innermost(index: Any) -> Any:
    """The index behind the transforms."""
    index = faiss.downcast_index(index)
    return _innermost(index.index) if isinstance(index, faiss.IndexPreTransform) else index


def _has_short_tables(index: Any) -> bool:
    """Whether a GPU computes scores from 16-bit floats."""
    index = _innermost(index)
    return isinstance(index, faiss.IndexIVFPQ) and int(index.pq.M) > _MOST_FLOAT32_CODES


def _num_lists(index: Any) -> int:
    return int(getattr(index, "nlist", 0))


# ---------------------------------------------------------------- the GPUs of this machine


def devices_of(gpus: str) -> list[torch.device]:
    """The GPUs that `--gpus` names; raises `UsageProblem` if this machine lacks one.

    torch is not imported if no GPU is named, nor for `all` if FAISS sees none.
    """
    from ance_cli.models.devices import choose_devices, parse_gpus

    chosen = parse_gpus(gpus)
    if chosen == [] or (chosen is None and not _seen_by_faiss()):
        return []
    return [device for device in choose_devices(gpus) if device.type == "cuda"]


def placed(
    devices: Sequence[torch.device], place: Callable[[Sequence[Gpu]], Placement]
) -> Placement:
    """What `place` decides about the GPUs among the devices, if there are any and FAISS sees
    them."""
    import torch

    numbers = [int(device.index) for device in devices if device.type == "cuda"]
    if not numbers:
        return Placement()
    if max(numbers) >= _seen_by_faiss():
        return Placement(reason="FAISS does not see the GPU (ance doctor says why)")
    torch.cuda.empty_cache()  # what torch keeps for later counts as used
    return place([Gpu(number, int(torch.cuda.mem_get_info(number)[0])) for number in numbers])


def _seen_by_faiss() -> int:
    """How many GPUs FAISS sees; none if it was built without GPU support."""
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


# ---------------------------------------------------------------- copies


def to_gpus(index: Any, placement: Placement) -> Any:
    """A copy of an index on the GPUs of its placement; without GPUs the index itself."""
    if not placement.gpus:
        return index
    options = faiss.GpuMultipleClonerOptions()
    options.shard = placement.is_sharded
    options.useFloat16 = _has_short_tables(index)
    resources = [faiss.StandardGpuResources() for _ in placement.gpus]
    for each in resources:
        each.setTempMemory(_TEMP_BYTES)
    return faiss.index_cpu_to_gpu_multiple_py(resources, index, options, list(placement.gpus))


def to_cpu(index: Any, placement: Placement) -> Any:
    """What `to_gpus` copied, on the CPU again, as one index."""
    return faiss.index_gpu_to_cpu(index) if placement.gpus else index


def train(index: Any, rows: Any, placement: Placement) -> Any:
    """The index, trained on (n, d) float32 rows, on the CPU.

    One GPU trains: several that train the same index can differ in the last bits of its centroids,
    and lists of different centroids cannot be joined.
    """
    alone = Placement(placement.gpus[:1])
    on_gpu = to_gpus(index, alone)
    on_gpu.train(rows)
    return to_cpu(on_gpu, alone)


def searched(
    index: Any, k: int, devices: Sequence[torch.device], say: Callable[[str], None]
) -> Any:
    """What to search for the best k rows: a copy on the GPUs among the devices, or the index itself
    on the CPU. Says which, and why, if there are GPUs."""
    placement = placed(devices, lambda gpus: place_search(index, k, gpus))
    try:
        copied = to_gpus(index, placement)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        copied, placement = index, Placement(reason="GPU memory ran out while it was copied")
    if placement.gpus:
        how = "in parts " * placement.is_sharded
        rounded = ", with scores from 16-bit floats" * _has_short_tables(index)
        say(f"searching the index {how}on {placement.devices}{rounded}")
    elif placement.reason:
        say(f"searching the index on the CPU: {placement.reason}")
    return copied
