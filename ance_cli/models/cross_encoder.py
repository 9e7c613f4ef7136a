"""Cross-encoders: a query and a passage read together, one score for the pair.

A cross-encoder is far too slow to search a corpus, but scores pairs better than a dual encoder: to
rerank a short ranking (Nogueira and Cho, 2019), to find false negatives (RocketQA, Qu et al., NAACL
2021), and as a teacher for distillation. The folder is a Hugging Face sequence classifier with one
label. Torch is imported with the first model, so that a command can compute the fingerprint without
it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ance_cli.config import PAIR_LENGTH, ComputeConfig
from ance_cli.errors import BadInput, as_bad_input
from ance_cli.formats.checkpoint_folder import COPY_AGAIN, ModuleFolder
from ance_cli.formats.hashing import hash_file, hash_json
from ance_cli.formats.journal import Journal
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.pretrained import load_pretrained
from ance_cli.progress import Reporter

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Pair = tuple[str, str]
"""A query and a passage."""

_BLOCK = 1024
"""Pairs that are tokenised, sorted by length and stored at a time: a killed call loses at most
these."""


def probability(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Logits as probabilities of relevance: RocketQA's confidence, to which its thresholds
    apply."""
    from scipy.special import expit

    found: npt.NDArray[np.float32] = expit(logits)
    return found


def _open_folder(folder: Path) -> Checkpoint:
    if not ModuleFolder(folder).config.exists():
        raise BadInput(
            f"{folder}/config.json: no such file: not a cross-encoder folder",
            hint="name a folder with a sequence classifier as save_pretrained writes it: "
            "config.json, model.safetensors and the tokenizer's files",
        )
    checkpoint = Checkpoint(folder)  # checks the weights and the tokenizer
    kinds = [module.kind for module in checkpoint.tower("passage").modules]
    if kinds != ["Transformer"]:
        raise BadInput(
            f"{folder}: its modules are {', '.join(kinds)}, expected a Transformer alone",
            hint="a dual encoder cannot score pairs; name a cross-encoder",
        )
    return checkpoint


def _cut(checkpoint: Checkpoint, max_length: int) -> int:
    return min(max_length, checkpoint.max_positions)


def cross_encoder_fingerprint(folder: Path, max_length: int = PAIR_LENGTH) -> str:
    """Hash of what the scores depend on: weights, tokenizer and config files, and the length.

    Raises `BadInput` if the folder does not look like a cross-encoder, judged by its file names.
    """
    checkpoint = _open_folder(folder)
    files = {
        path.name: hash_file(path)
        for path in sorted(checkpoint.tower("passage").backbone.iterdir())
        if path.suffix in (".safetensors", ".json", ".txt", ".model")
    }
    return hash_json({"files": files, "max_length": _cut(checkpoint, max_length)})


