"""The paper's study as a grid of cells: `python -m tests.benchmarks.study` (docs/reproduce.md)."""
