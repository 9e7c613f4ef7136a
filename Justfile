# What a developer types. `just` alone lists the recipes.

set positional-arguments

list:
    @just --list --unsorted

# the whole cycle on text that every Python carries
demo:
    pip install -e '.[demo]'
    ance demo

# the tests, as in the README
test *arguments:
    pip install -e '.[test]'
    pytest "$@"

# what must hold before a commit: lint, types, docs, tests
check: lint types docs-check
    pytest

# style and likely mistakes
lint:
    ruff check .
    ruff format --check .

# static types
types:
    mypy

# write the generated command-line reference
docs:
    python -m ance_cli.cli.reference > docs/reference/commands.md

# the generated reference is the program's
docs-check:
    python -m ance_cli.cli.reference | diff - docs/reference/commands.md

# benchmarks print tables and assert nothing
bench:
    python benchmarks/encode.py
    python benchmarks/startup.py
    python benchmarks/train.py
    python benchmarks/loop.py

# the paper's study: every cell that is not done yet, then the tables (docs/reproduce.md)
reproduce *arguments:
    python -m benchmarks.study run "$@"; code=$?; \
    python -m benchmarks.study table && exit $code
