"""The command line: typer and rich live here and nowhere else."""

from ance_cli.cli import streams  # noqa: F401 (first: before a module looks at sys.stderr)
