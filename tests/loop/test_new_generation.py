"""The stages of a new generation: what each is asked for."""

from types import SimpleNamespace

from ance_cli.call import Call
from ance_cli.config import EncodeConfig, IndexConfig
from ance_cli.formats.generation_folder import GenerationFolder
from ance_cli.formats.summary import Clock
from ance_cli.loop import new_generation


def test_an_index_is_built_on_the_gpus_of_the_refresh(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(new_generation, "encode", lambda *given, call: None)
    monkeypatch.setattr(
        new_generation, "index", lambda source, output, config, call: asked.append(config)
    )
    new = SimpleNamespace(
        checkpoint=None,
        dataset=None,
        config=SimpleNamespace(index_factory="IVF4,Flat"),
        compute=EncodeConfig(gpus="1", ray="auto"),
    )
    work = new_generation._Work(new, GenerationFolder(tmp_path / "0001"), Clock(), Call())
    vectors = new_generation._encode(work)
    assert asked == [IndexConfig(factory="IVF4,Flat", gpus="1")]
    assert vectors.source.path == tmp_path / "0001" / "index"
    assert vectors.compute == EncodeConfig(gpus="1")
