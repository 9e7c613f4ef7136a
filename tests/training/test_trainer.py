"""The trainer without a run folder: what it computes, and that going on is not stopping."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from ance_cli.config import SegmentConfig, TrainConfig
from ance_cli.errors import Diverged
from ance_cli.formats.dataset import Dataset, Passage
from ance_cli.formats.negatives_file import PairNegatives
from ance_cli.mining.false_negatives import DuplicateIndex
from ance_cli.models import packing
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.dual import enable_gradient_checkpointing, load_dual
from ance_cli.models.encoder import set_dropout
from ance_cli.models.packing import use_packing
from ance_cli.models.tokens import Tokenizer
from ance_cli.progress import Silent
from ance_cli.training import distributed, optim
from ance_cli.training.data import NegativesSnapshot, PairStream, StreamPosition, TrainingSet
from ance_cli.training.distributed import World
from ance_cli.training.layers import freeze_layers
from ance_cli.training.optim import make_optimizer
from ance_cli.training.sharding import shard
from ance_cli.training.state import TrainerState, load_state, save_state
from ance_cli.training.trainer import TrainedModel, Trainer


@dataclass
class Output:
    """A `TrainerOutput` of functions, which a test may replace."""

    save_state: Callable = lambda trainer: None
    save_checkpoint: Callable = lambda trainer: None
    log: Callable = lambda line: None
    log_switch: Callable = lambda trainer: None


PAIRS = [(f"q{n}", f"d{n}") for n in range(8)]
TEXTS = {name: f"river word{n} bread" for n, name in enumerate([f"d{n}" for n in range(16)])}


def make(checkpoint, tmp_path, config, last_step, state=None, losses=None, segmentation="first",
         log_every=1, sharded=None, packs=False, device="cpu"):  # fmt: skip
    """A trainer on eight pairs; `losses` receives each step's logged loss, and `sharded` is the
    world among whose ranks the model is divided."""
    length = 6 if segmentation == "first" else 4  # three words are two segments
    start = Checkpoint(checkpoint).with_settings(segmentation=segmentation, passage_length=length)
    tokenizer = Tokenizer(start)
    encoder = load_dual(start)
    negatives = [PairNegatives(q, d, [f"d{8 + n}", f"d{(n + 3) % 8 + 8}"])
                 for n, (q, d) in enumerate(PAIRS)]  # fmt: skip
    corpus = [Passage(name, "", text) for name, text in TEXTS.items()]
    training_set = TrainingSet(
        config, Dataset(tmp_path, None, None), "", {q: f"river word{q[1:]}" for q, _ in PAIRS},
        {q: [d] for q, d in PAIRS}, DuplicateIndex(corpus),
    )  # fmt: skip
    stream = PairStream(training_set, negatives, 0)
    freeze_layers(encoder, config.freeze_layers)
    if packs:
        use_packing(encoder.query.backbone)
        encoder.query.packs = True
    if sharded:
        shard(encoder, sharded, "fp32")
    encoder.to(device)
    optimizer = make_optimizer(encoder, config)
    trainer_state = load_state(state, encoder, optimizer) if state else TrainerState()
    queries = [training_set.queries[query_id] for query_id in training_set.query_ids]
    passages = [corpus[doc].text for doc in stream.docs]
    output = Output(
        lambda t: save_state(tmp_path / f"s{t.step}", t.encoder, t.optimizer, t.trainer_state)
    )
    if losses is not None:
        output.log = lambda line: losses.append((line["step"], line["loss"], line["lr"]))
    return Trainer(
        model=TrainedModel(start.with_settings(scale=0.1), tokenizer, encoder, optimizer),
        snapshot=NegativesSnapshot(stream, tokenizer(passages, "passage"), 1, 0),
        queries=tokenizer(queries, "query"),
        config=config,
        segment=SegmentConfig(steps=last_step, log_every=log_every, state_minutes=0.0),
        dtype="fp32",
        world=World(torch.device(device)),
        state=trainer_state,
        last_step=last_step,
        output=output,
    )


@pytest.mark.parametrize(
    ("recipe", "log_every"),
    [
        ({"optimizer": "adamw"}, 1),
        pytest.param({"optimizer": "adamw-8bit"}, 1, marks=pytest.mark.long),
        ({"optimizer": "lamb"}, 3),
        ({"layer_decay": 0.5, "freeze_layers": 1}, 1),
    ],
    ids=["adamw", "adamw-8bit", "lamb", "layers"],
)
def test_stopping_and_going_on_gives_the_same_losses_and_weights(
    checkpoint, tmp_path, recipe, log_every
):
    """Dropout is on, the schedule decays, and the cut is inside an epoch."""
    config = TrainConfig(
        lr=1e-2, batch_size=3, accumulation=2, total_steps=9, warmup_steps=2, **recipe
    )
    whole = []
    trainer = make(checkpoint, tmp_path, config, 9, losses=whole, log_every=log_every)
    trainer.run(Silent(), 0)
    torch.manual_seed(999)  # whatever happened in between
    parts = [record for record in whole if record[0] <= 4]
    resumed = make(
        checkpoint, tmp_path / "again", config, 9, tmp_path / "s4", parts, log_every=log_every
    )
    resumed.run(Silent(), 0)
    assert parts == whole
    for a, b in zip(trainer.encoder.parameters(), resumed.encoder.parameters(), strict=True):
        assert torch.equal(a, b)


def test_it_learns(checkpoint, tmp_path):
    losses = []
    config = TrainConfig(lr=5e-3, batch_size=8, total_steps=30)
    make(checkpoint, tmp_path, config, 30, losses=losses).run(Silent(), 0)
    assert losses[-1][1] < 0.5 * losses[0][1]


def test_accumulation_is_a_larger_batch(checkpoint, tmp_path):
    """Without dropout, two micro-batches of four give the loss and gradient of one of eight."""
    found = []
    for batch_size, accumulation in ((8, 1), (4, 2)):
        config = TrainConfig(
            lr=1e-3, batch_size=batch_size, accumulation=accumulation, total_steps=2
        )
        trainer = make(checkpoint, tmp_path / str(batch_size), config, 1)
        set_dropout(trainer.encoder, 0.0)
        trainer.output.log = found.append
        trainer.run(Silent(), 0)
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-5)
    assert found[0]["grad_norm"] == pytest.approx(found[1]["grad_norm"], rel=1e-3)


@pytest.mark.parametrize(
    ("in_batch", "margin", "equal_to"),
    [("all", -1e9, "none"), ("all", 1e9, "all"), ("hardest", -1e9, "none")],
)
def test_a_margin_leaves_documents_of_the_batch_out(
    checkpoint, tmp_path, in_batch, margin, equal_to
):
    """Without any of them, the query's own mined negatives are left."""
    lines = []
    for setting in ({"in_batch": in_batch, "in_batch_margin": margin}, {"in_batch": equal_to}):
        config = TrainConfig(batch_size=4, accumulation=2, total_steps=2, **setting)
        trainer = make(checkpoint, tmp_path / str(len(lines)), config, 1)
        set_dropout(trainer.encoder, 0.0)
        trainer.output.log = lines.append
        trainer.run(Silent(), 0)
    for name in ("loss", "grad_norm"):
        assert lines[0][name] == pytest.approx(lines[1][name], rel=1e-5)
    # each of four pairs brings two documents, and two pairs may share a mined one
    least, most = (5, 6) if margin < 0 else (0, 0)
    assert least <= lines[0]["in_batch_left_out"] <= most
    assert "in_batch_left_out" not in lines[1]


