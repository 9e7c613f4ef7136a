"""`ance checkpoint`."""

from __future__ import annotations

import typer

from ance_cli.call import Call
from ance_cli.cli.command import COMMON, command
from ance_cli.config.calling import CallSettings
from ance_cli.config.data import EncoderChoices
from ance_cli.config.interop import CheckpointConfig
from ance_cli.config.setting import declared
from ance_cli.errors import UsageProblem
from ance_cli.formats.summary import Summary
from ance_cli.models.checkpoint import Checkpoint


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(app, "checkpoint", "Stages", takes=(*COMMON, "trust_remote_code", "force"))
    def checkpoint(call: Call, asked: CallSettings, config: CheckpointConfig) -> Summary | None:
        """Show what a checkpoint is, convert or merge one, or upload one or a dataset to the hub.

        Converts the original ANCE models and castorini/ance-*, DPR's files and Hugging Face
        folders, sentence-transformers folders, plain encoders with --pooling, and adapters of any
        of them, which are merged. A missing or unknown weight is an error. Pickled files are read
        as tensors only.

        push uploads the checkpoint and its model card (its README.md, or what `ance card` writes)
        to the Hugging Face hub in one commit, and creates the model, private without --public, if
        it does not exist. A dataset folder becomes a dataset there, with a card by which
        `datasets` loads its corpus, queries, qrels and negatives. Log in first with `hf auth
        login`, or set HF_TOKEN.

        Example: `ance checkpoint push runs/ance/best me/ance-medquad`
        """
        if config.action in ("convert", "merge"):
            return _convert(config, call)
        if config.action == "push":
            return _push(config, call)
        found = _inspect(config)
        if asked.json:
            return found
        _show(found)
        return None


def _inspect(config: CheckpointConfig) -> Summary:
    if len(config.sources) > 1 or config.output is not None:
        raise UsageProblem(
            "inspect shows one checkpoint", hint="ance checkpoint inspect CKPT, without -o"
        )
    from ance_cli.hub.convert import inspect

    return inspect(Checkpoint(config.sources[0]))


def _show(found: Summary) -> None:
    from ance_cli.cli.console import show_facts

    encoding = {  # quoted, so that a separator of one space is visible
        name: repr(value) if isinstance(value, str) else value
        for name, value in found["encoding"].items()
    }
    served = {f"served by {name}": answer for name, answer in found["servers"].items()}
    others = {name: value for name, value in found.items() if name != "servers"}
    show_facts({**others, "encoding": encoding, **served})


def _convert(config: CheckpointConfig, call: Call) -> Summary:
    if config.output is None:
        raise UsageProblem(
            f"{config.action} writes a checkpoint folder", hint="name it with -o DIR"
        )
    if config.action == "merge" and Checkpoint(config.sources[0]).tower("passage").base is None:
        raise UsageProblem(
            f"{config.sources[0]}: has no adapter to merge",
            hint="ance checkpoint inspect shows what a checkpoint is",
        )
    from ance_cli.hub.convert import convert

    return convert(
        config.sources,
        config.output,
        backbone=config.backbone,
        pooling=config.pooling,
        similarity=config.similarity,
        normalize=config.normalize,
        settings={each.name: getattr(config, each.name) for each in declared(EncoderChoices)},
        call=call,
    )


def _push(config: CheckpointConfig, call: Call) -> Summary:
    if len(config.sources) != 2 or config.output is not None:
        raise UsageProblem(
            "push takes a checkpoint or a dataset folder, and its name on the hub",
            hint="ance checkpoint push CKPT ORG/NAME, without -o",
        )
    from ance_cli.hub.push import push
    from ance_cli.hub.push_dataset import is_dataset, push_dataset

    place, name = config.sources
    if is_dataset(place):
        return push_dataset(place, name.as_posix(), config.public, call)
    return push(place, name.as_posix(), config.public, call=call)
