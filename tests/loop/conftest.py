"""What the tests of the loop share."""

import pytest

from ance_cli.errors import ResourceExhausted
from ance_cli.formats.run_folder import RunFolder
from ance_cli.progress import Silent


@pytest.fixture
def full_disk(monkeypatch):
    """A disk without room for a line of `events.jsonl`; a reporter, and the warnings it gets."""

    def event(*_, **__):
        raise ResourceExhausted("events.jsonl: no room left on the disk")

    warnings = []
    reporter = Silent()
    reporter.warn = warnings.append
    monkeypatch.setattr(RunFolder, "event", event)
    return reporter, warnings


@pytest.fixture
def run(tmp_path):
    """A run folder without checkpoints."""
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.write_settings("run.json", {})
    return run
