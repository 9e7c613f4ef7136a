"""Queries that a model writes for passages."""
# fmt: off

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from ance_cli.config.retrieval import SEED, Seed
from ance_cli.config.sets import SearchEngine
from ance_cli.config.setting import DATA, METHOD, RUNTIME, Config, Setting, check

_BATCH_SIZE = 16
_CONCURRENCY = 8


@dataclass(frozen=True, kw_only=True)
class QueryConfig(Config):
    """Queries for passages, and which of them are kept.

    One query per passage follows InPars (Bonifacio et al., SIGIR 2022). The round trip is
    Promptagator's (Dai et al., ICLR 2023), which keeps a query if its passage is the first result
    of a retriever that was trained on such queries. BM25 was not trained on them, and of near
    copies any may come first, so the default depth is 3.
    """

    model: Annotated[str, Setting(
        "Model that writes the queries: a folder or ORG/NAME on the Hugging Face hub, "
        "sequence-to-sequence or causal; with --endpoint, a name that the endpoint knows.", DATA,
        metavar="NAME", shapes=False)]
    endpoint: Annotated[str, Setting(
        "Base URL of an OpenAI-compatible API, for instance http://localhost:8000/v1; its key is "
        "read from the environment variable OPENAI_API_KEY.", DATA, metavar="URL",
        only_asked=True)] | None = None
    split: Annotated[str, Setting(
        "Split of the new labels: writes qrels/SPLIT.tsv.", DATA, metavar="NAME")] = "train"
    sample: Annotated[int, Setting(
        "Passages to write queries for, drawn with --seed (default: every passage with a text).",
        METHOD, at_least=1)] | None = None
    per_passage: Annotated[int, Setting(
        "Queries to write per passage.", METHOD, at_least=1, at_most=1000)] = 1
    prompt: Annotated[str, Setting(
        "Prompt with {text} and, if wanted, {title} (default: '{title} {text}' for a "
        "sequence-to-sequence model, an instruction for others).", METHOD,
        metavar="TEXT")] | None = None
    max_new_tokens: Annotated[int, Setting(
        "Longest query, in tokens of the model.", METHOD, at_least=1, at_most=4096)] = 64
    temperature: Annotated[float, Setting(
        "Temperature of the draws; 0 takes the likeliest token each time.", METHOD, at_least=0,
        at_most=100)] = 0.0
    seed: Seed = SEED
    round_trip_depth: Annotated[int, Setting(
        "Keep a query if --engine finds its passage among so many documents; 0 = keep every query.",
        METHOD, at_least=0)] = 3
    engine: Annotated[SearchEngine, Setting(
        "Retriever of the round trip: BM25 by lucene or bm25s, or dense with --ckpt (default: "
        "lucene).", METHOD, shapes=False)] | None = None
    batch_size: Annotated[int, Setting(
        f"Passages that a local model reads at a time (default: {_BATCH_SIZE}).", RUNTIME,
        at_least=1, shapes=False)] | None = None
    concurrency: Annotated[int, Setting(
        f"Requests that --endpoint gets at a time (default: {_CONCURRENCY}).", RUNTIME, at_least=1,
        at_most=1024, shapes=False)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.prompt is None or "{text}" in self.prompt,
              f"--prompt {self.prompt!r} has no {{text}}: the model would not see the passage")
        check(self.per_passage == 1 or self.temperature > 0,
              f"--per-passage {self.per_passage} with --temperature 0 writes the same query "
              "every time", hint="draw the queries with a --temperature such as 0.7")
        check(self.split.split() == [self.split] and self.split[0] != "." and "/" not in self.split,
              f"--split {self.split!r} cannot be the name of a file in qrels/")
        check(self.engine is None or self.round_trip_depth > 0,
              f"--engine {self.engine} searches nothing: --round-trip-depth 0 keeps every query")
        check(self.batch_size is None or self.endpoint is None,
              "--batch-size is for local models; --endpoint has --concurrency")
        check(self.concurrency is None or self.endpoint is not None,
              "--concurrency needs --endpoint; a local model has --batch-size")
        if self.endpoint is not None:
            _check_url(self.endpoint)

    @property
    def retriever(self) -> SearchEngine | None:
        """The engine of the round trip, None if every query is kept."""
        return (self.engine or "lucene") if self.round_trip_depth else None

    @property
    def passages_per_batch(self) -> int:
        """Passages that a local model reads at a time."""
        return self.batch_size or _BATCH_SIZE

    @property
    def requests(self) -> int:
        """Requests that an endpoint gets at a time."""
        return self.concurrency or _CONCURRENCY


def _check_url(url: str) -> None:
    """Refuse what is no base URL, and a secret in it: the manifest records the URL."""
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    check(parts.scheme in ("http", "https") and bool(parts.hostname),
          f"--endpoint {url!r}: expected a URL such as http://localhost:8000/v1")
    check(not (parts.username or parts.password or parts.query or parts.fragment),
          "--endpoint has a user, a password or parameters, and the manifest records the URL",
          hint="name the URL alone, and set the key as OPENAI_API_KEY in the environment")
