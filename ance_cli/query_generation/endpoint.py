"""Queries by a model behind an OpenAI-compatible HTTP API, through its client library."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from ance_cli.config import QueryConfig
from ance_cli.errors import AnceError, BadInput, ResourceExhausted, UsageProblem
from ance_cli.formats.dataset import Passage
from ance_cli.mining.sampling import keyed_generator
from ance_cli.query_generation.writing import INSTRUCTION, Written, filled, query_of

KEY = "OPENAI_API_KEY"
_NO_KEY = "no-key"
"""For servers that ask for no key; the client library insists on one."""
_RETRIES = 5
_SECONDS = 120.0
"""Until a request counts as unanswered."""
_AHEAD = 4
"""A batch has so many passages per request at a time. A killed call loses answers of one batch at
most: those that arrived before the answer of an earlier passage."""
_REASON_LENGTH = 300

T = TypeVar("T")
R = TypeVar("R")


class Endpoint:
    """The model of an endpoint.

    With `skips_refused`, a passage that the endpoint refuses is left out; otherwise it is an error.
    """

    def __init__(self, config: QueryConfig, skips_refused: bool) -> None:
        self._config, self._skips_refused = config, skips_refused
        self._prompt = config.prompt or INSTRUCTION

    @property
    def shaping(self) -> dict[str, Any]:
        return {"prompt": self._prompt, "model": self._config.model}

    @property
    def inputs(self) -> dict[str, str]:
        return {}

    @property
    def reads(self) -> Sequence[Path]:
        return ()

    def open(self) -> EndpointWriter:
        """The writer, with the key that the environment has."""
        return EndpointWriter(self._config, self._prompt, self._skips_refused)


class EndpointWriter:
    """Queries by an endpoint, for several passages at a time.

    Raises `UsageProblem` for a wrong key, URL or model, `ResourceExhausted` if the endpoint does
    not answer, and `BadInput` for a passage that it refuses.
    """

    def __init__(self, config: QueryConfig, prompt: str, skips_refused: bool) -> None:
        try:
            import openai
        except ImportError as error:
            raise UsageProblem(
                "--endpoint needs the package openai", hint="pip install 'ance-cli[openai]'"
            ) from error
        self._openai = openai
        self._config, self._prompt, self._skips_refused = config, prompt, skips_refused
        self._key = os.environ.get(KEY) or _NO_KEY
        self._client = openai.OpenAI(
            base_url=config.endpoint, api_key=self._key, max_retries=_RETRIES, timeout=_SECONDS
        )
        self.batch = _AHEAD * config.requests

    def __call__(self, passages: Sequence[Passage], start: int) -> Iterator[Written]:
        return in_order(self._write, passages[start:], self._config.requests)

    def _write(self, passage: Passage) -> Written:
        prompt = filled(self._prompt, passage.title, passage.text)
        try:
            answers = [
                self._ask(prompt, passage.doc_id, draw) for draw in range(self._config.per_passage)
            ]
        except self._openai.APIError as error:
            if not self._is_refusal(error):
                raise self._problem(error) from error
            reason = f"the endpoint refused it ({self._reason(error)})"
            if not self._skips_refused:
                raise BadInput(
                    f"document {passage.doc_id!r}: {reason}",
                    hint="leave such documents out with --skip-bad, or correct the settings",
                ) from error
            return Written(refused=reason)
        return Written([query_of(answer) for answer in answers])

    def _ask(self, prompt: str, doc_id: str, draw: int) -> str:
        """The model's answer; each draw has a seed of its own."""
        seed = int(keyed_generator(self._config.seed, doc_id, draw).integers(2**31))
        found = self._client.chat.completions.create(
            model=self._config.model,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=self._config.max_new_tokens,
            temperature=self._config.temperature,
            seed=seed,
        )
        choices = getattr(found, "choices", None)
        if not choices:
            raise UsageProblem(
                f"{self._config.endpoint}: the answer is not a chat completion",
                hint="name the base URL of an OpenAI-compatible API; it usually ends in /v1",
            )
        return choices[0].message.content or ""

    def _is_refusal(self, error: Exception) -> bool:
        """Whether the endpoint answered that it does not want this very passage."""
        return getattr(error, "status_code", None) in (400, 413, 422)

    def _problem(self, error: Exception) -> AnceError:
        """Our error for one of the client's that no passage is to blame for."""
        where, reason = self._config.endpoint, self._reason(error)
        status = getattr(error, "status_code", None)
        if status in (401, 403):
            return UsageProblem(
                f"{where}: the endpoint refused the key ({reason})",
                hint=f"set {KEY} in the environment to a key of this endpoint",
            )
        if status in (404, 405):
            return UsageProblem(
                f"{where}: the endpoint has no model {self._config.model!r}, or is not the base "
                f"URL of an API ({reason})",
                hint=f"see its models with: curl {where}/models; a base URL usually ends in /v1",
            )
        return ResourceExhausted(
            f"{where}: no answer after {_RETRIES} retries ({reason})",
            hint="repeat the command when the endpoint answers; finished passages are kept",
        )

    def _reason(self, error: Exception) -> str:
        """The client's message in one line, without the key."""
        text = " ".join(str(error).split()) or type(error).__name__
        return text.replace(self._key, "...")[:_REASON_LENGTH]


def in_order(work: Callable[[T], R], items: Sequence[T], threads: int) -> Iterator[R]:
    """Yield `work(item)` for each item in order, several at a time; the first error is raised.

    The threads are daemons, so that a signal ends the process without waiting for their requests.
    """
    waiting: SimpleQueue[tuple[T, Future[R]]] = SimpleQueue()
    futures: list[Future[R]] = [Future() for _ in items]
    for pair in zip(items, futures, strict=True):
        waiting.put(pair)

    def run() -> None:
        while True:
            try:
                item, future = waiting.get_nowait()
            except Empty:
                return
            try:
                future.set_result(work(item))
            except Exception as error:
                future.set_exception(error)

    for _ in range(min(threads, len(items))):
        threading.Thread(target=run, daemon=True).start()
    try:
        for future in futures:
            yield future.result()
    finally:
        with suppress(Empty):
            while True:
                waiting.get_nowait()
