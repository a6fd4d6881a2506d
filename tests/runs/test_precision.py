"""Whole runs on bases kept and computed in other number formats: they learn, and their files act as trained."""

import math

import pytest
import torch
from safetensors.torch import load_file

from lora_loom.trainer.runs.checkpoint import list_checkpoints
from tests.conftest import make_config
from tests.runs.test_session import go


@pytest.mark.parametrize("quantize", ["int8", "int4", "int2", "float8", "nf4"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_on_a_quantised_base(tmp_path, quantize, precision):
    kind = "dora" if quantize in ("int4", "float8", "nf4") else "lora"
    outcome, host, _ = go(
        tmp_path,
        model={"base": make_config("sd3", tmp_path).model.base, "quantize": quantize},
        network={"kind": kind},
        training={"steps": 3, "precision": precision},
    )
    assert outcome.state == "finished"
    assert outcome.max_relative_error < 5e-3
    assert all(math.isfinite(result.loss) for result in host.steps)


@pytest.mark.parametrize("family", ["sd", "sd3"])
@pytest.mark.parametrize(
    ("stored", "precision"), [("bfloat16", "bfloat16"), ("float32", "bfloat16"), ("float16", "float16")]
)
def test_mixed_precision(tmp_path, family, stored, precision):
    """The base in half precision, arithmetic too; adapter, optimizer state and EMA in every checkpoint are fp32."""
    targets = "conv" if family == "sd" else "attention"
    outcome, _, folder = go(
        tmp_path,
        family=family,
        model={"base": make_config(family, tmp_path).model.base, "dtype": stored},
        network={"target_modules": targets},
        training={"steps": 3, "precision": precision, "ema_decay": 0.9},
    )
    assert outcome.state == "finished"
    last = list_checkpoints(folder.checkpoints)[-1].folder
    for name in ("adapter", "optimizer"):
        kept = {key: tensor.dtype for key, tensor in load_file(last / f"{name}.safetensors").items() if tensor.ndim}
        assert set(kept.values()) == {torch.float32}, name
    ups = {key: tensor for key, tensor in load_file(last / "adapter.safetensors").items() if "lora_B" in key}
    assert not [key for key, tensor in ups.items() if not tensor.any()], "every module learns"
