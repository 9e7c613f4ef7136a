"""Readers: the answer to a question from a few retrieved passages (OpenQA, end to end).

The architecture in a folder's `config.json` decides between three kinds. DPR's reader takes the
passage of the highest relevance and its best span (Karpukhin et al., EMNLP 2020, Sec. 6.1). Any
other extractive model takes the best span of all passages, each compared with the null answer of
its own window (Clark and Gardner, ACL 2018, and Devlin et al., NAACL 2019, Sec. 4.3). A generative
model gets all passages in one prompt. The readers themselves are in `extractive_reader` and
`generative_reader`. Torch is imported with the first model, so that a command can compute the
fingerprint without it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from ance_cli.config import ComputeConfig, ReadConfig
from ance_cli.errors import BadInput
from ance_cli.formats.checkpoint_folder import ModuleFolder
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.language_model import language_model_kind
from ance_cli.models.reading_model import Kind, Reader, backbone_folder, model_fingerprint
from ance_cli.models.tower import read_object

_ENDINGS: dict[str, Kind] = {
    "DPRReader": "dpr",
    "ForQuestionAnswering": "extractive",
    "ForQuestionAnsweringSimple": "extractive",
}


def reader_kind(folder: Path) -> Kind:
    """The kind of the reader in a folder; `BadInput` if the folder holds no reader."""
    return _kind(Checkpoint(folder))


def _kind(checkpoint: Checkpoint) -> Kind:
    config = read_object(ModuleFolder(backbone_folder(checkpoint)).config)
    if generative := language_model_kind(config):
        return generative
    named = config.get("architectures") or ["none"]
    for ending, kind in _ENDINGS.items():
        if str(named[0]).endswith(ending):
            return kind
    raise BadInput(
        f"{checkpoint.shown}/config.json: names the architecture {named[0]}; expected a reader: "
        "DPRReader, ...ForQuestionAnswering, ...ForConditionalGeneration or ...ForCausalLM",
        hint="name the folder of a model that was trained to answer questions, with its "
        "safetensors and tokenizer",
    )


def reader_fingerprint(folder: Path) -> str:
    """Hash of what a reader's answers depend on: its kind, weights, tokenizer and config files."""
    checkpoint = Checkpoint(folder)
    return model_fingerprint(checkpoint, _kind(checkpoint))


def open_reader(
    folder: Path, config: ReadConfig = ReadConfig(), compute: ComputeConfig = ComputeConfig()
) -> Reader:
    """The reader in a folder, on the first of the chosen devices.

    Raises `BadInput` if the folder does not hold a complete model of a known kind.
    """
    from ance_cli.models.extractive_reader import DprReader, ExtractiveReader
    from ance_cli.models.generative_reader import GenerativeReader

    readers: dict[Kind, Callable[[Checkpoint, ReadConfig, ComputeConfig], Reader]] = {
        "dpr": DprReader,
        "extractive": ExtractiveReader,
        "seq2seq": partial(GenerativeReader, kind="seq2seq"),
        "causal": partial(GenerativeReader, kind="causal"),
    }
    checkpoint = Checkpoint(folder)
    return readers[_kind(checkpoint)](checkpoint, config, compute)
