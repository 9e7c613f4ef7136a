"""`python -m ance_cli` is the same program as `ance`; the loop starts its stages this way."""

from ance_cli.cli.main import run

if __name__ == "__main__":
    run()
