import pytest
import torch

from ance_cli.errors import UsageProblem
from ance_cli.models.devices import asked_threads, choose_devices, choose_dtype, parse_gpus


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0-3", [0, 1, 2, 3]), ("0,2", [0, 2]), ("1", [1]), ("none", []), ("all", None)],
)
def test_parse(text, expected):
    assert parse_gpus(text) == expected


@pytest.mark.parametrize("text", ["", "a", "3-1", "0,0", "-1", "0:2"])
def test_what_cannot_be_read(text):
    with pytest.raises(UsageProblem, match="--gpus"):
        parse_gpus(text)


def test_a_gpu_that_is_not_there():
    beyond = torch.cuda.device_count() + 7
    with pytest.raises(UsageProblem, match=f"there is no GPU {beyond}"):
        choose_devices(str(beyond))


def test_none_is_the_cpu():
    assert choose_devices("none") == [torch.device("cpu")]


@pytest.mark.parametrize(
    ("value", "threads"),
    [
        ("4", 4),
        ("4,2", 4),
        (" 3 ", 3),
        ("", 0),
        ("many", 0),
        ("-1", 0),
        ("\u0664", 0),
        ("9" * 99, 0),
    ],
)
def test_the_threads_that_the_environment_asks_for(monkeypatch, value, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert asked_threads() == threads


def test_a_named_dtype_stays():
    assert choose_dtype("fp32", torch.device("cpu")) == "fp32"
    assert choose_dtype("auto", torch.device("cpu")) in ("bf16", "fp32")
