"""Extractive readers: the best span of the passages, in the passage's own words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ance_cli.config import ComputeConfig, ReadConfig
from ance_cli.errors import BadInput
from ance_cli.formats.dataset import Passage
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.reading_model import Answer, Kind, cut, load_model

Floats = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int64]

DPR_LENGTH, DPR_ANSWER = 350, 10
"""Tokens of question, title and text, and of an answer: `sequence_length` and `max_answer_length`
of DPR's reader."""

SPAN_LENGTH, SPAN_OVERLAP, SPAN_ANSWER = 384, 128, 30
"""`max_seq_length`, `doc_stride` and `max_answer_length` of BERT's `run_squad.py`."""


def best_span(start: Floats, end: Floats, longest: int) -> tuple[float, int, int]:
    """(score, first, last) of the span with the highest start + end logits, the first of equals.

    `start` and `end` are (tokens,) float32; a span has at most `longest` tokens.
    """
    begins = np.ones((len(start), len(end)), bool)
    allowed = np.triu(begins) & ~np.triu(begins, longest)
    scores = np.where(allowed, start[:, None] + end[None, :], -np.inf)  # (first, last)
    first, last = divmod(int(scores.argmax()), len(end))
    return float(scores[first, last]), first, last


class _Window(NamedTuple):
    """One input of a span reader: a question and a part of a passage."""

    place: int
    """Position of the passage."""
    inputs: dict[str, list[int]]
    first: int
    """Position of the text's first token."""
    offsets: list[tuple[int, int]]
    """Start and end of each token of the text, in characters of the passage."""
    words: list[int | None]
    """The word of the passage that each token of the text belongs to."""


class _Span(NamedTuple):
    score: float
    window: int
    first: int
    last: int


