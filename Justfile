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

# the pages as a static site in site/, which needs no server and no network
site:
    pip install -e '.[site]'
    NO_MKDOCS_2_WARNING=1 mkdocs build --strict -f docs/.site/mkdocs.yml

# the site at http://127.0.0.1:8000, built again whenever a page changes
site-serve:
    pip install -e '.[site]'
    NO_MKDOCS_2_WARNING=1 mkdocs serve -f docs/.site/mkdocs.yml -w README.md -w data

# the README's terminal, docs/figures/demo.svg: what the command prints here and now
picture *command='ance demo --quick':
    python benchmarks/picture.py docs/figures/demo.svg -- {{command}}

# what must hold before a release: wheel and sdist, and the wheel at work in an empty environment
release-check:
    .ci/release-check

# benchmarks print tables and assert nothing
bench:
    python benchmarks/encode.py
    python benchmarks/startup.py
    python benchmarks/train.py
    python benchmarks/loop.py

# the paper's study: every cell that is not done yet, then the tables (docs/evidence/reproduce.md)
reproduce *arguments:
    python -m benchmarks.study run "$@"; code=$?; \
    python -m benchmarks.study table && exit $code
