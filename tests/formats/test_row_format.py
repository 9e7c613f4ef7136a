"""Row formats against twins that go component by component."""

import numpy as np
import pytest

from ance_cli.formats.row_format import ROW_FORMATS

ROUNDED = ["int8", "binary"]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def kept(dtype, vectors):
    rows = ROW_FORMATS[dtype](vectors.shape[1])
    return rows.floats(rows.stored(vectors))


@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [("float16", (24, 26)), ("float32", (48, 52)), ("int8", (16, 17)), ("binary", (2, 2))],
)
def test_a_row_has_a_fixed_number_of_bytes(dtype, sizes):
    for dim, size in zip((12, 13), sizes, strict=True):
        rows = ROW_FORMATS[dtype](dim)
        stored = rows.stored(normal(5, dim))
        assert stored.nbytes == 5 * size == 5 * rows.row.itemsize
        assert stored.shape == (5, *rows.row.shape) and stored.dtype == rows.row.base
        assert rows.floats(stored).shape == (5, dim)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_floats_are_not_rounded_further(dtype):
    vectors = normal(6, 5)
    assert not ROW_FORMATS[dtype](5).rounds
    assert np.array_equal(kept(dtype, vectors), vectors.astype(dtype))


def test_int8_is_the_nearest_of_255_steps_up_to_the_greatest_component():
    vectors = normal(40, 13) * np.logspace(-20, 20, 40, dtype=np.float32)[:, None]
    found = kept("int8", vectors)
    assert found.dtype == np.float32 and ROW_FORMATS["int8"](13).rounds
    for vector, row in zip(vectors.tolist(), found.tolist(), strict=True):
        step = max(map(abs, vector)) / 127
        for component, value in zip(vector, row, strict=True):
            assert value == pytest.approx(round(component / step) * step, rel=1e-6)
            assert abs(value - component) <= step * 0.50001


@pytest.mark.parametrize("greatest", [0.0, 1e-45, 1.4e-43, 1e-38, 3.4e38])
def test_int8_at_the_ends_of_the_range(greatest):
    vector = np.array([[greatest, -greatest, 0]], np.float32)
    found = kept("int8", vector)
    assert np.isfinite(found).all()
    # below 1e-38 a float32 itself has fewer bits
    assert np.allclose(found, vector, rtol=1e-6, atol=1e-43)


def test_binary_is_the_sign_of_each_component():
    vectors = normal(9, 13)
    vectors[0, 3] = 0
    found = kept("binary", vectors)
    assert found.dtype == np.float32 and ROW_FORMATS["binary"](13).rounds
    expected = [[1 if value > 0 else -1 for value in vector] for vector in vectors.tolist()]
    assert found.tolist() == expected
    bytes_of = [
        [int("".join("01"[value > 0] for value in [*row, -1, -1, -1])[at : at + 8], 2)
         for at in (0, 8)]
        for row in expected
    ]  # fmt: skip
    assert ROW_FORMATS["binary"](13).stored(vectors).tolist() == bytes_of


@pytest.mark.parametrize("dtype", ROUNDED)
def test_a_row_does_not_depend_on_the_others(dtype):
    vectors = normal(20, 13)
    rows = ROW_FORMATS[dtype](13)
    alone = [rows.stored(vector[None]).tobytes() for vector in vectors]
    assert b"".join(alone) == rows.stored(vectors).tobytes()
    stored = rows.stored(vectors)
    some = np.array([7, 3, 3])
    assert np.array_equal(rows.floats(stored[some]), rows.floats(stored)[some])
