"""Sending the records of the training log on to a tracker that draws them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ance_cli.errors import UsageProblem
from ance_cli.formats import atomic

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Track = Callable[[dict[str, Any]], None]
"""Takes one record of the log: a dict with a `step`."""

TRACKERS = ("tensorboard", "wandb")
_PROJECT = "ance"
_INSTALL = "pip install 'ance-cli[trackers]'"


def make_tracker(
    name: str | None, run_folder: Path, run_name: str, config: dict[str, Any]
) -> Track:
    """The function that sends records to the tracker `name`; None is no tracker.

    Its files lie in `run_folder`, in a folder of the tracker's name. A resumed run goes on in the
    same chart. `run_name` and `config` are shown by `wandb`, which obeys its own variables:
    WANDB_MODE=offline needs no network. Raises `UsageProblem` where the package is missing or
    wandb cannot start.
    """
    if name is None:
        return lambda record: None
    if name == "tensorboard":
        return _tensorboard(run_folder)
    if name == "wandb":
        return _wandb(run_folder, run_name, config)
    raise UsageProblem(f"no tracker {name!r}: expected {' or '.join(TRACKERS)}")


def _tensorboard(run_folder: Path) -> Track:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageProblem("tensorboard is not installed", hint=_INSTALL) from error
    writer: SummaryWriter | None = None

    def track(record: dict[str, Any]) -> None:
        nonlocal writer
        step = record["step"]
        if writer is None:  # only now is it known which steps of a killed run are done again
            folder = str(run_folder / "tensorboard")
            writer = SummaryWriter(folder, purge_step=step)
        for field, value in record.items():
            if field != "step" and type(value) in (int, float):
                writer.add_scalar(field, value, step)
        writer.flush()

    return track


def _wandb(run_folder: Path, run_name: str, config: dict[str, Any]) -> Track:
    try:
        import wandb
    except ImportError as error:
        raise UsageProblem("wandb is not installed", hint=_INSTALL) from error
    # kept with the run and not made from its name: other runs have the same name elsewhere, and a
    # run that is made anew in the same place is another one
    kept = run_folder / "wandb" / "id"
    run_id = kept.read_text() if kept.exists() else None
    if wandb.run is not None and wandb.run.id == run_id:  # an earlier segment, in this process
        return wandb.run.log
    try:
        run = wandb.init(
            project=_PROJECT,
            name=run_name,
            config=config,
            dir=run_folder,
            id=run_id,
            resume="allow",
            reinit="finish_previous",
            settings=wandb.Settings(console="off"),  # progress bars are no log
        )
    except wandb.errors.Error as error:
        raise UsageProblem(
            f"wandb does not start: {error}",
            hint="wandb login, or WANDB_MODE=offline to keep the records here",
        ) from error
    atomic.write_bytes(kept, run.id.encode())
    # a chart over our steps: wandb's own may not go back, which those of a resumed run do
    run.define_metric("*", step_metric="step")
    return run.log
