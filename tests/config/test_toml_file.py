"""Reading `ance.toml`: tables, lines, and what is no settings file."""

import tomllib

import pytest

from ance_cli.config.toml_file import Setting, read_settings, to_toml
from ance_cli.errors import UsageProblem


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "ance.toml"
        path.write_text(text)
        return path

    return write


def problem_of(path):
    with pytest.raises(UsageProblem) as caught:
        read_settings(path)
    assert caught.value.hint is None or caught.value.hint
    return caught.value.what.replace(str(path), "ance.toml")


def test_settings_know_their_line_and_are_named_as_flags(file):
    path = file('# first\n[all]\ndata = "d"\n\n[ "train-segment" ]\n  batch_size = 8\nlr = 1e-3\n')
    assert read_settings(path) == {
        "all": {"data": Setting("d", f"{path}:3")},
        "train-segment": {
            "batch-size": Setting(8, f"{path}:6"),
            "lr": Setting(1e-3, f"{path}:7"),
        },
    }


def test_a_key_without_a_line_of_its_own_has_the_file(file):
    path = file("encode = {threads = 3}\n")
    assert read_settings(path) == {"encode": {"threads": Setting(3, str(path))}}


def test_what_is_no_settings_file(file, tmp_path):
    assert problem_of(file('data = "d"\n')) == "ance.toml:1: 'data' is outside of a table"
    assert problem_of(file("[all]\nlr = = 3\n")).startswith("ance.toml:2: not valid TOML: ")
    twice = file("[loop]\nbatch-size = 1\nbatch_size = 2\n")
    assert problem_of(twice) == "ance.toml:3: [loop] has 'batch-size' twice"
    assert problem_of(tmp_path / "no.toml").endswith(": No such file or directory")
    assert problem_of(tmp_path).endswith(": Is a directory")
    twice.write_bytes(b'[all]\ndata = "\xff"\n')
    assert problem_of(twice) == "ance.toml: not valid UTF-8, which TOML is written in"


@pytest.mark.parametrize(
    "value", ['a "b" \\ c', "é\U0001f600\x7f\x01\n", 3, -2.5, 2e-05, True, False, ""]
)
def test_what_is_written_is_what_is_read(value):
    assert tomllib.loads(f"key = {to_toml(value)}") == {"key": value}
