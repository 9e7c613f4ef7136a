"""The Python guide's blocks run in order on the small dataset; the reference lists real names."""

import importlib
import re
import shutil
from pathlib import Path

import pytest

from tests.world import jsonl, make_dataset

DOCS = Path(__file__).parents[2] / "docs"
GUIDE = (DOCS / "guides" / "from-python.md").read_text()
REFERENCE = (DOCS / "reference" / "python.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_the_blocks_run_in_order(tmp_path, backbone, monkeypatch, capsys):
    make_dataset(tmp_path / "data")
    shutil.copytree(backbone, tmp_path / "bert")
    monkeypatch.chdir(tmp_path)
    session: dict = {}
    for number, block in enumerate(BLOCKS, start=1):
        exec(compile(block, f"from-python.md, block {number}", "exec"), session)
    printed = capsys.readouterr().out
    assert len(BLOCKS) == 9 and len(session["positives"]) == 24
    assert session["trained"]["output"] == "runs/warmup"
    assert session["both"].shape == (2, 32) and len(session["negatives"]) > 24
    assert len(jsonl(session["faq"] / "corpus.jsonl")) == 2
    assert session["query_vectors"].shape == (2, 32) and session["places"].shape == (2, 3)
    assert len(jsonl(tmp_path / "ann.jsonl")) == session["mined"]["audit"]["pairs"]
    assert [run["run"] for run in session["measured"]["runs"]] == ["bm25.trec", "ance.trec"]
    assert session["made"]["checkpoint_step"] == 4 and "RR@10" in session["made"]["dev"]
    assert "encoding" in printed and "Mismatch" in printed and "encode again" in printed


def test_what_the_page_lists_is_there():
    rows = re.findall(r"^\| `(ance_cli(?:\.\w+)?)` \| (.*) \|$", REFERENCE, re.MULTILINE)
    assert len(rows) > 10
    for room, cell in rows:
        for name in re.findall(r"`([\w.]+)`", cell):
            module, _, attribute = name.partition(".")
            found = importlib.import_module(f"{room}.{module}")
            assert hasattr(found, attribute or module) or not attribute, f"{room}.{name}"
