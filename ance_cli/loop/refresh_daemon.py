"""`ance refresh --follow`: a run's inferencer, which turns newer checkpoints into negatives."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ance_cli.call import Call
from ance_cli.config import EncodeConfig, FollowConfig
from ance_cli.formats.run_folder import Pointer, RunFolder
from ance_cli.formats.summary import Summary
from ance_cli.loop.drift import measured_overlap, read_probe
from ance_cli.loop.refresh import refresh
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.progress import Reporter

_POLL_SECONDS = 0.5


def refresh_while_training(
    output: Path,
    given: Mapping[str, Any] | None = None,
    follow: FollowConfig = FollowConfig(),
    gpus: str = "all",
    ray: str | None = None,
    call: Call = Call(),
) -> Summary:
    """Refresh from the run's newest checkpoint whenever there is a new one, or with
    `follow.refresh` "auto" whenever the probe's overlap has fallen under the threshold.

    Checkpoints that came and went in between are missed on purpose. Ends when the checkpoint of
    step `follow.until` has its generation; 0 = never.
    """
    run = RunFolder(output)
    if not run.exists:
        call.reporter.say(f"waiting for the run {output}")
        while not run.exists:
            time.sleep(_POLL_SECONDS)
    judged = -1  # the step whose checkpoint was found to be near enough to the negatives
    made: Summary = {"output": str(output), "kind": "generation", "up_to_date": True}
    while True:
        newest, published = run.newest_checkpoint(), run.published()
        step = newest[0] if newest else -1
        done = published.checkpoint_step if published else -1
        if follow.until and done >= follow.until:
            return made
        is_last = bool(follow.until) and step >= follow.until
        if step <= done or (step <= judged and not is_last):
            time.sleep(_POLL_SECONDS)
        elif published and follow.refresh == "auto" and not is_last and step > judged:
            if _near(run, published, step, follow.drift_threshold, gpus, call.reporter):
                judged = step
            else:
                made = refresh(output, given, gpus, keep=follow.keep, ray=ray, call=call)
        else:
            made = refresh(output, given, gpus, keep=follow.keep, ray=ray, call=call)


def _near(
    run: RunFolder,
    published: Pointer,
    step: int,
    threshold: float,
    gpus: str,
    reporter: Reporter,
) -> bool:
    """Whether the newest checkpoint still ranks the probe as the published generation's did."""
    before = read_probe(run.published_folder(published))
    if before is None:
        return False
    settings = run.refresh_settings()
    compute = EncodeConfig(dtype=settings["encode_dtype"], gpus=gpus)
    checkpoint = Checkpoint(run.checkpoint(step).path)
    found = measured_overlap(checkpoint, run.dataset(), before, compute, reporter)
    near = found >= threshold
    measured = {"generation": published.generation, "overlap": round(found, 4)}
    run.event("inferencer", "drift measured", checkpoint_step=step, **measured, refresh=not near)
    reporter.say(
        f"step {step}: the probe overlaps by {found:.3f} with generation "
        f"{published.generation}: {'no refresh yet' if near else 'refresh'}"
    )
    return near