class CrossEncoder:
    """A cross-encoder on the chosen devices.

    `max_length` is the length of query and passage together, in tokens, including special tokens; a
    model with a smaller maximum uses its own. `batch_tokens` is the padded size of a batch; 0
    chooses it by device.
    """

    def __init__(
        self,
        folder: Path,
        gpus: str = "all",
        dtype: str = "auto",
        max_length: int = PAIR_LENGTH,
        batch_tokens: int = 0,
    ) -> None:
        """Raises `BadInput` if the folder does not hold a complete model with one label."""
        from ance_cli.models.devices import choose_devices, choose_dtype, torch_dtype
        from ance_cli.models.inference import fit_to_cpu

        checkpoint = _open_folder(folder)
        self.folder = folder
        self.fingerprint = cross_encoder_fingerprint(folder, max_length)
        self.max_length = _cut(checkpoint, max_length)
        devices = choose_devices(gpus)
        kind = devices[0].type
        self.dtype = choose_dtype(dtype, devices[0])
        self._batch_tokens = ComputeConfig(batch_tokens=batch_tokens).tokens_for(kind)
        self._tokenizer = _load_tokenizer(checkpoint)
        self._replicas: list[tuple[Any, torch.device]] = []
        for device in devices:
            model = _load_classifier(checkpoint).eval().requires_grad_(False)
            model = rounded_backbone(model, torch_dtype(self.dtype)).to(device)
            if kind == "cpu":
                fit_to_cpu(model.base_model)  # type: ignore[arg-type]
            self._replicas.append((model, device))
        self._pool = ThreadPoolExecutor(len(devices), "cross-encoder")
        self.num_pairs = self.num_cut = 0
        """Pairs that were tokenised so far, and how many of them were longer than `max_length`."""

    def scores(
        self,
        pairs: Sequence[Pair],
        on_pairs: Callable[[int], None] | None = None,
        journal: Journal = Journal(),
    ) -> npt.NDArray[np.float32]:
        """(pairs,) float32 logits in the order of the pairs. `on_pairs` is called with the size of
        each batch.

        Scores that `journal` holds from an interrupted call, with the same model, length and number
        format, are not computed again. Raises `BadInput` if a logit is not finite, and
        `ResourceExhausted` if one pair alone does not fit in memory.
        """
        logits = np.empty(len(pairs), np.float32)
        for start in range(0, len(pairs), _BLOCK):
            block = pairs[start : start + _BLOCK]
            computed = partial(self._block_scores, block, on_pairs)
            found = journal.result(hash_json(block).encode(), computed)
            logits[start : start + _BLOCK] = np.frombuffer(found, np.float32)
            if on_pairs and journal.was_kept:
                on_pairs(len(block))
        return logits

    def _block_scores(self, pairs: Sequence[Pair], on_pairs: Callable[[int], None] | None) -> bytes:
        import torch

        from ance_cli.models.inference import Positions, batches_by_length, in_halves, run_batches

        rows = self._tokenised(pairs)
        lengths = np.array([len(row["input_ids"]) for row in rows])
        logits = np.empty(len(pairs), np.float32)

        def logits_of(model: nn.Module, device: torch.device, batch: Positions) -> Tensor:
            def part_of(part: Positions) -> Tensor:
                return self._logits(model, device, [rows[place] for place in part])

            one = f"{device}: one pair of {lengths[batch[0]]} tokens"
            return in_halves(part_of, batch, one, "lower max_length", torch.cat)

        run_batches(
            self._pool, self._replicas, batches_by_length(lengths, self._batch_tokens),
            logits_of, logits, lambda batch: on_pairs(len(batch)) if on_pairs else None,
        )  # fmt: skip
        if broken := int((~np.isfinite(logits)).sum()):
            raise BadInput(
                f"{self.folder}: {broken:,} of {len(logits):,} scores are not finite "
                f"(computed in {self.dtype})",
                hint="try --dtype fp32; if that does not help, the weights are damaged",
            )
        return logits.tobytes()

    def _tokenised(self, pairs: Sequence[Pair]) -> list[dict[str, list[int]]]:
        """The model's inputs for each pair, cut to `max_length`.

        Only the passage is cut, unless the query alone takes more than half of `max_length`: then
        the longer text of the pair is cut.
        """
        queries = list(dict.fromkeys(query for query, _ in pairs))
        ids = self._tokenizer(queries, add_special_tokens=False, verbose=False)["input_ids"]
        long = {
            query
            for query, row in zip(queries, ids, strict=True)
            if len(row) > self.max_length // 2
        }
        rows: list[dict[str, list[int]]] = [{}] * len(pairs)
        for truncation, are_long in (("only_second", False), ("longest_first", True)):
            places = [
                place for place, (query, _) in enumerate(pairs) if (query in long) == are_long
            ]
            if not places:
                continue
            inputs = self._tokenizer(
                [pairs[place][0] for place in places],
                [pairs[place][1] for place in places],
                truncation=truncation,
                max_length=self.max_length,
            )
            self.num_cut += sum(bool(pair.overflowing) for pair in inputs.encodings)
            for nth, place in enumerate(places):
                rows[place] = {name: values[nth] for name, values in inputs.items()}
        self.num_pairs += len(pairs)
        return rows

    def say_cut(self, reporter: Reporter) -> None:
        """Tell how many of the pairs that were scored were cut, if any were. Those whose scores an
        interrupted call had kept do not count."""
        from ance_cli.models.tokens import tell_cut

        most = self.max_length
        tell_cut(reporter, self.num_cut, self.num_pairs, "pairs", most, "--pair-length")

    def _logits(
        self, model: nn.Module, device: torch.device, rows: Sequence[Mapping[str, Any]]
    ) -> Tensor:
        """(rows,) float32 logits on the device, for which the host has not waited."""
        import torch

        from ance_cli.models.devices import to_device
        from ance_cli.models.inference import rounded_width

        width = rounded_width(max(len(row["input_ids"]) for row in rows), self.max_length)
        inputs = self._tokenizer.pad(
            list(rows), padding="max_length", max_length=width, return_tensors="np"
        )
        with torch.inference_mode():
            on_device = {name: to_device(array, device) for name, array in inputs.items()}
            logits: Tensor = model(**on_device).logits[:, 0].float()
        return logits


def _load_tokenizer(checkpoint: Checkpoint) -> Any:
    from transformers import AutoTokenizer

    from ance_cli.models.tokens import check_vocabulary

    with as_bad_input(f"{checkpoint.shown}: the tokenizer does not load", hint=COPY_AGAIN):
        tokenizer = AutoTokenizer.from_pretrained(
            checkpoint.tower("passage").backbone, use_fast=True, trust_remote_code=False
        )
    if tokenizer.pad_token is None:
        raise BadInput(
            f"{checkpoint.shown}: the tokenizer has no padding token, which batches need",
            hint="set pad_token in tokenizer_config.json to the model's padding token",
        )
    check_vocabulary(tokenizer, checkpoint.tower("passage"))
    tokenizer.padding_side = "right"  # `attention.attend` expects the padding there
    return tokenizer


def _load_classifier(checkpoint: Checkpoint) -> nn.Module:
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    with as_bad_input(f"{checkpoint.shown}/config.json: cannot be read", hint=COPY_AGAIN):
        config = AutoConfig.from_pretrained(
            checkpoint.tower("passage").backbone, trust_remote_code=False
        )
    if config.num_labels != 1:
        architecture = ", ".join(config.architectures or ["a model"])
        raise BadInput(
            f"{checkpoint.shown}/config.json: {architecture} with {config.num_labels} labels; "
            "expected one label, the score of the pair",
            hint="name a cross-encoder that was trained to rank, such as ms-marco-MiniLM",
        )
    model = load_pretrained(
        AutoModelForSequenceClassification,
        checkpoint.tower("passage").backbone,
        checkpoint.shown,
        "model",
        "name a model that was trained as a cross-encoder; a plain language model has no "
        "classifier",
        config=config,
        dtype=torch.float32,
    )
    return model  # type: ignore[no-any-return]


def rounded_backbone(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The backbone in `dtype` and the head in float32: bf16 logits would often tie."""

    def to_float32(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(value.float() for value in inputs)

    backbone = model.base_model
    backbone.to(dtype)
    for part in model.children():
        if part is not backbone:
            part.register_forward_pre_hook(to_float32)
    return model
