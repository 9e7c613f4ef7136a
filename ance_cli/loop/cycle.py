"""The order of a synchronous loop: a refresh, a segment on its negatives, and again.

What comes next is read from the run folder alone, so that a loop can be killed at any time and
continued by the same call.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ance_cli.formats.run_folder import RunFolder
from ance_cli.loop.supervisor import StageFailed


def cycle(
    run: RunFolder,
    last_step: int,
    segment_steps: int,
    refresh: Callable[[], None],
    train: Callable[[Path, int], None],
    stop_early: Callable[[], str | None],
) -> str | None:
    """Alternate refreshes and training until the newest checkpoint is at `last_step` and has its
    generation. An unfinished segment is finished first, on its own negatives.

    `train` takes the negatives and the number of steps. Returns why `stop_early` ended the cycle,
    None if it did not. Raises `StageFailed` if a stage ended without an error and changed nothing.
    """
    before = None
    while True:
        newest = run.newest_checkpoint()
        published = run.published()
        unfinished = run.unfinished_segment()
        step = newest[0] if newest else 0
        found = (step, published, unfinished)
        if found == before:
            raise StageFailed(
                f"{run.path}: a stage ended without an error, but the run is still at step {step}",
                hint=f"look at the end of {run.events}",
            )
        before = found
        if reason := stop_early():
            return reason
        if unfinished and unfinished.negatives:
            train(run.path / unfinished.negatives, unfinished.steps)
        elif published is None or published.checkpoint_step < step:
            refresh()
        elif step >= last_step:
            return None
        else:
            state = run.newest_state()  # ahead of the checkpoint after an interrupted async loop
            trained = state[0] if state else 0
            negatives = run.published_folder(published).negatives
            train(negatives, segment_steps - trained % segment_steps)
