"""`text.dtype` and `text.quantize`: the text encoders alone are in it, and captions are encoded anew."""

import pytest
import torch

from lora_loom.trainer.base_model import open_base
from lora_loom.trainer.config.run import TextConfig
from lora_loom.trainer.errors import ConfigError, RunError
from lora_loom.trainer.memory_plan.base_sizes import tensor_bytes
from lora_loom.trainer.memory_plan.files import _bytes_of
from lora_loom.trainer.runs.headless import train
from lora_loom.trainer.weights.quantize import is_quantized
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


@pytest.mark.parametrize(("kind", "most"), [("int8", 0.05), ("float8", 0.15), ("nf4", 0.5)])
def test_quantized_encoders_read_nearly_the_same_and_the_plan_knows_their_size(kind, most, tmp_path):
    made = {}
    for quantize in ("none", kind):
        base = open_base((config := make_config("flux", tmp_path, text={"quantize": quantize})).model, config.text)
        text = base.load_encoders().text
        made[quantize] = (base.encoder_identity().text, text.encode(["a red square"])[0])
        assert is_quantized(text.t5.module) == (quantize != "none")
        assert not is_quantized(text.clip.module)
        inner = [*text.t5.module.parameters(), *text.t5.module.buffers()]
        stored = sum(tensor_bytes(one) for one in [*inner, *text.clip.module.parameters(), *text.clip.module.buffers()])
        assert _bytes_of(base.load_encoders(structure=True).text, quantize) == pytest.approx(stored, rel=0.02)
    (before, plain), (after, packed) = made["none"], made[kind]
    assert before != after
    for name, tensor in plain.items():
        off = (packed[name].float() - tensor).norm() / tensor.norm()
        assert off < most, name
        assert (off > 0) == (name == "text"), name


def test_quantizing_clip_or_what_is_trained_is_refused(tmp_path):
    config = make_config("sdxl", tmp_path, text={"quantize": "int8"})
    with pytest.raises(ConfigError, match="text.quantize = 'int8' would do nothing: sdxl has CLIP alone"):
        open_base(config.model, config.text)
    with pytest.raises(ConfigError, match="keep their weights"):
        TextConfig(quantize="int8", learning_rate=1e-4)


def test_a_run_with_quantized_encoders_is_continued_with_them(tmp_path):
    text = {"quantize": "int8"}
    train(make_config("sd3", tmp_path, training={"steps": 1}, text=text), SilentHost())
    train(make_config("sd3", tmp_path, training={"steps": 2}, text=text), SilentHost())
    with pytest.raises(RunError, match="text"):
        train(make_config("sd3", tmp_path, training={"steps": 3}), SilentHost())
