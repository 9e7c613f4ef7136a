"""A chat model behind HTTP on this machine: of OpenAI's interface the chat completions."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ance_cli.query_generation import endpoint
from tests.loopback import listening

KEY = "sk-a-key-of-the-tests"
MODEL = "tiny-chat"


def first_words(prompt: str) -> str:
    """A query for a passage of the small world: its topic and its number."""
    found = re.search(r"(\w+) (word\d+)", prompt)
    return f"{found[1]} {found[2]}" if found else ""


class Chat:
    """What the server answers, and what it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.answer: Callable[[str], str | None] = first_words
        self.error: Callable[[str], tuple[int, str] | None] = lambda prompt: None
        self.delay = 0.0
        self.bodies: list[dict[str, Any]] = []
        self.working = self.most = 0
        self.lock = threading.Lock()

    @property
    def prompts(self) -> list[str]:
        """The user's messages, in the order in which they arrived."""
        return [body["messages"][0]["content"] for body in self.bodies]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    chat: Chat

    def log_message(self, *_: object) -> None:
        pass

    def _reply(self, code: int, record: Any) -> None:
        data = record if isinstance(record, bytes) else json.dumps(record).encode()
        self.send_response(code)
        kind = "text/html" if isinstance(record, bytes) else "application/json"
        for name, value in (("Content-Type", kind), ("Content-Length", str(len(data)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/page/chat/completions":
            return self._reply(200, b"<html>a page</html>")
        key = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if key != KEY:
            return self._reply(401, {"error": {"message": f"Incorrect API key provided: {key}"}})
        if self.path != "/v1/chat/completions" or body["model"] != MODEL:
            return self._reply(404, {"error": {"message": "no such model"}})
        chat, prompt = self.chat, body["messages"][0]["content"]
        with chat.lock:
            chat.bodies.append(body)
            chat.working += 1
            chat.most = max(chat.most, chat.working)
        time.sleep(chat.delay)
        with chat.lock:
            chat.working -= 1
        if failed := chat.error(prompt):
            return self._reply(failed[0], {"error": {"message": failed[1]}})
        message = {"role": "assistant", "content": chat.answer(prompt)}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        self._reply(200, {"id": "1", "object": "chat.completion", "created": 0, "model": MODEL,
                          "choices": [choice]})  # fmt: skip


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that was killed says nothing."""


@contextmanager
def running_chat() -> Iterator[Chat]:
    """A chat model that listens on a free port of this machine."""
    chat = Chat()
    with listening(type("Handler", (_Handler,), {"chat": chat}), _Server) as address:
        chat.url = f"{address}/v1"
        yield chat


@pytest.fixture(name="chat")
def chat_that_is_asked_once(monkeypatch) -> Iterator[Chat]:
    """A running chat model with its key; a refused request is not tried again."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(endpoint, "_RETRIES", 0)
    with running_chat() as found:
        yield found
