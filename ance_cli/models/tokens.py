"""From texts to token rows, by the tokenizer and the encoding settings of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from ance_cli.call import trusts_remote_code
from ance_cli.config.sets import Segmentation, Side
from ance_cli.errors import BadInput, as_bad_input
from ance_cli.formats.checkpoint_folder import COPY_AGAIN, ModuleFolder
from ance_cli.formats.hashing import hash_file, hash_json
from ance_cli.formats.tokens import TokenRows, join_rows
from ance_cli.models.checkpoint import Checkpoint, EncodingSettings
from ance_cli.models.pretrained import keep_libraries_quiet
from ance_cli.models.tower import Tower, read_object
from ance_cli.progress import Reporter

__all__ = ["TokenRows", "Tokenizer", "join_rows", "load_tokenizer", "tokenizer_hash"]

_TOKENIZER_FILES = ("*token*.json", "*vocab*", "merges.txt", "*.model", "*.bpe", "*.tiktoken")

_NOT_OF_TOKENS = ("model_max_length", "is_local", "local_files_only")
"""Fields of a tokenizer's config that a save may change: the length, and how it was loaded."""


def tokenizer_hash(tower: Tower) -> str:
    """Hash of what turns texts into token ids: the tokenizer's files, and the type of the model,
    which decides how the files are read. Weights and lengths are not hashed."""
    config = ModuleFolder(tower.backbone).tokenizer_config
    files: dict[str, Any] = {
        path.name: hash_file(path)
        for pattern in _TOKENIZER_FILES
        for path in tower.backbone.glob(pattern)
    }
    if config.exists():
        facts = read_object(config)
        files[config.name] = {k: value for k, value in facts.items() if k not in _NOT_OF_TOKENS}
    model_type = None if tower.is_static else read_object(tower.config).get("model_type")
    return hash_json({"files": files, "model_type": model_type})


def load_tokenizer(tower: Tower) -> Any:
    """The fast tokenizer in a tower's folder; `BadInput` if it is broken or not a fast one."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    keep_libraries_quiet()
    with as_bad_input(f"{tower.shown}: the tokenizer does not load", hint=COPY_AGAIN):
        if tower.is_static:
            path = tower.backbone / "tokenizer.json"
            found: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
                tokenizer_file=str(path)
            )
        else:
            found = AutoTokenizer.from_pretrained(
                tower.backbone, use_fast=True, trust_remote_code=trusts_remote_code()
            )
    if not hasattr(found, "backend_tokenizer"):
        raise BadInput(
            f"{tower.shown}: its tokenizer is not a fast one",
            hint="convert it with transformers: the folder needs a tokenizer.json",
        )
    check_vocabulary(found, tower)
    return found


def vocabulary_of(tokenizer: Any) -> int:
    """One more than the greatest token id."""
    return int(max(tokenizer.get_vocab().values(), default=-1)) + 1


def check_vocabulary(tokenizer: Any, tower: Tower) -> None:
    """Raise `BadInput` if the tokenizer has a token for which the model has no embedding."""
    rows = tower.num_tokens
    tokens = vocabulary_of(tokenizer)
    if rows is not None and tokens > rows:
        raise BadInput(
            f"{tower.shown}: the tokenizer has {tokens:,} tokens, and the model's embedding has "
            f"{rows:,} rows: texts with the last tokens cannot be encoded",
            hint="add rows with transformers: model.resize_token_embeddings(len(tokenizer)), then "
            "save the model again",
        )


class Tokenizer:
    """Tokenises the queries and the passages of a checkpoint with the tokenizer of their tower.

    The fast tokenizer works on a batch of texts in parallel, on `RAYON_NUM_THREADS` threads.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.settings = checkpoint.settings
        passage = load_tokenizer(checkpoint.tower("passage"))
        query = passage if checkpoint.shared else load_tokenizer(checkpoint.tower("query"))
        self._tokenizers: dict[Side, Any] = {"query": query, "passage": passage}
        self._fast = {
            side: _own_copy(whole, self.settings.lowercase)
            for side, whole in self._tokenizers.items()
        }
        self._special_tokens = {
            side: not checkpoint.tower(side).is_static for side in self._tokenizers
        }
        self.num_texts: dict[Side, int] = {"query": 0, "passage": 0}
        self.num_cut: dict[Side, int] = {"query": 0, "passage": 0}
        """How many texts there were so far, and how many were longer than their side's length."""

    def pad_id_of(self, side: Side) -> int:
        """The padding token of one side."""
        return int(self._tokenizers[side].pad_token_id or 0)

    def vocabulary_of(self, side: Side) -> int:
        """One more than the greatest token id."""
        return vocabulary_of(self._tokenizers[side])

    def __call__(self, texts: Sequence[str], side: Side) -> TokenRows:
        """Token rows of `texts`: cut to the side's length, or for MaxP passages to segments."""
        settings = self.settings
        prefix = settings.prefix(side)
        texts = [f"{prefix}{text}" for text in texts]
        length = settings.query_length if side == "query" else settings.passage_length
        segments = settings.segments if side == "passage" else 1
        segment = _SEGMENTATIONS[settings.segmentation if segments > 1 else "first"]
        fast = self._fast[side]
        fast.enable_truncation(
            length * segments if segment is _slices else length,
            direction=self._tokenizers[side].truncation_side,
        )
        kept = segments - 1 if segment is _special else 0  # of the pieces after the first one
        rows = []
        special = self._special_tokens[side]
        for found in fast.encode_batch_fast(texts, add_special_tokens=special):
            rest = found.overflowing  # copies what it returns
            self.num_cut[side] += len(rest) > kept
            rows.append(segment(found, rest, length, segments))
        self.num_texts[side] += len(texts)
        return _ragged([row for own in rows for row in own], [len(own) for own in rows])

    def lengths_of(self, texts: Sequence[str], side: Side) -> npt.NDArray[np.int64]:
        """(texts,) the tokens of each text before it is cut, with its prompt and special tokens."""
        prefix = self.settings.prefix(side)
        fast = self._fast[side]
        fast.no_truncation()
        found = fast.encode_batch_fast(
            [f"{prefix}{text}" for text in texts], add_special_tokens=self._special_tokens[side]
        )
        return np.array([len(each.ids) for each in found], np.int64)

    def say_cut(self, side: Side, reporter: Reporter) -> None:
        """Tell how many of the texts so far were cut, if any were."""
        say_cut(self.settings, side, self.num_cut[side], self.num_texts[side], reporter)

    def prompt_length_of(self, side: Side) -> int:
        """The tokens of a side's prompt, without a special token at its end, as the library counts
        them for a pooling that leaves the prompt out."""
        prompt = self.settings.prefix(side)
        fast = self._fast[side]
        fast.no_truncation()
        ids = fast.encode(prompt, add_special_tokens=self._special_tokens[side]).ids
        return len(ids) - (ids[-1] in self._tokenizers[side].all_special_ids) if prompt else 0


