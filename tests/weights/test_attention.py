"""Kernels of attention: the network's own processors are told, what is not here is refused with what is."""

import pytest
import torch

from lora_loom.trainer import families
from lora_loom.trainer.base_model import open_base
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.weights.attention import KERNELS, available, check_attention, use_attention
from tests.conftest import make_config, tiny_folder

CPU = torch.device("cpu")


def loaded(attention):
    config = make_config("flux", tiny_folder("flux"), model={"attention": attention})
    return open_base(config.model, config.text).load_denoiser(config.model, "float32")


def conditioning(family):
    made = families.get(family)
    texts = [made.tiny().encoders.text.encode(["a red square"])[0]]
    from lora_loom.trainer.types import Geometry

    return made.condition(texts, [Geometry.whole((64, 64))], 1.0)


def test_another_kernel_gives_the_same_prediction_and_gradient_but_for_rounding():
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    before = _AttentionBackendRegistry.get_active_backend()
    given, results = conditioning("flux"), []
    for kernel in ("auto", "sdpa", "math"):
        denoiser = loaded(kernel)
        noisy = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
        out = denoiser.predict(noisy, torch.tensor([0.5]), given)
        out.square().sum().backward()
        results.append((out.detach(), noisy.grad))
    backends = {part.processor._attention_backend for part in denoiser.module.modules() if hasattr(part, "processor")}
    assert backends == {AttentionBackendName._NATIVE_MATH}
    assert _AttentionBackendRegistry.get_active_backend() == before, "nothing changes for other models of the process"
    assert torch.equal(results[0][0], results[1][0])
    for one, other in zip(results[0], results[2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_what_is_not_here_is_refused_with_what_is():
    assert available(CPU) == ["sdpa", "math"]
    with pytest.raises(ConfigError, match=r"model.attention = 'cudnn': it needs a CUDA GPU; use auto, sdpa or math"):
        loaded("cudnn")
    with pytest.raises(ConfigError, match="flash_attn_interface"):
        loaded("flash3")


@pytest.mark.parametrize("family", ["sd", "sd3", "lumina2"])
def test_a_network_without_a_choice_says_so(family):
    config = make_config(family, tiny_folder(family), model={"attention": "math"})
    with pytest.raises(ConfigError, match="would do nothing: diffusers gives"):
        open_base(config.model, config.text)


def test_a_mask_that_a_kernel_cannot_take_is_an_error_of_ours():
    class Masked(torch.nn.Module):
        def forward(self, x):
            raise ValueError("`attn_mask` is not supported for flash-attn 2.")

    network = Masked()
    use_attention(network, "flash")
    with pytest.raises(ConfigError, match="masks its attention"):
        network(1)
    check_attention("auto", network, CPU, "it")


def test_every_name_is_one_of_diffusers():
    from diffusers.models.attention_dispatch import AttentionBackendName

    assert all(AttentionBackendName(name) for name, _ in KERNELS.values())
