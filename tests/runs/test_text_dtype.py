"""`text.dtype`: the text encoders alone are in it, and captions are encoded anew."""

import pytest
import torch

from lora_loom.trainer.base_model import open_base
from lora_loom.trainer.errors import RunError
from lora_loom.trainer.runs.headless import train
from tests.conftest import FAMILIES, SilentHost, make_config


@pytest.mark.parametrize("family", FAMILIES)
def test_the_encoders_alone_are_in_it(family, tmp_path):
    made = {}
    for dtype in ("auto", "bfloat16"):
        config = make_config(family, tmp_path, text={"dtype": dtype})
        base = open_base(config.model, config.text)
        encoders = base.load_encoders()
        made[dtype] = (base.encoder_identity(), encoders.text.encode(["a red square"])[0], encoders.image)
    (before, plain, _), (after, short, image) = made["auto"], made["bfloat16"]
    assert before.text != after.text
    assert before.vae == after.vae
    assert {
        p.dtype for part in vars(image).values() if isinstance(part, torch.nn.Module) for p in part.parameters()
    } == {torch.float32}
    for name, tensor in plain.items():
        if tensor.is_floating_point():
            off = (short[name].float() - tensor).norm() / tensor.norm()
            assert 0 < off < 0.1, name


def test_a_run_keeps_the_dtype_it_was_begun_with(tmp_path):
    train(make_config("sd", tmp_path, training={"steps": 1}), SilentHost())
    with pytest.raises(RunError, match="text"):
        train(make_config("sd", tmp_path, training={"steps": 2}, text={"dtype": "bfloat16"}), SilentHost())
