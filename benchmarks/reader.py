"""A small extractive reader for `ance read`, trained by plain transformers on a dataset's answers.

    python benchmarks/reader.py --data squad --ckpt DIR -o READER [--steps 500]

A demonstration: a few thousand questions, a small model, minutes on a CPU. Each question of the
train split with an answer is read in its own passage, at the answer's first place there. Every
`--others`-th example is the question in another passage of the same title without an answer, whose
span is the null answer at [CLS], as in SQuAD 2.0: `ance read` compares passages by it.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn import functional
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, get_scheduler
from transformers.utils import logging

from ance_cli.evaluation.answer_match import AnswerMatcher
from ance_cli.formats.dataset import (
    Passage,
    locate,
    positives_of,
    read_answers,
    read_corpus,
    read_qrels,
    read_queries,
)


class Example(NamedTuple):
    question: str
    text: str
    begin: int
    """First character of the answer; -1 = the passage has none."""
    end: int


def examples(data: Path, others: int, seed: int) -> list[Example]:
    """The train split's answers in their passages, in an order drawn from the seed."""
    dataset = locate(data, "train")
    passages = {passage.doc_id: passage for passage in read_corpus(dataset.corpus)}
    queries, answers = (read(dataset.need("queries")) for read in (read_queries, read_answers))
    siblings: dict[str, list[Passage]] = defaultdict(list)
    for passage in passages.values():
        siblings[passage.title].append(passage)
    rng = random.Random(seed)
    found = []
    for query_id, positives in positives_of(read_qrels(dataset.need("qrels")), 1).items():
        gold = answers.get(query_id, [])
        text = passages[positives[0]].text
        answer = next((answer for answer in gold if answer in text), None)
        if answer is None:
            continue
        begin = text.index(answer)
        found.append(Example(queries[query_id], text, begin, begin + len(answer)))
        holds = AnswerMatcher(gold).matches
        other = rng.choice(siblings[passages[positives[0]].title]).text
        if len(found) % others == 0 and not holds(other):
            found.append(Example(queries[query_id], other, -1, -1))
    rng.shuffle(found)
    return found


def batches(found: list[Example], tokenizer, length: int, size: int) -> Iterator[dict]:
    """Endless batches, each a pass's shuffled examples sorted by length within 16 batches."""
    rng = random.Random(0)
    while True:
        order = rng.sample(found, len(found))
        for start in range(0, len(order) - size, 16 * size):
            block = sorted(order[start : start + 16 * size], key=lambda e: len(e.text))
            drawn = [block[at : at + size] for at in range(0, len(block) - size + 1, size)]
            for part in rng.sample(drawn, len(drawn)):
                yield targets(part, tokenizer, length)


def targets(part: list[Example], tokenizer, length: int) -> dict:
    """The inputs, and the answers' `start_positions`, `end_positions` (B,): tokens, 0 = none."""
    inputs = tokenizer(
        [example.question for example in part],
        [example.text for example in part],
        truncation="only_second",
        max_length=length,
        padding=True,
        return_tensors="pt",
    )
    ends = [
        [inputs.char_to_token(row, place, 1) or 0 for place in (e.begin, e.end - 1)]
        if e.begin >= 0
        else [0, 0]
        for row, e in enumerate(part)
    ]
    # an answer that the cut goes through, or lies beyond, is none
    whole = torch.tensor([pair if all(pair) else [0, 0] for pair in ends])  # (B, 2)
    return {**inputs, "start_positions": whole[:, 0], "end_positions": whole[:, 1]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--ckpt", type=Path, required=True, help="an encoder to begin with")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--until", type=int, help="stop after this one of the --steps")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--others", type=int, default=4)
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(options.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    found = examples(options.data, options.others, options.seed)
    print(f"{len(found)} examples, {sum(e.begin < 0 for e in found)} of them without an answer")
    tokenizer = AutoTokenizer.from_pretrained(options.ckpt)
    model = AutoModelForQuestionAnswering.from_pretrained(
        options.ckpt, num_labels=2, dtype=torch.float32
    )
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.01)
    schedule = get_scheduler("linear", optimizer, options.steps // 10, options.steps)

    drawn = batches(found, tokenizer, options.length, options.batch_size)
    started, total = time.perf_counter(), 0.0
    for step in range(1, (options.until or options.steps) + 1):
        inputs = {name: values.to(device) for name, values in next(drawn).items()}
        wanted = [inputs.pop(name) for name in ("start_positions", "end_positions")]
        with torch.autocast(device.type, torch.bfloat16):
            output = model(**inputs)
        logits = (output.start_logits.float(), output.end_logits.float())  # (B, tokens) each
        loss = sum(map(functional.cross_entropy, logits, wanted)) / 2
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        total += loss.item()
        if step % 25 == 0:
            seconds = time.perf_counter() - started
            print(f"step {step}  loss {total / 25:.3f}  {seconds:.0f} s", flush=True)
            total = 0.0
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)


if __name__ == "__main__":
    main()
