"""`HashedIdMap` against a dict."""

import random

from ance_cli.interop.hashed_id_map import HashedIdMap


def test_it_is_a_dict_of_first_values():
    rng, seen, twin = random.Random(3), HashedIdMap(recent=7), {}
    for _ in range(2000):
        key, value = f"d{rng.randrange(600)}", rng.getrandbits(64)
        assert seen.get(key) == twin.get(key)
        if key not in twin:
            seen.add(key, value)
            twin[key] = value
        assert key in seen and len(seen) == len(twin)
    assert all(seen.get(key) == value for key, value in twin.items())
    assert "nowhere" not in seen


def test_zero_is_a_value():
    seen = HashedIdMap(recent=1)
    seen.add("a")
    assert seen.get("a") == 0 and "a" in seen
