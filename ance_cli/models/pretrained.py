"""A transformers model from a folder, with all of its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ance_cli.errors import BadInput, as_bad_input
from ance_cli.formats.checkpoint_folder import COPY_AGAIN


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
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with as_bad_input(f"{shown}: the {what} does not load", hint=COPY_AGAIN):
        model, info = loader.from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    missing = sorted(name for name in info["missing_keys"] if not (unread and unread in name))
    if missing:
        raise BadInput(
            f"{shown}: {len(missing)} weights are not in the file, for instance {missing[0]}: they "
            "would keep random values",
            hint=not_whole,
        )
    return model