def loss_at(width, trainer):
    """The nll of the first batch, in float64, of vectors cut to `width`; for cosine they have
    length one again."""
    batch, _ = trainer.snapshot.stream.next_batch(StreamPosition(), 8)
    rows, rows_of = trainer.snapshot.rows_of(batch.docs)
    sides = []
    for encoder, table, places in (
        (trainer.encoder.query, trainer.queries, batch.queries),
        (trainer.encoder.passage, trainer.snapshot.passages, rows),
    ):
        with torch.no_grad():
            vectors = encoder(*map(torch.from_numpy, table.padded(places, 0))).double().numpy()
        vectors = vectors[:, :width]
        if trainer.model.start.is_cosine:
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        sides.append(vectors)
    queries, passages = sides
    losses = []
    for b, query in enumerate(queries):
        scores = [max(query @ passages[row] for row in of_doc if row >= 0) for of_doc in rows_of]
        negatives = [doc for doc in range(len(scores)) if not batch.banned[b, doc]]
        compared = 2 * np.array([scores[doc] for doc in (batch.members[b, 0], *negatives)])
        losses.append(np.log(np.exp(compared - compared[0]).sum()))
    return np.mean(losses)


@pytest.mark.parametrize("grad_cache", [0, 3])
@pytest.mark.parametrize("segmentation", ["first", "special"])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_the_loss_is_the_mean_over_the_widths(
    spread_checkpoints, tmp_path, similarity, segmentation, grad_cache
):
    config = TrainConfig(batch_size=8, in_batch="all", matryoshka="5,12", total_steps=1)
    lines = []
    trainer = make(spread_checkpoints[similarity], tmp_path, config, 1, segmentation=segmentation)
    trainer._grad_cache_step.chunk = grad_cache
    trainer.model = replace(trainer.model, start=trainer.model.start.with_settings(scale=2.0))
    set_dropout(trainer.encoder, 0.0)
    assert trainer.encoder.dim == 32
    expected = [loss_at(width, trainer) for width in (32, 12, 5)]
    assert np.ptp(expected) > 0.1
    trainer.output.log = lines.append
    trainer.run(Silent(), 0)
    assert lines[0]["loss"] == pytest.approx(np.mean(expected), rel=1e-5)


