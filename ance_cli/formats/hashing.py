"""Content hashes (xxh3, 128 bits, hexadecimal), and a cache so that a file is hashed once."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson
import platformdirs
import xxhash

from ance_cli.errors import BadInput, ResourceExhausted, naming
from ance_cli.formats import atomic

_CHUNK = 1 << 22


def cache_dir() -> Path:
    """The user's cache folder: `ANCE_CACHE_DIR`, which `--cache-dir` sets, or the platform's."""
    chosen = os.environ.get("ANCE_CACHE_DIR")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("ance"))


def hash_bytes(*parts: bytes) -> str:
    """Hash of the parts; each is preceded by its length, so that no two lists of parts collide."""
    state = xxhash.xxh3_128()
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return str(state.hexdigest())


def hash_json(value: Any) -> str:
    """Hash of a JSON value; the order of its keys does not matter."""
    return hash_bytes(orjson.dumps(value, option=orjson.OPT_SORT_KEYS))


def hash_lines(lines: Iterable[str]) -> str:
    """Hash of an ordered list of strings."""
    state = xxhash.xxh3_128()
    for line in lines:
        state.update(line.encode())
        state.update(b"\n")
    return str(state.hexdigest())


def hash_new_file(path: Path) -> str:
    """Hash of the bytes of a file that is being built; not cached, because its name will change."""
    state = xxhash.xxh3_128()
    with naming(path), open(path, "rb") as handle:
        while chunk := handle.read(_CHUNK):
            state.update(chunk)
    return str(state.hexdigest())


def hash_file(path: Path) -> str:
    """Hash of a file's bytes, cached by path, size and modification time."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file", hint="check the path") from None
    if path.is_dir():
        raise BadInput(f"{path}: is a folder, expected a file", hint="name the file itself")
    place = str(path.resolve())
    key = {"path": place, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    entry = cache_dir() / "hashes" / f"{hash_bytes(place.encode())}.json"
    try:
        known = orjson.loads(entry.read_bytes())
        if {name: known.get(name) for name in key} == key:
            return str(known["xxh3"])
    except (OSError, ValueError, AttributeError, KeyError):
        pass  # no entry, or a broken one: hash the file
    digest = hash_new_file(path)
    try:
        atomic.write_bytes(entry, orjson.dumps({**key, "xxh3": digest}))
    except (OSError, ResourceExhausted):
        pass  # a cache that cannot be written costs time, not correctness
    return digest
