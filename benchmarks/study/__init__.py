"""The paper's study as a grid of cells: `python -m benchmarks.study`
(docs/evidence/reproduce.md)."""