def test_documents_of_several_segments_train(checkpoint, tmp_path):
    losses = []
    config = TrainConfig(lr=5e-3, batch_size=8, total_steps=40)
    trainer = make(checkpoint, tmp_path, config, 40, losses=losses, segmentation="special")
    assert trainer.snapshot.passages.row_counts.max() > 1
    trainer.run(Silent(), 0)
    assert losses[-1][1] < 0.7 * losses[0][1]


@pytest.mark.parametrize("chunk", [0, 3])
def test_packed_batches_train_as_padded_ones(checkpoint, tmp_path, chunk):
    config = TrainConfig(lr=1e-3, batch_size=8, in_batch="all", total_steps=3)
    losses, tokens = [], []
    for packs in (False, True):
        lines = []
        trainer = make(checkpoint, tmp_path, config, 3, segmentation="special", packs=packs)
        assert trainer._grad_cache_step.packs == packs
        trainer._grad_cache_step.chunk = chunk
        set_dropout(trainer.encoder, 0.0)
        trainer.output.log = lines.append
        trainer.run(Silent(), 0)
        losses.append([line["loss"] for line in lines])
        trainer._optimizer_step(with_groups=False)
        done = trainer._grad_cache_step
        tokens.append((done.tokens, done.computed, done.squares))
    assert losses[0] == pytest.approx(losses[1], abs=2e-6)
    (_, padded, _), (trained, computed, _) = tokens
    assert trained == computed < padded


@pytest.mark.parametrize("chunk", [0, 3])
@pytest.mark.parametrize(
    "recipe",
    [
        {"optimizer": "lamb", "in_batch": "all", "in_batch_margin": 0.1},
        {"in_batch": "random", "matryoshka": "8", "accumulation": 2},
        {"in_batch": "hardest", "loss": "hinge", "distill": "kl"},
    ],
    ids=lambda recipe: recipe["in_batch"],
)
def test_no_step_waits_for_the_device(checkpoint, tmp_path, monkeypatch, recipe, chunk):
    """On the meta device every look at a value raises."""
    monkeypatch.setattr(packing, "_row_by_row", lambda q, *_: q.sum() + torch.empty_like(q))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows no meta device
    plain = {"adamw": lambda groups, lr: torch.optim.AdamW(groups, lr=lr, foreach=True)}
    monkeypatch.setattr(optim, "OPTIMIZERS", {**optim.OPTIMIZERS, **plain})  # fused neither
    config = TrainConfig(lr=1e-3, batch_size=8, total_steps=3, **recipe)
    trainer = make(checkpoint, tmp_path, config, 3, packs=True, device="meta")
    trainer._grad_cache_step.chunk = chunk
    set_dropout(trainer.encoder, 0.0)
    for _ in range(2):
        trainer._optimizer_step(with_groups=False)
    assert [step.number for step in trainer._unread] == [1, 2]
    with pytest.raises((NotImplementedError, RuntimeError)):
        trainer._read()


