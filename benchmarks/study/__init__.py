"""The paper's study as a grid of cells: `python -m benchmarks.study`, in
docs/evidence/reproduce.md."""
