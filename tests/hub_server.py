"""A model hub on this machine: of its HTTP interface what pushing and fetching a model takes, and
what pushing a dataset does."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.loopback import listening

TOKEN = "hf_a_token_of_the_tests"


class Hub:
    """What a hub holds: models as lists of commits, each a name -> bytes of all its files."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.models: dict[str, list[dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.types: dict[str, str] = {}
        self.messages: list[str] = []
        self.stored: dict[str, bytes] = {}
        self.asked: list[str] = []

    @property
    def environment(self) -> dict[str, str]:
        """What leads a program to this hub."""
        return {"HF_ENDPOINT": self.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0",
                "HF_HUB_DISABLE_XET": "1"}  # fmt: skip

    def commits(self, model: str) -> list[str]:
        """The hashes of a model's commits, oldest first."""
        return [
            hashlib.sha1(f"{model} {n}".encode()).hexdigest()
            for n in range(len(self.models[model]))
        ]

    def files_at(self, model: str, revision: str) -> tuple[str, dict[str, bytes]]:
        """(hash, files) of a commit; a model without one has none."""
        names = self.commits(model)
        at = -1 if revision == "main" else names.index(revision)
        return names[at], self.models[model][at]

    # ------------------------------------------------------------ what clients ask

    def create(self, body: dict[str, Any]) -> tuple[int, Any]:
        model = f"{body['organization']}/{body['name']}"
        found = {"url": f"{self.endpoint}/{model}", "name": model}
        if model in self.models:
            return 409, {**found, "error": "You already created this model repo"}
        self.models[model] = []
        self.types[model] = body.get("type", "model")
        self.private[model] = body.get("visibility") == "private" or body.get("private") is True
        return 200, found

    def preupload(self, body: dict[str, Any]) -> tuple[int, Any]:
        """Weights go to the store, the rest into the commit."""
        return 200, {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in body["files"]
            ]
        }

    def batch(self, body: dict[str, Any]) -> tuple[int, Any]:
        objects = []
        for wanted in body["objects"]:
            actions = {
                "upload": {"href": f"{self.endpoint}/store/{wanted['oid']}"},
                "verify": {"href": f"{self.endpoint}/verify"},
            }
            known = wanted["oid"] in self.stored
            objects.append({**wanted, **({} if known else {"actions": actions})})
        return 200, {"transfer": "basic", "objects": objects}

    def verify(self, body: dict[str, Any]) -> tuple[int, Any]:
        whole = len(self.stored.get(body["oid"], b"")) == body["size"]
        return (200, {}) if whole else (404, {"error": "not stored"})

    def commit(self, model: str, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        files = dict(self.models[model][-1]) if self.models[model] else {}
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.stored[value["oid"]]
        self.models[model].append(files)
        newest = self.commits(model)[-1]
        url = f"{self.endpoint}/{model}/commit/{newest}"
        return 200, {"success": True, "commitOid": newest, "commitUrl": url}

    def info(self, model: str, revision: str) -> tuple[int, Any]:
        commit, files = self.files_at(model, revision)
        siblings = [{"rfilename": name} for name in files]
        return 200, {"id": model, "sha": commit, "private": False, "siblings": siblings}

    def listing(self, model: str, revision: str) -> tuple[int, Any]:
        files = self.files_at(model, revision)[1]
        return 200, [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in files.items()
        ]


_MODEL = r"([\w.-]+/[\w.-]+)"
_API = r"/api/(?:models|datasets)"
_ASKED = [
    ("POST", r"/api/repos/create", lambda hub, body: hub.create(body)),
    ("POST", r"/api/validate-yaml", lambda hub, body: (200, {"errors": [], "warnings": []})),
    ("POST", rf"{_API}/{_MODEL}/preupload/main", lambda hub, body, _: hub.preupload(body)),
    (
        "POST",
        rf"(?:/datasets)?/{_MODEL}\.git/info/lfs/objects/batch",
        lambda hub, body, _: hub.batch(body),
    ),
    ("POST", r"/verify", lambda hub, body: hub.verify(body)),
    ("POST", rf"{_API}/{_MODEL}/commit/main", lambda hub, body, name: hub.commit(name, body)),
    ("GET", rf"/api/models/{_MODEL}/revision/(\w+)", lambda hub, body, *of: hub.info(*of)),
    ("GET", rf"/api/models/{_MODEL}", lambda hub, body, name: hub.info(name, "main")),
    ("GET", rf"/api/models/{_MODEL}/tree/(\w+)", lambda hub, body, *of: hub.listing(*of)),
]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, code: int, data: bytes, **headers: str) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _handle(self) -> None:
        path, data = self.path.partition("?")[0], self._body()
        self.hub.asked.append(f"{self.command} {path}")
        if self.command == "PUT":  # the store's own address says who may write
            self.hub.stored[path.removeprefix("/store/")] = data
            return self._answer(200, b"")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            text = "Invalid username or password."
            return self._answer(401, json.dumps({"error": text}).encode(), X_Error_Message=text)
        if found := re.fullmatch(rf"/{_MODEL}/resolve/(\w+)/(.*)", path):
            commit, files = self.hub.files_at(found[1], found[2])
            etag = hashlib.sha1(files[found[3]]).hexdigest()
            return self._answer(200, files[found[3]], X_Repo_Commit=commit, ETag=f'"{etag}"')
        for method, pattern, answer in _ASKED:
            found = re.fullmatch(pattern, path)
            if found and method == self.command:
                if found.groups() and found[1] not in self.hub.models:
                    break
                lines = [json.loads(line) for line in data.splitlines()]
                body = lines if path.endswith("/commit/main") else lines[0] if lines else {}
                code, reply = answer(self.hub, body, *found.groups())
                return self._answer(code, json.dumps(reply).encode())
        return self._answer(404, b"{}", X_Error_Code="RepoNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = _handle  # noqa: N815


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that listens on a free port of this machine."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with listening(handler) as hub.endpoint:
        yield hub
