"""A command that is up to date says so without loading what it would need to work."""

import json
import subprocess
import sys

from tests.world import make_reader


def test_up_to_date_loads_nothing_heavy(ance, inside, dataset, checkpoint):
    (ance.cwd / "n.jsonl").write_text(
        json.dumps({"query_id": "q0", "positive_id": "d0", "negative_ids": ["d1"]}) + "\n"
    )
    make_reader(ance.cwd / "writer", "causal")
    for arguments in (
        ["generate-queries", "--data", "data", "--model", "writer", "--round-trip-depth", "0",
         "--max-new-tokens", "4", "-o", "generated"],
        ["encode", "--ckpt", str(checkpoint), "--data", "data", "-o", "emb"],
        ["mine", "--ckpt", str(checkpoint), "--data", "data", "--embeddings", "emb", "--depth",
         "9", "-o", "ann.jsonl"],
        ["index", "emb", "-o", "index"],
        ["train-segment", "n.jsonl", "--data", "data", "--ckpt", str(checkpoint), "--steps", "1",
         "--batch-size", "1", "-o", "run"],
        ["search", "--ckpt", str(checkpoint), "--data", "data", "--split", "dev", "--embeddings",
         "emb", "-o", "dev.trec"],
    ):  # fmt: skip
        inside(*arguments)
        code = (
            f"import sys; sys.argv = ['ance', *{arguments!r}]\n"
            "from ance_cli.cli.main import run\n"
            "try:\n    run()\nfinally:\n"
            "    heavy = 'torch', 'transformers', 'faiss', 'scipy'\n"
            "    print([name for name in heavy if name in sys.modules])"
        )
        found = subprocess.run([sys.executable, "-c", code], cwd=ance.cwd, capture_output=True,
                               text=True, env=ance.environment())  # fmt: skip
        assert "up to date" in found.stderr and found.stdout.strip() == "[]", (arguments, found)
