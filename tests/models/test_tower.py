"""Two towers under a Router: what is read, and what a damaged folder says."""

import json
import shutil

import pytest

from ance_cli.errors import BadInput
from ance_cli.models.checkpoint import Checkpoint


@pytest.fixture
def copy(two_towers, tmp_path):
    return shutil.copytree(two_towers, tmp_path / "copy")


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def refusal(folder) -> str:
    with pytest.raises(BadInput) as problem:
        Checkpoint(folder)
    return problem.value.what


def test_the_towers_of_a_checkpoint(checkpoint, two_towers, backbone):
    for folder, shared in ((checkpoint, True), (two_towers, False), (backbone, True)):
        found = Checkpoint(folder)
        assert found.shared is shared
        assert (found.tower("query") is found.tower("passage")) is shared
        assert (found.dim, found.max_positions, found.is_cosine) == (32, 128, False)
    two = Checkpoint(two_towers)
    assert two.tower("query").backbone == two.path / "query_0_Transformer"
    kinds = [module.kind for module in two.tower("passage").modules]
    assert kinds == ["Transformer", "Pooling", "Dense", "LayerNorm"]
    assert two.has_head and two.settings == Checkpoint(checkpoint).settings


def test_routes_of_the_same_modules_are_one_tower(copy):
    def share(router):
        router["structure"]["query"] = router["structure"]["document"]

    change(copy / "router_config.json", share)
    assert Checkpoint(copy).shared


def test_what_follows_the_router_is_of_both_towers(copy):
    normalize = {"idx": 1, "name": "1", "path": "1_Normalize",
                 "type": "sentence_transformers.models.Normalize"}  # fmt: skip
    change(copy / "modules.json", lambda modules: modules.append(normalize))
    found = Checkpoint(copy)
    assert found.is_cosine
    assert all(found.tower(side).modules[-1].kind == "Normalize" for side in ("query", "passage"))


def test_lengths_are_held_to_each_towers_own_positions(copy):
    config = copy / "query_0_Transformer" / "config.json"
    change(config, lambda config: config.update(max_position_embeddings=20))
    found = Checkpoint(copy)
    assert found.max_positions == 20
    assert found.with_settings(passage_length=100).settings.passage_length == 100
    with pytest.raises(BadInput, match="takes at most 20 tokens, --query-length asks for 21"):
        found.with_settings(query_length=21)


def test_no_router_config(copy):
    (copy / "router_config.json").unlink()
    assert "router_config.json: no such file; the checkpoint is incomplete" in refusal(copy)


def test_a_router_config_that_is_not_json(copy):
    (copy / "router_config.json").write_text("{")
    assert "router_config.json: not valid JSON" in refusal(copy)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([], "expected a JSON object, found array"),
        ({"types": {}}, "has no structure"),
        ({"types": {}, "structure": {"query": 1}}, "'structure[...]': expected a list, found int"),
    ],
)
def test_a_router_config_without_its_parts(copy, content, reason):
    (copy / "router_config.json").write_text(json.dumps(content))
    assert f"router_config.json: {reason}" in refusal(copy)


def test_other_routes(copy):
    def rename(router):
        router["structure"]["passage"] = router["structure"].pop("document")

    change(copy / "router_config.json", rename)
    assert "has the routes query, passage; expected query and document" in refusal(copy)


def test_route_mappings(copy):
    mapping = {"('query', 'text')": "document"}
    change(
        copy / "router_config.json",
        lambda router: router["parameters"].update(route_mappings=mapping),
    )
    assert "router_config.json: cannot use route_mappings" in refusal(copy)


def test_a_route_that_names_nothing(copy):
    change(
        copy / "router_config.json",
        lambda router: router["structure"]["query"].append("query_4_Normalize"),
    )
    assert "route 'query' names query_4_Normalize, 'types' does not" in refusal(copy)


def test_a_module_of_the_checkpoints_own_code(copy):
    change(
        copy / "router_config.json",
        lambda router: router["types"].update(query_0_Transformer="x.StaticEmbedding"),
    )
    assert "router_config.json: x.StaticEmbedding is code of the checkpoint" in refusal(copy)


def test_a_route_without_its_transformer(copy):
    change(copy / "router_config.json", lambda router: router["structure"]["document"].pop(0))
    assert "router_config.json: the first module should be a Transformer" in refusal(copy)


def test_a_missing_subfolder(copy):
    shutil.rmtree(copy / "document_2_Dense")
    what = refusal(copy)
    assert f"{copy}/document_2_Dense: the checkpoint's Dense module is missing" in what
    assert "router_config.json names it" in what


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("query_0_Transformer/model.safetensors", "holds no weights in safetensors format"),
        ("query_0_Transformer/tokenizer.json", "the checkpoint has no tokenizer"),
        ("document_3_LayerNorm/model.safetensors", "the weights of the LayerNorm are"),
    ],
)
def test_a_missing_file(copy, name, text):
    (copy / name).unlink()
    assert text in refusal(copy)
    assert name.split("/")[0] in refusal(copy)


def test_an_adapter_without_its_base(copy):
    adapter = copy / "query_0_Transformer" / "adapter_config.json"
    adapter.write_text('{"base_model_name_or_path": "nowhere"}')
    (copy / "query_0_Transformer" / "config.json").unlink()  # peft writes none beside it
    assert f"{adapter}: the base model 'nowhere' is not there" in refusal(copy)


def test_towers_of_two_widths(copy):
    change(copy / "query_2_Dense" / "config.json", lambda config: config.update(out_features=8))
    assert "query vectors of 8 dimensions and passage vectors of 32" in refusal(copy)


def test_a_head_on_one_side_only(copy):
    def behead(router):
        del router["structure"]["query"][1:]

    change(copy / "router_config.json", behead)
    assert "query_0_Transformer: this tower has no pooling and head" in refusal(copy)


def test_lower_casing_on_one_side_only(copy):
    (copy / "ance.json").unlink()
    change(
        copy / "query_0_Transformer" / "sentence_bert_config.json",
        lambda config: config.update(do_lower_case=True),
    )
    assert "one tower lower-cases its texts" in refusal(copy)


def test_pickled_weights_of_an_adapter_or_a_module_are_never_loaded(tmp_path, checkpoint):
    adapted = shutil.copytree(checkpoint, tmp_path / "adapted")
    (adapted / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(adapted)})
    )
    (adapted / "adapter_model.bin").write_bytes(b"a pickle")
    with pytest.raises(BadInput, match="holds no weights in safetensors format"):
        Checkpoint(adapted)
    other = shutil.copytree(checkpoint, tmp_path / "other")
    (other / "1_Pooling" / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(BadInput, match="the weights of the Pooling are missing"):
        Checkpoint(other)