class _SpanReader(ABC):
    """What DPR's reader and other extractive readers share: windows, batches, the best span."""

    kind: Kind
    length: int
    answer_tokens: int

    def __init__(self, checkpoint: Checkpoint, config: ReadConfig, compute: ComputeConfig) -> None:
        import torch

        from ance_cli.models.devices import choose_devices, choose_dtype, torch_dtype
        from ance_cli.models.tokens import load_tokenizer

        self._shown = checkpoint.shown
        self._device = choose_devices(compute.gpus)[0]
        self.dtype = choose_dtype(compute.dtype, self._device)
        self._batch_tokens = compute.tokens_for(self._device.type)
        self._tokenizer = load_tokenizer(checkpoint.tower("passage"))
        self._length = min(self.length, checkpoint.max_positions)
        self._overlap = min(SPAN_OVERLAP, self._length // 4)
        self._longest = config.answer_tokens or self.answer_tokens
        self.num_cut = 0
        model = load_model(checkpoint, self.kind, torch.float32)
        self._model = self._rounded(model, torch_dtype(self.dtype)).to(self._device)

    def __call__(self, question: str, passages: Sequence[Passage]) -> Answer | None:
        from ance_cli.models.inference import batches_by_length, in_halves

        whole, question = question, cut(self._tokenizer, question, self._length // 3)
        self.num_cut += question != whole or self._cuts_titles(passages)
        windows = [window for window in self._windows(question, passages) if window.offsets]

        def spans_of(part: Positions) -> list[_Span]:
            return self._spans(windows, part)

        lengths = np.array([len(window.inputs["input_ids"]) for window in windows], np.int64)
        spans: list[_Span] = []
        for batch in batches_by_length(lengths, self._batch_tokens):
            one = f"{self._device}: one passage of {lengths[batch[0]]} tokens"
            found = in_halves(spans_of, batch, one, "use the CPU: --gpus none", _joined)
            spans.extend(found)
        if not spans:
            return None
        if not all(np.isfinite(span.score) for span in spans):
            raise BadInput(
                f"{self._shown}: a score is not finite (computed in {self.dtype})",
                hint="try --dtype fp32; if that does not help, the weights are damaged",
            )
        best = max(spans, key=lambda span: (span.score, -span.window))
        window = windows[best.window]
        begin, end = _whole_words(window, best.first, best.last)
        passage = passages[window.place]
        return Answer(_text_of(passage)[begin:end].strip(), best.score, window.place)

    def _spans(self, windows: Sequence[_Window], part: Positions) -> list[_Span]:
        """The best span of each window, scored as windows are compared."""
        import torch

        from ance_cli.models.inference import rounded_width

        rows = [windows[place].inputs for place in part]
        width = rounded_width(max(len(row["input_ids"]) for row in rows), self._length)
        fill = {"input_ids": self._tokenizer.pad_token_id or 0}
        inputs = {
            name: torch.tensor(
                [[*row[name], *[fill.get(name, 0)] * (width - len(row[name]))] for row in rows],
                device=self._device,
            )
            for name in rows[0]
        }  # (windows, tokens)
        with torch.inference_mode():
            found = self._model(**inputs)
        start, end = (
            logits.float().cpu().numpy() for logits in (found.start_logits, found.end_logits)
        )
        spans = []
        for row, place in enumerate(part):
            window = windows[place]
            text = slice(window.first, window.first + len(window.offsets))
            score, first, last = best_span(start[row, text], end[row, text], self._longest)
            spans.append(_Span(self._compared(score, found, row, window), int(place), first, last))
        return spans

    def _cuts_titles(self, passages: Sequence[Passage]) -> bool:
        """Whether the reader takes only the beginning of a title."""
        return False

    @abstractmethod
    def _windows(self, question: str, passages: Sequence[Passage]) -> Iterator[_Window]:
        """The inputs of the model for a question."""

    @abstractmethod
    def _compared(self, span: float, found: Any, row: int, window: _Window) -> float:
        """The score that compares the best span of a window with those of other windows."""

    def _rounded(self, model: Any, dtype: Any) -> Any:
        from ance_cli.models.cross_encoder import rounded_backbone

        # a model without a separate backbone, such as T5's, is rounded as a whole
        return model.to(dtype) if model.base_model is model else rounded_backbone(model, dtype)


class DprReader(_SpanReader):
    """[CLS] question [SEP] title [SEP] text, a span score and a relevance for each passage."""

    kind, length, answer_tokens = "dpr", DPR_LENGTH, DPR_ANSWER

    def _windows(self, question: str, passages: Sequence[Passage]) -> Iterator[_Window]:
        if not passages:
            return
        titles = list(map(self._title_of, passages))
        heads = self._tokenizer([question] * len(titles), titles)["input_ids"]
        for place, (passage, before) in enumerate(zip(passages, heads, strict=True)):
            found = self._tokenizer(
                _text_of(passage),
                add_special_tokens=False,
                return_offsets_mapping=True,
                verbose=False,
            )
            ids, offsets, words = found["input_ids"], found["offset_mapping"], found.word_ids()
            room = self._length - len(before)
            step = max(1, room - self._overlap)
            for at in range(0, max(1, len(ids) - room + step), step):
                part = slice(at, at + room)
                inputs = {"input_ids": [*before, *ids[part]]}
                inputs["attention_mask"] = [1] * len(inputs["input_ids"])
                yield _Window(place, inputs, len(before), offsets[part], words[part])

    def _title_of(self, passage: Passage) -> str:
        return cut(self._tokenizer, passage.title, self._length // 3)

    def _cuts_titles(self, passages: Sequence[Passage]) -> bool:
        return any(self._title_of(passage) != passage.title for passage in passages)

    def _compared(self, span: float, found: Any, row: int, window: _Window) -> float:
        return float(found.relevance_logits[row])

    def _rounded(self, model: Any, dtype: Any) -> Any:
        model.span_predictor = super()._rounded(model.span_predictor, dtype)
        return model


class ExtractiveReader(_SpanReader):
    """Question and text; the span of all windows with the largest lead over the null answer."""

    kind, length, answer_tokens = "extractive", SPAN_LENGTH, SPAN_ANSWER

    def _windows(self, question: str, passages: Sequence[Passage]) -> Iterator[_Window]:
        if not passages:
            return
        found = self._tokenizer(
            [question] * len(passages),
            list(map(_text_of, passages)),
            truncation="only_second",
            max_length=self._length,
            stride=self._overlap,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        for row, place in enumerate(found["overflow_to_sample_mapping"]):
            inputs = {
                name: found[name][row]
                for name in self._tokenizer.model_input_names
                if name in found
            }
            own = [at for at, sequence in enumerate(found.sequence_ids(row)) if sequence == 1]
            text = slice(own[0], own[-1] + 1) if own else slice(0)
            yield _Window(
                place,
                inputs,
                text.start or 0,
                found["offset_mapping"][row][text],
                found.word_ids(row)[text],
            )

    def _compared(self, span: float, found: Any, row: int, window: _Window) -> float:
        ids, cls = window.inputs["input_ids"], self._tokenizer.cls_token_id
        null = ids.index(cls) if cls in ids else 0
        return span - float(found.start_logits[row, null] + found.end_logits[row, null])


def _text_of(passage: Passage) -> str:
    """The text that holds the spans: the body, or the title if there is no body."""
    return passage.text or passage.title


def _whole_words(window: _Window, first: int, last: int) -> tuple[int, int]:
    """Start and end, in characters, of a span that is extended to whole words, as in DPR's
    reader."""
    words = window.words
    while first > 0 and words[first - 1] is not None and words[first - 1] == words[first]:
        first -= 1
    while last + 1 < len(words) and words[last + 1] is not None and words[last + 1] == words[last]:
        last += 1
    return window.offsets[first][0], window.offsets[last][1]


def _joined(parts: list[list[_Span]]) -> list[_Span]:
    return list(chain.from_iterable(parts))
