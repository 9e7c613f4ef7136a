"""`ance refresh --follow`: the refresh daemon, which refreshes a run from newer checkpoints."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ance_cli.call import Call
from ance_cli.config import FollowConfig, RefreshDevices
from ance_cli.formats.run_folder import REFRESHER, Pointer, RunFolder
from ance_cli.formats.summary import Summary
from ance_cli.loop.drift import measured_overlap, read_probe
from ance_cli.loop.refresh import refresh
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.devices import need_local_gpus
from ance_cli.progress import Reporter

_POLL_SECONDS = 0.5


def refresh_while_training(
    output: Path,
    given: Mapping[str, Any] | None = None,
    follow: FollowConfig = FollowConfig(),
    devices: RefreshDevices = RefreshDevices(),
    call: Call = Call(),
) -> Summary:
    """Refresh from the run's newest checkpoint whenever there is a new one, or with
    `follow.refresh` "auto" whenever the probe's overlap has fallen below the threshold.

    Skips checkpoints that were replaced by newer ones during a refresh. Ends when the checkpoint of
    step `follow.until` has its generation; 0 = never.
    """
    need_local_gpus(devices.local_gpus)
    run = RunFolder(output)
    _wait_for(run, call.reporter)
    near_step = -1  # the last step whose checkpoint was too near to the negatives for a refresh
    made: Summary = {"output": str(output), "kind": "generation", "up_to_date": True}
    while True:
        found = _Progress.of(run)
        if follow.until and found.refreshed_step >= follow.until:
            return made
        is_last = bool(follow.until) and found.step >= follow.until
        is_news = found.step > found.refreshed_step and (found.step > near_step or is_last)
        if not is_news:
            time.sleep(_POLL_SECONDS)
        elif (
            follow.refresh == "auto" and not is_last and _is_near(run, found, follow, devices, call)
        ):
            near_step = found.step
        else:
            made = refresh(output, given, devices, follow.keep, call)


def _wait_for(run: RunFolder, reporter: Reporter) -> None:
    """Wait until the run exists."""
    if run.exists:
        return
    reporter.say(f"waiting for the run {run.path}")
    while not run.exists:
        time.sleep(_POLL_SECONDS)


@dataclass(frozen=True)
class _Progress:
    """How far training and refreshes are; steps are -1 before the first checkpoint and
    generation."""

    step: int
    refreshed_step: int
    published: Pointer | None

    @classmethod
    def of(cls, run: RunFolder) -> _Progress:
        newest, published = run.newest_checkpoint(), run.published()
        done = published.checkpoint_step if published else -1
        return cls(newest[0] if newest else -1, done, published)


def _is_near(
    run: RunFolder, found: _Progress, follow: FollowConfig, devices: RefreshDevices, call: Call
) -> bool:
    """Whether the newest checkpoint still ranks the probe as the published generation did."""
    published = found.published
    before = read_probe(run.published_folder(published)) if published else None
    if published is None or before is None:
        return False
    compute = devices.compute(run.refresh_settings()["encode_dtype"]).local
    checkpoint = Checkpoint(run.checkpoint(found.step).path)
    overlap = measured_overlap(checkpoint, run.dataset(), before, compute, call.reporter)
    is_near = overlap >= follow.drift_threshold
    run.event(
        REFRESHER,
        "drift measured",
        checkpoint_step=found.step,
        generation=published.generation,
        overlap=round(overlap, 4),
        refresh=not is_near,
    )
    call.reporter.say(
        f"step {found.step}: the probe's overlap with generation {published.generation} is "
        f"{overlap:.3f}: {'no refresh yet' if is_near else 'refresh'}"
    )
    return is_near
