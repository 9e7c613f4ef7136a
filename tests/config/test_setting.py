"""A setting is declared once, and everything else is derived from the declaration."""

from dataclasses import dataclass, fields
from typing import Annotated, get_args

import pytest

from ance_cli import config
from ance_cli.config import sets
from ance_cli.config.presets import BASELINES, PRESETS
from ance_cli.config.setting import (
    METHOD,
    Config,
    Setting,
    declared,
    flag_of,
    has_default,
    shaped_by,
)
from ance_cli.errors import UsageProblem
from ance_cli.interop import EXPORT_FORMATS, FORMATS, NEGATIVES_FORMS, RUN_FORMS, VECTOR_FORMS

CONFIGS = [
    each
    for name in config.__all__
    if isinstance(each := getattr(config, name), type) and issubclass(each, Config)
]

Shared = Annotated[int, Setting("A shared one.", METHOD, at_least=1)]


@dataclass(frozen=True, kw_only=True)
class Small(Config):
    shared: Shared = 3
    rate: Annotated[float, Setting("A rate.", METHOD, above=0, shapes=False)] = 0.5
    part: Annotated[float, Setting("A part.", METHOD, at_least=0, at_most=1)] | None = None
    below_one: Annotated[float, Setting("Less than one.", METHOD, at_least=0, below=1)] = 0.0
    free: Annotated[int, Setting("Any number.", METHOD, shapes=False)] = 0
    seed: Annotated[
        int, Setting("A seed.", METHOD, at_least=0, at_most=2**63 - 1, shapes=False)
    ] = 42
    engine: Annotated[sets.Engine, Setting("An engine.", METHOD)] = "lucene"
    needed: Annotated[str, Setting("Needed.", METHOD, flags=("--needed", "-x"))]


def test_a_declaration_has_name_type_default_and_flags():
    found = {each.name: each for each in declared(Small)}
    assert list(found) == [field.name for field in fields(Small)]
    assert found["shared"].type is int and found["shared"].default == 3
    assert found["part"].type is float and found["part"].default is None
    assert found["below_one"].flags == ("--below-one",)
    assert found["needed"].flags == ("--needed", "-x") and not has_default(found["needed"])
    assert found["engine"].choices == ("lucene", "bm25s") and found["rate"].choices == ()


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"shared": 0}, "--shared must be at least 1"),
        ({"rate": 0.0}, "--rate must be greater than 0"),
        ({"rate": float("nan")}, "--rate must be a finite number"),
        ({"rate": float("inf")}, "--rate must be a finite number"),
        ({"part": 1.5}, "--part must be between 0 and 1"),
        ({"part": -0.1}, "--part must be between 0 and 1"),
        ({"below_one": 1.0}, "--below-one must be less than 1"),
        ({"below_one": -1.0}, "--below-one must not be negative"),
        ({"shared": 10**400}, "--shared must be at most 2147483647"),
        ({"free": -(10**400)}, "--free must be at least -2147483647"),
        ({"rate": 1e39}, "--rate must be at most 3.4e+38"),
        ({"seed": 2**63}, "--seed must be between 0 and 9223372036854775807"),
        ({"engine": "\udcff"}, "--engine '\\udcff' is not one of lucene, bm25s"),
        ({"engine": "whoosh"}, "--engine 'whoosh' is not one of lucene, bm25s"),
    ],
)
def test_values_out_of_range_are_refused(given, what):
    with pytest.raises(UsageProblem) as caught:
        Small(needed="", **given)
    assert caught.value.what == what


def test_text_that_is_not_utf8_is_refused():
    with pytest.raises(UsageProblem, match="--needed .* is not UTF-8"):
        Small(needed="a\udcff")


def test_the_ends_of_a_range_are_in_it():
    Small(needed="", shared=1, part=0.0, below_one=0.0)
    Small(needed="", part=1.0)


def test_only_what_shapes_an_artifact_is_in_its_manifest():
    assert shaped_by(Small(needed="x")) == {
        "shared": 3, "part": None, "below_one": 0.0, "engine": "lucene", "needed": "x",
    }  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)
def test_every_field_of_every_config_is_declared_with_a_whole_sentence(kind):
    assert [each.name for each in declared(kind)] == [field.name for field in fields(kind)]
    for each in declared(kind):
        text = each.setting.help
        assert text.endswith(".") and text == " ".join(text.split()), f"{each.name}: {text!r}"


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)
def test_every_default_is_in_its_own_range(kind):
    for each in declared(kind):
        if has_default(each):
            each.check(each.default)


def test_a_name_means_the_same_type_everywhere():
    types: dict[str, object] = {}
    for kind in CONFIGS:
        for each in declared(kind):
            if each.name != "engine":  # search knows one engine more
                assert types.setdefault(each.name, each.type) == each.type, each.name


def test_closed_sets_are_those_of_the_code():
    assert get_args(sets.PresetName) == tuple(PRESETS)
    assert get_args(sets.BaselineName) == tuple(BASELINES)
    assert get_args(sets.ImportFormat) == FORMATS
    assert get_args(sets.ExportForm) == EXPORT_FORMATS
    assert get_args(sets.NegativesForm) == NEGATIVES_FORMS
    assert get_args(sets.VectorForm) == VECTOR_FORMS
    assert get_args(sets.RunForm) == RUN_FORMS


def test_flags_are_spelled_with_hyphens():
    assert flag_of("negatives_per_positive") == "--negatives-per-positive"
