"""What an error of another library, or of the system, is taken for."""

import errno

import pytest

from ance_cli.cli.exit import exit_code_of
from ance_cli.errors import BadInput, as_bad_input

NO_MEMORY = [
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("unable to mmap 4096 bytes from file <a>: Cannot allocate memory (12)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


def raises(error):
    raise error


@pytest.mark.parametrize("error", NO_MEMORY, ids=str)
def test_running_out_of_memory_is_neither_bad_input_nor_a_bug(error, capfd):
    with pytest.raises(type(error)) as caught, as_bad_input("weights", hint="copy them again"):
        raise error
    assert caught.value is error
    assert exit_code_of(lambda: raises(error)) == 5
    assert "memory ran out" in capfd.readouterr().err


def test_our_own_errors_are_raised_unchanged():
    ours = BadInput("model.bin: two tables", hint="name one")
    with pytest.raises(BadInput) as caught, as_bad_input("weights", hint="copy them again"):
        raise ours
    assert caught.value is ours


def test_an_error_without_a_known_cause_is_a_bug():
    with pytest.raises(RuntimeError, match="shapes"):
        exit_code_of(lambda: raises(RuntimeError("shapes differ")))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("broken at\n  byte 7. To run it all the same, ..."), "broken at byte 7"),
        (KeyError(), "KeyError"),
        (ValueError("x" * 1000), "x" * 300),
    ],
)
def test_the_error_of_a_library_is_given_as_the_reason(error, reason):
    with pytest.raises(BadInput) as caught, as_bad_input("weights", hint="copy them again"):
        raise error
    assert caught.value.what == f"weights ({reason})" and caught.value.hint == "copy them again"