def test_what_the_loss_takes_is_copied_before_the_encoder_works(checkpoint, tmp_path, monkeypatch):
    config, order = TrainConfig(lr=1e-3, batch_size=8, in_batch="all", total_steps=3), []
    trainer = make(checkpoint, tmp_path, config, 3)
    real = distributed.to_device

    def heard(array, device):
        order.append("copy")
        return real(array, device)

    monkeypatch.setattr(distributed, "to_device", heard)
    trainer.encoder.query.register_forward_pre_hook(lambda *_: order.append("encode"))
    trainer._optimizer_step(with_groups=False)
    assert order == ["copy"] * 9 + ["encode"] * 2


def test_unread_steps_are_read_before_anything_is_written(checkpoint, tmp_path):
    """As on a GPU: the loss of each step counts, and the first bad one ends it."""
    config = TrainConfig(lr=1e-3, batch_size=4, total_steps=9)
    every, third = [], []
    make(checkpoint, tmp_path / "a", config, 9, losses=every).run(Silent(), 0)
    trainer = make(checkpoint, tmp_path / "b", config, 9, losses=third, log_every=3)
    trainer._reads_each_step = False
    trainer.run(Silent(), 0)
    means = [np.mean([loss for _, loss, _ in every[n : n + 3]]) for n in (0, 3, 6)]
    assert [loss for _, loss, _ in third] == pytest.approx(means, abs=2e-6)

    lines, saved = [], []
    trainer = make(checkpoint, tmp_path / "c", config, 9, losses=lines, log_every=3)
    trainer._reads_each_step = False
    trainer.segment = replace(trainer.segment, state_minutes=60.0)
    trainer.output.save_state = trainer.output.save_checkpoint = saved.append
    backward = trainer._backward

    def broken(batch, micro):
        return backward(batch, micro) * (float("nan") if trainer.step == 4 else 1.0)

    trainer._backward = broken
    with pytest.raises(Diverged, match="step 5: loss nan"):
        trainer.run(Silent(), 0)
    assert [line[0] for line in lines] == [3] and trainer.step == 4 and not saved


def test_no_rank_goes_on_before_what_is_due_is_written(checkpoint, tmp_path):
    """The others would wait in their next collective, which NCCL ends after ten minutes; the main
    rank may write tens of gigabytes."""
    done = []

    class Watched(World):
        def wait(self):
            done.append("wait")

    trainer = make(checkpoint, tmp_path, TrainConfig(batch_size=4, total_steps=4), 4)
    trainer.world = Watched(trainer.world.device)
    trainer.segment = replace(trainer.segment, checkpoint_every=2, state_minutes=60.0)
    trainer.output.save_state = lambda trainer: done.append("state")
    trainer.output.save_checkpoint = lambda trainer: done.append("checkpoint")
    trainer.run(Silent(), 0)
    assert done == ["state", "checkpoint", "wait"] * 2


def test_a_state_that_is_saved_while_waiting_holds_the_unread_losses(checkpoint, tmp_path):
    """A signal may end the wait for a generation, between two lines of the log."""
    trainer = make(checkpoint, tmp_path, TrainConfig(lr=1e-3, batch_size=4, total_steps=9), 9)
    trainer._reads_each_step = False
    for _ in range(2):
        trainer._optimizer_step(with_groups=False)
    assert not trainer.losses
    trainer._save_state()
    assert len(trainer.losses) == 2 and not trainer._unread
    saved = load_state(tmp_path / "s2", trainer.encoder, trainer.optimizer)
    assert saved.losses == trainer.losses
    trainer._optimizer_step(with_groups=False)
    trainer._unread[0].loss.fill_(float("nan"))
    with pytest.raises(Diverged, match="step 3: loss nan"):
        trainer._save_state()
    assert not (tmp_path / "s3").exists()


@pytest.mark.long
def test_a_state_keeps_8_bit_moments_as_they_are(checkpoint, tmp_path):
    config = TrainConfig(optimizer="adamw-8bit", lr=1e-2, batch_size=8, total_steps=3)
    trainer = make(checkpoint, tmp_path, config, 2)
    trainer.run(Silent(), 0)
    again = make(checkpoint, tmp_path, config, 3, tmp_path / "s2")
    ours, theirs = (
        [t.optimizer.state[p] for p in t.encoder.parameters() if p.requires_grad]
        for t in (trainer, again)
    )
    in_8_bits = 0
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one["step"], other["step"])
        for name in ("exp_avg", "exp_avg_sq"):
            assert type(one[name]) is type(other[name])
            if hasattr(one[name], "codes"):
                in_8_bits += 1
                assert one[name].signed == other[name].signed == (name == "exp_avg")
                for part in ("codes", "scale", "qmap"):
                    assert torch.equal(getattr(one[name], part), getattr(other[name], part))
            else:
                assert torch.equal(one[name], other[name])
    assert 0 < in_8_bits < 2 * len(ours)


