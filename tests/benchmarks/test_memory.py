"""The arithmetic of memory against the bytes of torch's own tensors, on small models."""

import pytest
import torch
from transformers import AutoModel, MistralConfig, Qwen2Config, Qwen3Config

from ance_cli.config import TrainConfig
from ance_cli.training.optim import make_optimizer
from benchmarks.memory import (
    GIB,
    SHAPES,
    adapter_of,
    count,
    layer_bytes,
    model_of,
    need_of,
    table,
)

SMALL = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 176}  # fmt: skip
CONFIGS = [Qwen3Config(**SMALL, head_dim=24), Qwen2Config(**SMALL),
           MistralConfig(**SMALL, head_dim=24)]  # fmt: skip
IDS = torch.arange(2 * 40).view(2, 40)


def bytes_of(tensors):
    """Also of the parts of 8-bit moments."""
    parts = ("codes", "scale", "qmap")
    plain = [[getattr(t, part) for part in parts] if hasattr(t, "qmap") else [t] for t in tensors]
    return sum(tensor.nbytes for each in plain for tensor in each)


@pytest.mark.parametrize("recipe", ["adamw", pytest.param("adamw-8bit", marks=pytest.mark.long)])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_weights_gradients_and_moments_are_those_that_torch_allocates(config, recipe):
    model = AutoModel.from_config(config)
    optimizer = make_optimizer(model, TrainConfig(optimizer=recipe))
    model(input_ids=IDS).last_hidden_state.sum().backward()
    optimizer.step()
    need = need_of(model_of(config), recipe, 0, 1)
    assert need.weights == bytes_of(model.parameters())
    assert need.gradients == bytes_of(p.grad for p in model.parameters())
    assert need.optimizer == bytes_of(
        slot for slots in optimizer.state.values() for slot in slots.values()
    )
    halves = need_of(model_of(config), recipe, 0, 2)
    assert halves[:3] == tuple(part / 2 for part in need[:3])


def test_an_adapter_is_that_of_peft():
    peft = pytest.importorskip("peft")
    model = AutoModel.from_config(CONFIGS[0])
    adapter = adapter_of(model)
    lora = peft.LoraConfig(r=16, target_modules="all-linear")
    trained = [p for p in peft.get_peft_model(model, lora).parameters() if p.requires_grad]
    assert sorted(p.shape for p in trained) == sorted(p.shape for p in adapter)
    need = need_of(model_of(CONFIGS[0]), "lora", 0, 1)
    base = count(AutoModel.from_config(CONFIGS[0]).parameters())
    assert need.weights == 2 * base + 4 * count(adapter)
    assert (need.gradients, need.copies) == (4 * count(adapter), 2 * count(adapter))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_a_layer_keeps_what_torch_saves_for_its_backward_pass(config, half):
    """Within 5 %: rotary angles and the scales of norms are left out."""
    model = AutoModel.from_config(config).to(torch.bfloat16 if half else torch.float32)
    weights = {tuple(p.shape) for p in model.parameters()}
    weights |= {shape[::-1] for shape in weights}  # autocast's copies are counted as `copies`
    saved, found = {}, []

    def keep(tensor):
        if tuple(tensor.shape) not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    layer = model.layers[1]
    layer.register_forward_pre_hook(lambda *_: saved.clear())
    layer.register_forward_hook(lambda *_: found.extend(saved.values()))
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=not half),
    ):
        model(input_ids=IDS)
    measured = sum(tensor.untyped_storage().nbytes() for tensor in found) / IDS.numel()
    assert layer_bytes(config, half) == pytest.approx(measured, rel=0.05)


def test_the_table_knows_the_sizes_that_the_models_are_named_after():
    billions = [count(model_of(config).parameters()) / 1e9 for config in SHAPES.values()]
    assert [round(size, 1) for size in billions] == [0.6, 1.5, 4.0, 7.1]
    seven = model_of(SHAPES["e5-mistral-7b"])
    assert need_of(seven, "adamw", 16_384, 1).all > 80 * GIB
    lines = [line.split(" | ") for line in table(16_384).splitlines()[2:]]
    assert len(lines) == 4 * 5
    left = {tuple(line[:3]): line[-1].rstrip(" |") for line in lines}
    assert left["| e5-mistral-7b", "adamw", "1"] == "no"
    assert float(left["| e5-mistral-7b", "lora", "1"]) > 0
