"""`ance checkpoint`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any

import typer

from ance_cli.call import Call
from ance_cli.cli.flags import FLAGS, METHOD, RUNTIME, Flag
from ance_cli.cli.options import Flags, command
from ance_cli.cli.runner import COMMON, ENCODING_SETTINGS, run_stage
from ance_cli.errors import UsageProblem
from ance_cli.formats.summary import Summary
from ance_cli.models.checkpoint import Checkpoint

Action = StrEnum("Action", ["inspect", "convert", "push"])
PoolingName = StrEnum("PoolingName", ["cls", "mean"])

FLAGS |= {
    "backbone": Flag(Path, "Folder with config and tokenizer, where a source is a single file "
                     "(DPR: bert-base-uncased).", "Data", metavar="DIR"),
    "pooling": Flag(PoolingName, "How a plain encoder's token vectors become one vector; other "
                    "layouts say it themselves.", METHOD),
    "private": Flag(bool, "A new model on the hub is private (push).", RUNTIME),
}  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(
        app,
        "checkpoint",
        f"output backbone pooling similarity {ENCODING_SETTINGS} private force {COMMON}",
        arguments={
            "action": (Action, ..., "inspect: show what a checkpoint is. convert: make one of "
                       "another layout into one of ours (-o). push: send one to the model hub."),
            "sources": (list[Path], ..., "Checkpoint folder, file or hub id; for DPR's two folders "
                        "the question encoder and then the context encoder; for push a checkpoint "
                        "or a run folder (its newest one) and then ORG/NAME."),
        },
        panel="Stages",
    )  # fmt: skip
    def checkpoint(flags: Flags) -> None:
        """Show what a checkpoint is, convert one of another layout, or send one to the hub.

        Converts the original ANCE models and castorini/ance-*, DPR's files and Hugging Face
        folders, sentence-transformers folders, and plain encoders with --pooling. A weight that is
        missing or unknown is an error; nothing is unpickled that is more than tensors.

        To the Hugging Face hub go the checkpoint and its model card (its README.md, or else what
        `ance card` writes) in one commit; the model is made where there is none. Log in first with
        `hf auth login`, or set HF_TOKEN.

        Example: `ance checkpoint push runs/ance/best me/ance-medquad --private`
        """
        run_stage(flags, lambda call: _ACTIONS[flags.action](flags, call))


def _inspect(flags: Flags, _: Any) -> Summary:
    if len(flags.sources) > 1 or flags.output is not None:
        raise UsageProblem(
            "inspect shows one checkpoint", hint="ance checkpoint inspect CKPT, without -o"
        )
    from ance_cli.hub.convert import inspect

    found = inspect(Checkpoint(flags.sources[0]))
    if flags.json:
        return found
    from ance_cli.cli.console import show_facts

    settings = found["pins"]  # quoted, so that a separator of one space is seen
    show_facts(
        {**found, "pins": {n: repr(v) if isinstance(v, str) else v for n, v in settings.items()}}
    )
    return {}


def _convert(flags: Flags, call: Call) -> Summary:
    if flags.output is None:
        raise UsageProblem("convert makes a checkpoint folder", hint="name it with -o DIR")
    from ance_cli.hub.convert import convert

    return convert(
        flags.sources,
        flags.output,
        backbone=flags.backbone,
        pooling=flags.pooling,
        similarity=flags.similarity,
        settings={name: flags[name] for name in ENCODING_SETTINGS.split()},
        call=call,
    )


def _push(flags: Flags, call: Call) -> Summary:
    if len(flags.sources) != 2 or flags.output is not None:
        raise UsageProblem(
            "push takes a checkpoint and its name on the hub",
            hint="ance checkpoint push CKPT ORG/NAME, without -o",
        )
    from ance_cli.hub.push import push

    place, name = flags.sources
    return push(place, name.as_posix(), flags.private, call=call)


_ACTIONS = {"inspect": _inspect, "convert": _convert, "push": _push}
