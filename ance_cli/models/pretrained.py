"""A transformers model from a folder, with all of its weights."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

from ance_cli.errors import BadInput, as_bad_input
from ance_cli.formats.checkpoint_folder import COPY_AGAIN


def keep_libraries_quiet() -> None:
    """Keep the progress bars and reports of transformers and sentence-transformers off the
    terminal."""
    from transformers.utils import logging as of_transformers

    of_transformers.set_verbosity_error()  # type: ignore[no-untyped-call]
    of_transformers.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)


def load_pretrained(
    loader: Any,
    folder: Path,
    shown: Path,
    what: str,
    not_whole: str,
    unread: str | None = None,
    **options: Any,
) -> Any:
    """The model that one of transformers' classes reads from `folder`: only safetensors, no code.

    Errors name the model by `what` and `shown`. Raises `BadInput` if the model does not load, and,
    with the hint `not_whole`, if a weight is not in the file: it would keep random values. Weights
    with `unread` in their names may be missing.
    """
    keep_libraries_quiet()
    with as_bad_input(f"{shown}: the {what} does not load", hint=COPY_AGAIN):
        model, info = loader.from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    _refuse_missing(info["missing_keys"], shown, not_whole, unread)
    return model


@contextmanager
def whole_weights(shown: Path) -> Iterator[None]:
    """While a library loads transformers models, refuse those of which a weight is not in the file.

    The library would only log it, and the weight would keep random values. A pooler, which no
    pooling reads, is not built. Raises `BadInput`.
    """
    from transformers import PreTrainedModel

    original = PreTrainedModel.__dict__["from_pretrained"]

    def from_pretrained(cls: Any, *args: Any, **options: Any) -> Any:
        if "add_pooling_layer" in signature(cls.__init__).parameters:
            options.setdefault("add_pooling_layer", False)
        options["use_safetensors"] = True
        model, info = original.__func__(cls, *args, **{**options, "output_loading_info": True})
        _refuse_missing(
            info["missing_keys"], shown,
            "the checkpoint does not match its config.json, or is cut short", "pooler",
        )  # fmt: skip
        return (model, info) if options.get("output_loading_info") else model

    PreTrainedModel.from_pretrained = classmethod(from_pretrained)  # type: ignore[assignment]
    try:
        yield
    finally:
        PreTrainedModel.from_pretrained = original  # type: ignore[method-assign]


def _refuse_missing(names: Iterable[str], shown: Path, hint: str, unread: str | None) -> None:
    if missing := sorted(name for name in names if not (unread and unread in name)):
        raise BadInput(
            f"{shown}: {len(missing)} weights are not in the file, for instance {missing[0]}: they "
            "would keep random values",
            hint=hint,
        )
