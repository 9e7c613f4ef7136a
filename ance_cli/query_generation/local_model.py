"""Queries by a local language model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ance_cli.config import DeviceConfig, QueryConfig
from ance_cli.errors import BadInput
from ance_cli.formats.checkpoint_folder import ModuleFolder
from ance_cli.formats.dataset import Passage
from ance_cli.mining.sampling import keyed_generator
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.language_model import LanguageModel, LanguageModelKind, language_model_kind
from ance_cli.models.reading_model import backbone_folder, model_fingerprint
from ance_cli.models.tower import read_object
from ance_cli.query_generation.writing import INSTRUCTION, PASSAGE_ALONE, Written, filled, query_of

if TYPE_CHECKING:
    import torch


class LocalModel:
    """A folder or hub id with a language model of transformers.

    Raises `BadInput` if it holds another kind of model.
    """

    def __init__(self, config: QueryConfig, device: DeviceConfig) -> None:
        self._config, self._device = config, device
        self.checkpoint = Checkpoint(Path(config.model))
        self.kind = _kind_of(self.checkpoint)
        by_default = PASSAGE_ALONE if self.kind == "seq2seq" else INSTRUCTION
        self._prompt = config.prompt or by_default
        self._dtype: str = device.dtype

    @property
    def shaping(self) -> dict[str, Any]:
        return {"prompt": self._prompt, "dtype": self._dtype}

    @property
    def inputs(self) -> dict[str, str]:
        return {"model": model_fingerprint(self.checkpoint, self.kind)}

    @property
    def reads(self) -> Sequence[Path]:
        return (self.checkpoint.path,)

    def open(self) -> LocalWriter:
        """The writer; after that, the number format is known."""
        model = LanguageModel(self.checkpoint, self.kind, self._device, self._config.max_new_tokens)
        self._dtype = model.dtype
        if len(model.tokens(filled(self._prompt, "", ""))) > model.room // 2:
            raise BadInput(
                f"{self.checkpoint.shown}: the prompt alone fills half of its window",
                hint="shorten --prompt, lower --max-new-tokens, or name a model with a larger "
                "window",
            )
        return LocalWriter(model, self._prompt, self._config)


def _kind_of(checkpoint: Checkpoint) -> LanguageModelKind:
    config = read_object(ModuleFolder(backbone_folder(checkpoint)).config)
    if kind := language_model_kind(config):
        return kind
    named = config.get("architectures") or ["none"]
    raise BadInput(
        f"{checkpoint.shown}/config.json: names the architecture {named[0]}; expected a language "
        "model: ...ForConditionalGeneration, ...ForCausalLM or ...LMHeadModel",
        hint="name a model that writes text, for instance a doc2query model",
    )


class LocalWriter:
    """Queries by an opened model.

    A batch is always read whole, also if an earlier call kept a part of its queries: sums over
    another number of rows can differ in their last bits.
    """

    def __init__(self, model: LanguageModel, prompt: str, config: QueryConfig) -> None:
        self._model, self._prompt, self._config = model, prompt, config
        self.batch = config.passages_per_batch

    def __call__(self, passages: Sequence[Passage], start: int) -> Iterator[Written]:
        draws = self._config.per_passage
        prompts = [ids for passage in passages for ids in [self.tokens(passage)] * draws]
        settings: dict[str, Any] = {}
        if self._config.temperature:
            from transformers import LogitsProcessorList

            draw = _Draw(self._uniforms(passages), self._config.temperature)
            settings["logits_processor"] = LogitsProcessorList([draw])
        found, _ = self._model.generate(prompts, **settings)
        texts = [query_of(self._model.text(row)) for row in found]
        for first in range(start * draws, len(texts), draws):
            yield Written(texts[first : first + draws])

    def tokens(self, passage: Passage) -> list[int]:
        """The tokens of a passage's prompt; of a long passage, its beginning is in the prompt."""
        room = self._model.room
        title = self._model.cut(passage.title, room // 4)
        text, size = passage.text, self._model.size(passage.text)
        ids = self._model.tokens(filled(self._prompt, title, text))
        while size and (over := len(ids) - room) > 0:
            size = max(size - over, 0)
            text = self._model.cut(passage.text, size) if size else ""
            ids = self._model.tokens(filled(self._prompt, title, text))
        return ids

    def _uniforms(self, passages: Sequence[Passage]) -> npt.NDArray[np.float64]:
        """(prompts, tokens) numbers in [0, 1), each row keyed by seed, passage and draw."""
        return np.stack(
            [
                keyed_generator(self._config.seed, passage.doc_id, draw).random(
                    self._config.max_new_tokens
                )
                for passage in passages
                for draw in range(self._config.per_passage)
            ]
        )


class _Draw:
    """Draws the next token of each row from softmax(logits / temperature), for transformers.

    The token is the first whose cumulated probability exceeds the row's number for this step
    (inverse transform sampling). So a draw depends on neither the batch nor the order.
    """

    def __init__(self, uniforms: npt.NDArray[np.float64], temperature: float) -> None:
        self._uniforms, self._temperature, self._step = uniforms, temperature, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(rows, vocabulary) scores -> 0 for the drawn token, -inf for the others."""
        import torch

        total = (scores.double() / self._temperature).softmax(-1).cumsum(-1)
        at = torch.from_numpy(self._uniforms[:, self._step, None]).to(scores.device)
        token = torch.searchsorted(total, at * total[:, -1:], right=True)
        self._step += 1
        drawn = torch.full_like(scores, -torch.inf)
        return drawn.scatter(-1, token.clamp(max=scores.shape[-1] - 1), 0.0)