def test_each_layer_learns_at_its_own_rate(checkpoint, tmp_path):
    """The first step of Adam is the rate times the sign of the gradient, without weight decay."""
    config = TrainConfig(
        lr=1e-3, weight_decay=0.0, batch_size=8, schedule="constant", layer_decay=0.5
    )
    trainer = make(checkpoint, tmp_path, config, 1)
    before = {name: p.detach().clone() for name, p in trainer.encoder.named_parameters()}
    trainer.run(Silent(), 0)
    tower = "towers.shared."
    for name, factor in {
        "chain.0.model.embeddings.word_embeddings.weight": 0.125,
        "chain.0.model.encoder.layer.0.output.dense.weight": 0.25,
        "chain.0.model.encoder.layer.1.output.dense.weight": 0.5,
        "chain.2.linear.weight": 1.0,
    }.items():
        after = trainer.encoder.get_parameter(tower + name).detach()
        step = (after - before[tower + name]).abs().max()
        assert float(step) == pytest.approx(1e-3 * factor, rel=1e-2)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_frozen_layers_have_no_gradients_and_no_state(checkpoint, tmp_path, checkpointing):
    config = TrainConfig(lr=1e-2, batch_size=8, total_steps=3, freeze_layers=1)
    trainer = make(checkpoint, tmp_path, config, 2)
    if checkpointing:
        enable_gradient_checkpointing(trainer.encoder)
    before = {name: p.detach().clone() for name, p in trainer.encoder.named_parameters()}
    trainer.run(Silent(), 0)
    frozen = set()
    for name, p in trainer.encoder.named_parameters():
        is_frozen = "embeddings" in name or ".layer.0." in name
        assert torch.equal(p, before[name]) == is_frozen, name
        assert (p not in trainer.optimizer.state) == is_frozen, name
        frozen |= {name} if is_frozen else set()
    assert 0 < len(frozen) < len(before)


def test_divergence_is_refused_before_anything_is_kept(checkpoint, tmp_path):
    config = TrainConfig(lr=1e-3, batch_size=8, total_steps=5)
    trainer = make(checkpoint, tmp_path, config, 5)
    with torch.no_grad():
        trainer.encoder.query.chain[2].linear.weight[0, 0] = float("nan")
    with pytest.raises(Diverged, match="step 1: loss nan") as problem:
        trainer.run(Silent(), 0)
    assert problem.value.exit_code == 7
    assert not list(tmp_path.glob("s*"))


def test_weights_that_are_not_finite_are_never_kept(checkpoint, tmp_path):
    """The last step itself broke them: its loss and its gradients were still finite."""
    config = TrainConfig(batch_size=8, total_steps=1, schedule="constant")
    object.__setattr__(config, "lr", 1e39)  # no setting may be so large
    kept = []
    trainer = make(checkpoint, tmp_path, config, 1)
    trainer.output.save_checkpoint = kept.append
    with pytest.raises(Diverged, match="step 1: a weight is not finite"):
        trainer.run(Silent(), 0)
    assert not kept and not list(tmp_path.glob("s*"))


def test_a_checkpoint_that_a_kill_prevented_is_written_on_resume(checkpoint, tmp_path):
    """The state of a step is kept first, then its checkpoint: a kill in between costs neither."""
    config = TrainConfig(lr=1e-3, batch_size=8, total_steps=6)
    made = []
    for state in (None, tmp_path / "s2"):
        trainer = make(checkpoint, tmp_path, config, 6, state)
        trainer.segment = replace(trainer.segment, checkpoint_every=2)
        trainer.output.save_checkpoint = lambda t, begun=state: made.append((begun is None, t.step))
        trainer.run(Silent(), 0)
    assert made == [(True, 2), (True, 4), (True, 6), (False, 2), (False, 4), (False, 6)]
