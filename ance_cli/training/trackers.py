"""Sends the lines of the training log to a tracker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ance_cli.config.sets import Tracker
from ance_cli.errors import UsageProblem
from ance_cli.formats import atomic

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Track = Callable[[dict[str, Any]], None]
"""Takes one line of the log: a dict with a `step`."""

_PROJECT = "ance"
_INSTALL = "pip install 'ance-cli[trackers]'"


def make_tracker(
    name: Tracker | None, run_folder: Path, run_name: str, config: dict[str, Any]
) -> Track:
    """The function that sends log lines to the tracker `name`, or ignores them if `name` is None.

    The tracker's files are in a folder of its name in `run_folder`. A resumed run continues its
    chart. `wandb` shows `run_name` and `config`, and obeys its own variables: WANDB_MODE=offline
    needs no network. Raises `UsageProblem` if the package is missing or wandb cannot start.
    """
    if name is None:
        return lambda line: None
    if name not in TRACKERS:
        raise UsageProblem(f"no tracker {name!r}: expected {' or '.join(TRACKERS)}")
    return TRACKERS[name](run_folder, run_name, config)


def _tensorboard(run_folder: Path, _run_name: str, _config: dict[str, Any]) -> Track:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageProblem("tensorboard is not installed", hint=_INSTALL) from error
    writer: SummaryWriter | None = None

    def track(record: dict[str, Any]) -> None:
        nonlocal writer
        step = record["step"]
        if writer is None:  # only now is it known which steps of a killed run are repeated
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
    # stored with the run and not derived from its name: runs in other folders have the same name,
    # and a run that replaces a deleted one is another run
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
            settings=wandb.Settings(console="off"),  # the log needs no progress bars
        )
    except wandb.errors.Error as error:
        raise UsageProblem(
            f"wandb does not start: {error}",
            hint="run wandb login, or set WANDB_MODE=offline to keep the log on this machine",
        ) from error
    atomic.write_bytes(kept, run.id.encode())
    # the x axis is our step: wandb's own step cannot decrease, and a resumed run's does
    run.define_metric("*", step_metric="step")
    return run.log


TRACKERS: dict[Tracker, Callable[[Path, str, dict[str, Any]], Track]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
}
"""tracker(run folder, run name, config) by name."""
