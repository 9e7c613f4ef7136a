"""The stages of a new generation: what each is asked for."""

from types import SimpleNamespace

import pytest

from ance_cli.call import Call
from ance_cli.config import DriverConfig, IndexConfig
from ance_cli.formats.generation_folder import GenerationFolder
from ance_cli.formats.summary import Clock
from ance_cli.loop import new_generation


@pytest.mark.parametrize(
    "compute", [DriverConfig(gpus="1"), DriverConfig(ray="auto", local_gpus="1")]
)
def test_an_index_is_built_on_the_gpus_of_the_refresh(tmp_path, monkeypatch, compute):
    asked = []
    monkeypatch.setattr(new_generation, "encode", lambda *given, call: None)
    monkeypatch.setattr(
        new_generation, "index", lambda source, output, config, call: asked.append(config)
    )
    new = SimpleNamespace(
        checkpoint=None,
        dataset=None,
        config=SimpleNamespace(index_factory="IVF4,Flat"),
        compute=compute,
    )
    work = new_generation._Work(new, GenerationFolder(tmp_path / "0001"), Clock(), Call())
    vectors = new_generation._encode(work)
    assert asked == [IndexConfig(factory="IVF4,Flat", gpus="1")]
    assert vectors.source.path == tmp_path / "0001" / "index"
    assert vectors.compute == DriverConfig(gpus="1")
