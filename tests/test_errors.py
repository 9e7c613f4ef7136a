"""What an error of another library, or of the system, is taken for."""

import errno
import os
from pathlib import Path

import pytest

from ance_cli.cli.exit import exit_code_of
from ance_cli.errors import BadInput, as_bad_input
from ance_cli.formats.atomic import new_file
from ance_cli.formats.records import read_record

NO_MEMORY = [
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("unable to mmap 4096 bytes from file <a>: Cannot allocate memory (12)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError(
        "Error: 'err == cudaSuccess' failed: StandardGpuResources: alloc fail type IVFLists dev 0 "
        "space Device stream 0x1 size 80 bytes (cudaMalloc error out of memory [2])"
    ),
    RuntimeError(
        "Error: 'err == cudaSuccess' failed: failed to cudaHostAlloc 268435456 bytes for CPU <-> "
        "GPU async copy buffer (error 2 out of memory)"
    ),
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


@pytest.mark.parametrize(
    "code",
    [errno.EIO, errno.ESTALE, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT],
    ids=errno.errorcode.get,
)
@pytest.mark.parametrize("is_a_librarys", [False, True])
def test_a_failing_system_is_neither_bad_input_nor_a_bug(code, is_a_librarys, tmp_path, capfd):
    class LibraryError(Exception):
        """As safetensors has one: no OSError."""

    reason = os.strerror(code)
    error = LibraryError(f"I/O error: {reason}") if is_a_librarys else OSError(code, reason)
    path = tmp_path / "out.trec"

    def write():
        with new_file(path):
            raise error

    assert exit_code_of(lambda: raises(error)) == 5
    assert exit_code_of(write) == 5
    assert not list(tmp_path.iterdir())
    said = "".join(capfd.readouterr().err.split())
    assert "out.trec:" in said and "hint:" in said
    if code not in (errno.ENOSPC, errno.EDQUOT):  # which no reading ends with
        with pytest.raises(type(error)), as_bad_input("weights", hint="copy them again"):
            raise error


def test_a_failed_read_names_its_file(tmp_path, monkeypatch):
    path = tmp_path / "run.json"

    def read_bytes(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(OSError, match="run.json"):
        read_record(path, dict)


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
