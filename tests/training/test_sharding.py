"""A sharded model in one process; `test_ranks.py` trains with several."""

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from ance_cli.config import TrainConfig
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.dual import freeze_passages, load_dual
from ance_cli.progress import Silent
from ance_cli.training.distributed import World
from ance_cli.training.optim import make_optimizer
from ance_cli.training.sharding import is_sharded, outline_of, own_part, shard, whole_encoder
from ance_cli.training.state import TrainerState, load_state, save_state
from tests.training.test_trainer import make

CPU = torch.device("cpu")


@pytest.fixture
def alone(tmp_path):
    """A group of one rank: its part is the whole."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield World(CPU)
    dist.destroy_process_group()


@pytest.fixture
def one_of_four():
    """The first of four ranks; what the others would send is never there."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield World(CPU, 0, 4)
    dist.destroy_process_group()


def inputs():
    ids = torch.arange(5, 45).view(4, 10)
    return ids, torch.ones_like(ids), ids.flip(0), torch.ones_like(ids)


@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
def test_a_rank_keeps_its_part_of_weights_gradients_and_moments(checkpoint, one_of_four, optimizer):
    dual = load_dual(Checkpoint(checkpoint))
    total = sum(p.numel() for p in dual.parameters())
    shard(dual, one_of_four, "fp32")
    made = make_optimizer(dual, TrainConfig(optimizer=optimizer))
    queries, passages = dual.train()(*inputs())
    (queries * passages).sum().backward()
    made.step()
    moments = [made.state[p][name] for p in dual.parameters() for name in ("exp_avg", "exp_avg_sq")]
    for tensors, times in (
        (list(dual.parameters()), 1),
        ([p.grad for p in dual.parameters()], 1),
        (moments, 2),
    ):
        assert all(isinstance(tensor, DTensor) for tensor in tensors)
        held = sum(own_part(tensor).numel() for tensor in tensors)
        assert held == pytest.approx(times * total / 4, rel=0.01)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_backbone_computes_in_its_dtype_and_the_head_in_float32(checkpoint, alone, dtype):
    dual = load_dual(Checkpoint(checkpoint))
    expected = dual(*inputs())
    shard(dual, alone, dtype)
    seen = {}
    for name in ("chain.0.model.encoder.layer.1", "chain.2.linear"):
        dual.query.get_submodule(name).register_forward_hook(
            lambda module, given, found, name=name: seen.update(
                {name: {each.dtype for each in (*given, found) if isinstance(each, torch.Tensor)}}
            )
        )
    vectors = dual(*inputs())
    half = {torch.bfloat16 if dtype == "bf16" else torch.float32}
    assert seen == {"chain.0.model.encoder.layer.1": half, "chain.2.linear": {torch.float32}}
    for one, other in zip(vectors, expected, strict=True):
        torch.testing.assert_close(one, other, atol=0.05 if dtype == "bf16" else 1e-6, rtol=0)
    assert {p.dtype for p in dual.parameters()} == {torch.float32}


@pytest.mark.parametrize("recipe", [{}, {"optimizer": "lamb"}, {"freeze_layers": 1}],
                         ids=["adamw", "lamb", "frozen"])  # fmt: skip
@pytest.mark.parametrize("then", ["whole", "sharded"])
def test_a_sharded_run_goes_on_from_its_state(checkpoint, tmp_path, alone, recipe, then):
    """Exactly: 4 steps at once, and 2 and 2 with a state in between, which any run can read."""
    config = TrainConfig(lr=1e-2, batch_size=4, total_steps=6, **recipe)
    whole, parts = [], []
    make(checkpoint, tmp_path / "a", config, 4, losses=whole, sharded=alone).run(Silent(), 0)
    make(checkpoint, tmp_path / "b", config, 2, losses=parts, sharded=alone).run(Silent(), 0)
    trainer = make(
        checkpoint, tmp_path / "c", config, 4, tmp_path / "b" / "s2", parts,
        sharded=alone if then == "sharded" else None,
    )  # fmt: skip
    trainer.run(Silent(), 0)
    assert parts == whole and is_sharded(trainer.encoder) == (then == "sharded")
    for name in ("weights", "optimizer"):
        one, other = (load_file(tmp_path / part / "s4" / f"{name}.safetensors") for part in "ac")
        assert one.keys() == other.keys() and one
        for key in one:
            torch.testing.assert_close(one[key], other[key], atol=1e-7, rtol=1e-5)
            assert then == "whole" or torch.equal(one[key], other[key])


def test_a_whole_run_goes_on_sharded(checkpoint, tmp_path, alone):
    dual, sharded = (load_dual(Checkpoint(checkpoint)) for _ in range(2))
    config = TrainConfig(lr=1e-2)
    optimizer = make_optimizer(dual, config)
    queries, passages = dual(*inputs())
    (queries * passages).sum().backward()
    optimizer.step()
    save_state(tmp_path / "state", dual, optimizer, TrainerState(1))
    shard(sharded, alone, "fp32")
    again = make_optimizer(sharded, config)
    assert load_state(tmp_path / "state", sharded, again) == TrainerState(1)
    for p, other in zip(dual.parameters(), sharded.parameters(), strict=True):
        assert torch.equal(p, other.full_tensor())
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[p][name], again.state[other][name].full_tensor())


def test_only_the_main_rank_writes_a_state(checkpoint, tmp_path):
    dual = load_dual(Checkpoint(checkpoint))
    optimizer = make_optimizer(dual, TrainConfig())
    save_state(tmp_path / "state", dual, optimizer, TrainerState(), is_main=False)
    assert not list(tmp_path.iterdir())


def test_the_whole_encoder_is_what_was_sharded(two_towers, alone):
    dual = freeze_passages(load_dual(Checkpoint(two_towers)))
    expected = {name: value.clone() for name, value in dual.state_dict().items()}
    outline = outline_of(dual)
    assert {tensor.device.type for tensor in outline.state_dict().values()} == {"meta"}
    shard(dual, alone, "fp32")
    found = whole_encoder(dual, outline, keep=True)
    assert found.state_dict().keys() == expected.keys()
    for name, value in found.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert not any(p.requires_grad for p in found.passage.parameters())
    assert whole_encoder(dual, outline, keep=False) is None


def test_an_encoder_that_is_not_sharded_is_whole(checkpoint):
    dual = load_dual(Checkpoint(checkpoint))
    assert whole_encoder(dual, None, keep=True) is dual
    assert whole_encoder(dual, None, keep=False) is None