def say_cut(
    settings: EncodingSettings, side: Side, cut: int, total: int, reporter: Reporter
) -> None:
    """Tell how many of `total` texts of a side were cut to its length, if any were."""
    most, flags = f"{settings.query_length}", "--query-length"
    if side == "passage":
        most, flags = f"{settings.passage_length}", "--passage-length"
        if settings.segments > 1:
            most, flags = f"{settings.segments} x {most}", f"--max-segments, {flags}"
    names = "queries" if side == "query" else "passages"
    tell_cut(reporter, cut, total, names, most, flags)


def tell_cut(
    reporter: Reporter, cut: int, total: int, names: str, most: int | str, flags: str
) -> None:
    """Tell how many of `total` texts were cut to `most` tokens, if any were, and which flags change
    that."""
    if cut:
        reporter.say(
            f"{cut:,} of {total:,} {names} have more than {most} tokens and are cut ({flags})"
        )


def _first(encoding: Any, rest: list[Any], length: int, segments: int) -> list[list[int]]:
    """FirstP: the first `length` tokens."""
    return [encoding.ids]


def _special(encoding: Any, rest: list[Any], length: int, segments: int) -> list[list[int]]:
    """MaxP: segments with special tokens of their own."""
    return [part.ids for part in (encoding, *rest[: segments - 1])]


def _slices(encoding: Any, rest: list[Any], length: int, segments: int) -> list[list[int]]:
    """MaxP as in the released ANCE models: pieces of one sequence of `length * segments` tokens."""
    ids = encoding.ids
    return [ids[at : at + length] for at in range(0, len(ids), length)]


_SEGMENTATIONS: dict[Segmentation, Callable[[Any, list[Any], int, int], list[list[int]]]] = {
    "first": _first,
    "special": _special,
    "slice": _slices,
}
"""Name -> the rows of token ids of one encoded text, given its pieces beyond the first one, the
length and the most segments."""


def _own_copy(whole: Any, lowercase: bool) -> Any:
    """A copy of the fast tokenizer inside, which truncates as its side wants."""
    import tokenizers
    from tokenizers import normalizers

    fast = tokenizers.Tokenizer.from_str(whole.backend_tokenizer.to_str())
    fast.no_padding()
    if lowercase:
        others = [] if fast.normalizer is None else [fast.normalizer]
        fast.normalizer = normalizers.Sequence([normalizers.Lowercase(), *others])
    return fast


def _ragged(rows: Sequence[Sequence[int]], row_counts: Sequence[int]) -> TokenRows:
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    ids = np.fromiter(chain.from_iterable(rows), np.int32, int(offsets[-1]))
    return TokenRows(ids, offsets, np.asarray(row_counts, np.int32))
