"""`python -m ance_cli` is the same program as `ance`; the loop starts its stages this way."""

import os
import sys

if __name__ == "__main__":
    if not sys.flags.safe_path and sys.path[0] == os.getcwd():
        del sys.path[0]  # by -m; a queue.py in the working folder is not the library's
    from ance_cli.cli.main import run

    run()
