"""The small world that the tests live in: a dataset, a backbone, and the real program."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from ance_cli.progress import Silent

TOPICS = ["river", "violin", "granite", "engine", "orchid", "comet", "bread", "falcon"]
FILLER = ["the", "of", "a", "is", "and", "with", "old", "new", "small", "large", "found", "made"]
NUM_DOCS = 64


def data_root(variable: str) -> Path:
    """The folder that an environment variable names; the test is skipped, saying so, where not."""
    root = os.environ.get(variable)
    if not root:
        pytest.skip(f"{variable} is not set")
    return Path(root)


def write_jsonl(path: Path, records: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def make_dataset(folder: Path, copies: bool = True) -> Path:
    """64 documents on 8 topics; 24 train queries, 8 dev ones, two positives each.

    With `copies`, document d63 has the text of d0, which is a positive of q0.
    """
    rng = random.Random(7)
    docs = []
    for number in range(NUM_DOCS):
        topic = TOPICS[number % len(TOPICS)]
        words = [topic, f"word{number}", *rng.choices(FILLER, k=rng.randint(5, 25)), topic]
        docs.append({"_id": f"d{number}", "title": f"{topic} {number}", "text": " ".join(words)})
    if copies:
        docs[-1]["text"] = docs[0]["text"]
    write_jsonl(folder / "corpus.jsonl", docs)
    queries, qrels = [], {"train": [], "dev": []}
    for number in range(32):
        topic = TOPICS[number % len(TOPICS)]
        queries.append({"_id": f"q{number}", "text": f"{topic} word{number}"})
        split = "train" if number < 24 else "dev"
        qrels[split] += [(f"q{number}", f"d{number}", 1), (f"q{number}", f"d{number + 8}", 1)]
        qrels[split].append((f"q{number}", f"d{(number + 3) % NUM_DOCS}", 0))
    write_jsonl(folder / "queries.jsonl", queries)
    (folder / "qrels").mkdir(exist_ok=True)
    for split, rows in qrels.items():
        lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in rows)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def make_tokenizer():
    """A word-level tokenizer of the small world, with BERT's special tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *TOPICS, *FILLER]
    words += [f"word{number}" for number in range(NUM_DOCS)] + [str(n) for n in range(NUM_DOCS)]
    vocabulary = {word: place for place, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def small_bert(vocabulary: int, **changes):
    """The configuration of a BERT of two layers."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        hidden_dropout_prob=0.1,
        **changes,
    )


def make_backbone(folder: Path) -> Path:
    """A plain Hugging Face BERT with random weights."""
    import torch
    from transformers import BertModel

    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(small_bert(len(tokenizer)), add_pooling_layer=False).save_pretrained(folder)
    return folder


def make_cross_encoder(folder: Path, labels: int = 1) -> Path:
    """A BERT classifier with random weights, large enough for its scores to differ."""
    import torch
    from transformers import BertForSequenceClassification

    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = small_bert(len(tokenizer), num_labels=labels, initializer_range=0.2)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def make_reader(folder: Path, kind: str) -> Path:
    """A reader with random weights: `dpr`, `extractive`, `seq2seq` or `causal`."""
    import torch
    import transformers

    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    bert = small_bert(len(tokenizer), initializer_range=0.2)
    if kind == "dpr":
        model = transformers.DPRReader(transformers.DPRConfig(**bert.to_dict()))
    elif kind == "extractive":
        model = transformers.BertForQuestionAnswering(bert)
    elif kind == "seq2seq":
        model = transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
                n_positions=80, decoder_start_token_id=0, eos_token_id=3, pad_token_id=0,
            )
        )  # fmt: skip
    else:
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=96,
                initializer_range=0.2, bos_token_id=2, eos_token_id=3,
            )
        )  # fmt: skip
    model.save_pretrained(folder)
    return folder


class Said(Silent):
    """A reporter that keeps what was said and warned of."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.warnings: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


class Ance:
    """The real program, run in a scratch folder; on a surprise it shows all that was printed."""

    def __init__(self, cwd: Path) -> None:
        self.cwd = cwd

    def environment(self, **extra: str) -> dict[str, str]:
        return {**os.environ, **extra}

    def start(self, *arguments: object, **options) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "ance_cli", *map(str, arguments)],
            cwd=self.cwd,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def __call__(self, *arguments: object, code: int = 0, stdin: str | None = None, **env: str):
        found = subprocess.run(
            [sys.executable, "-m", "ance_cli", *map(str, arguments)],
            cwd=self.cwd,
            env=self.environment(**env),
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            timeout=240,
        )
        shown = (
            f"in {self.cwd}: ance {' '.join(map(str, arguments))}\nexit code {found.returncode}, "
            f"expected {code}\n--- stdout\n{found.stdout}\n--- stderr\n{found.stderr}"
        )
        assert found.returncode == code, shown
        if code in (2, 3, 4, 5, 6, 7):
            assert "Traceback" not in found.stderr, shown
        return found


class AnceInside(Ance):
    """The same command line in this process: for many small calls, which then import torch once."""

    def __call__(self, *arguments: object, code: int = 0, stdin: str | None = None, **env: str):
        from ance_cli.cli.exit import exit_code_of
        from ance_cli.cli.main import app

        assert stdin is None and not env, "such calls need a process of their own"
        words = list(map(str, arguments))
        out, err = io.TextIOWrapper(io.BytesIO()), io.StringIO()
        with chdir(self.cwd), redirect_stdout(out), redirect_stderr(err):
            found = exit_code_of(lambda: app(words))
        out.seek(0)
        result = subprocess.CompletedProcess(words, found, out.read(), err.getvalue())
        shown = f"in {self.cwd}: ance {' '.join(words)}\n{result.stdout}\n{result.stderr}"
        assert found == code, f"exit code {found}, expected {code}, {shown}"
        return result


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes, to compare two artifacts."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def jsonl(path: Path) -> list[dict]:
    """The records of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
