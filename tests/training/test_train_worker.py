"""What a rank says and refuses before and while it trains."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModel, BertConfig, T5Config, T5EncoderModel

from ance_cli.call import Call
from ance_cli.config import SegmentConfig, TrainConfig
from ance_cli.errors import ResourceExhausted
from ance_cli.formats.run_folder import RunFolder
from ance_cli.models import devices, packing
from ance_cli.progress import Silent
from ance_cli.training import train_worker
from ance_cli.training.distributed import World
from ance_cli.training.launch import Devices
from ance_cli.training.train_worker import TrainJob, pack_batches, train_rank

CUDA = torch.device("cuda", 0)


class Heard(Silent):
    """Keeps what is said."""

    def __init__(self):
        super().__init__()
        self.said = []

    def say(self, text):
        self.said.append(text)


class Tower:
    def __init__(self, backbone):
        self.backbone, self.packs = backbone, False


def dual(backbone, other=None):
    query = Tower(backbone)
    return SimpleNamespace(query=query, passage=Tower(other) if other else query)


def bert(dropout):
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
             "intermediate_size": 16}  # fmt: skip
    return AutoModel.from_config(BertConfig(**sizes, attention_probs_dropout_prob=dropout))


@pytest.fixture
def gpu(monkeypatch):
    """The answers of a machine whose GPU 0 can do flash attention."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(packing, "_kernel_parameters", lambda: {"scale", "window_size"})


def test_training_packs_where_attention_has_no_dropout(gpu):
    heard, encoder = Heard(), dual(bert(0.0), bert(0.0))
    pack_batches(encoder, CUDA, "bf16", heard)
    assert encoder.query.packs and encoder.passage.packs and not heard.said
    for tower in (encoder.query, encoder.passage):
        assert tower.backbone.config._attn_implementation == "ance_packed"


def test_one_tower_that_cannot_pack_leaves_both_padded(gpu):
    t5 = T5EncoderModel(T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=16, num_layers=1,
                                 num_heads=4))  # fmt: skip
    for other, reason in (
        (bert(0.1), "variable-length attention has no dropout, and the model's is 0.1"),
        (t5, "t5 is not among the packed families"),
    ):
        heard, encoder = Heard(), dual(bert(0.0), other)
        pack_batches(encoder, CUDA, "bf16", heard)
        assert heard.said == [f"batches are padded: {reason}"]
        assert not encoder.query.packs and not encoder.passage.packs
        assert encoder.query.backbone.config._attn_implementation != "ance_packed"


@pytest.mark.parametrize(("chosen", "computed"), [("fp16", "fp32"), ("bf16", "bf16")])
def test_training_says_that_it_leaves_fp16(monkeypatch, chosen, computed):
    monkeypatch.setattr(devices, "choose_dtype", lambda asked, device: chosen)
    heard = Heard()
    job = TrainJob.of(
        SegmentConfig(), None, TrainConfig(), Devices("none"), None, Call(reporter=heard)
    )
    assert job.dtype == computed
    said = ["training in fp32: in fp16 small gradients would become 0"]
    assert heard.said == (said if chosen == "fp16" else [])


def test_the_hint_when_memory_runs_out_is_one_that_a_run_takes(monkeypatch, tmp_path):
    def run(reporter, first_step):
        raise torch.OutOfMemoryError("CUDA out of memory")

    trainer = SimpleNamespace(run=run, step=4, last_step=9)
    monkeypatch.setattr(train_worker, "_make_trainer", lambda *_: trainer)
    job = TrainJob(SegmentConfig(), SimpleNamespace(start_step=0), "fp32")
    with pytest.raises(ResourceExhausted) as caught:
        train_rank(RunFolder(tmp_path), TrainConfig(batch_size=32), job,
                   World(torch.device("cpu")), training_set=object())  # fmt: skip
    assert caught.value.what == "cpu: memory ran out in step 5, at 32 pairs for each device"
    assert "--grad-cache 8 or --gradient-checkpointing" in caught.value.hint


def test_cudnn_attention_is_off_on_gpus_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", asked.append)
    devices.without_cudnn_attention([torch.device("cpu")])
    assert asked == []
    devices.without_cudnn_attention([CUDA])
    assert asked == [False]
