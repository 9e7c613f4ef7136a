"""Texts to vectors in memory."""

import numpy as np
import pytest

from ance_cli.config import ComputeConfig
from ance_cli.errors import BadInput
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.inference import InferenceEngine
from ance_cli.models.texts import TextEncoder


def test_vectors_that_are_not_finite_are_refused(checkpoint, monkeypatch):
    """Also those of a good checkpoint whose activations are too large for 16-bit floats, in which
    older GPUs compute."""
    encode = TextEncoder(Checkpoint(checkpoint), "query", ComputeConfig(gpus="none"))
    overflowed = np.array([[1.0, np.inf]], np.float32)
    monkeypatch.setattr(InferenceEngine, "encode", lambda *_: overflowed)
    with pytest.raises(BadInput, match="its query vectors are not finite") as caught:
        encode(["river"])
    assert caught.value.hint.endswith("use an earlier one, or --dtype fp32")
