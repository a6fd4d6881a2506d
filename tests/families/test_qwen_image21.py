"""Qwen-Image 2.1's own ways: against diffusers' pipeline, in texts, packing and prediction; ComfyUI's file with its fused feed-forward."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_loom.trainer import families
from lora_loom.trainer.base_model import open_base
from lora_loom.trainer.config.run import ModelConfig, NetworkConfig
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.families import qwen_image21
from lora_loom.trainer.families.common.family import Loading
from lora_loom.trainer.families.common.keymap import to_diffusers
from lora_loom.trainer.families.common.latent_spaces import QWEN_21_MEAN, QWEN_21_STD
from lora_loom.trainer.families.common.source import open_source
from lora_loom.trainer.lora.adapter import inject
from lora_loom.trainer.lora.host_formula import weight_change
from lora_loom.trainer.lora.state_dict import to_file
from lora_loom.trainer.lora.targets import resolve_targets
from lora_loom.trainer.runs.reference_images import check_reference_use
from tests.conftest import tiny_folder

FAMILY = families.get("qwen_image21")
CPU = Loading(dtype=None, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def tiny():
    return FAMILY.tiny()


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pipeline(tiny):
    """diffusers' pipeline over the same networks, less what reads images: a processor that only has a tokenizer."""
    from diffusers import FlowMatchEulerDiscreteScheduler, QwenImage21Pipeline

    tokenizer = tiny.encoders.text.tokenizer

    class Processor:
        def __call__(self, text, **options):
            options.pop("padding_side")
            return tokenizer(text, **options)

    class Encoder:
        """Qwen3VLForConditionalGeneration as the pipeline uses it."""

        model = tiny.encoders.text.module
        __call__ = staticmethod(tiny.encoders.text.module.forward)

    made = QwenImage21Pipeline.__new__(QwenImage21Pipeline)
    made._internal_dict = {}
    settings = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192}
    parts = {
        "vae": tiny.vae, "transformer": tiny.denoiser.module, "text_encoder": Encoder(), "processor": Processor(),
        "scheduler": FlowMatchEulerDiscreteScheduler(**settings),
    }  # fmt: skip
    for name, part in parts.items():
        object.__setattr__(made, name, part)
    made.prompt_template_t2i = qwen_image21.TEMPLATE
    made._drop_idx = tiny.encoders.text.head_tokens
    made._img_token_id = 45
    return made


@pytest.mark.parametrize("prompt", ["a cat", ""])
def test_a_text_is_that_of_diffusers_pipeline(tiny, pipeline, prompt):
    theirs, mask, _ = pipeline._get_qwen_prompt_embeds([prompt], None, torch.device("cpu"))
    assert bool(mask.all())
    [text] = tiny.encoders.text.encode([prompt])
    assert torch.allclose(text["text"], theirs[0], atol=1e-6)


def test_the_template_is_that_of_diffusers_pipeline():
    import inspect

    from diffusers import QwenImage21Pipeline

    source = inspect.getsource(QwenImage21Pipeline.__init__)
    assert qwen_image21.HEAD.split("system\n")[1].removesuffix("<|im_end|>\n") in source
    pieces = (r"<|im_start|>user\n{{}}<|im_end|>\n", r"<|im_start|>assistant\n")
    assert all(piece in source for piece in pieces)
    assert qwen_image21.TEMPLATE.endswith("".join(pieces).replace("{{}}", "{}").replace(r"\n", "\n"))


def test_the_latents_are_those_of_diffusers_vae():
    import inspect

    from diffusers import AutoencoderKLQwenImage21

    defaults = inspect.signature(AutoencoderKLQwenImage21.__init__).parameters
    assert list(QWEN_21_MEAN) == defaults["latents_mean"].default
    assert list(QWEN_21_STD) == defaults["latents_std"].default


def test_prediction_and_loss_are_those_of_what_the_pipeline_asks_for(tiny):
    """Its packing, its mask of slots and its batch of one layout, over the same network; loss and gradient of the velocity."""
    from diffusers import QwenImage21Pipeline

    [text] = tiny.encoders.text.encode(["a cat"])
    latents, noises, sigma = noise(2, 64, 4, 6), noise(2, 64, 4, 6).flip(0), torch.tensor([0.4, 0.7])
    noisy = tiny.denoiser.objective.add_noise(latents, noises, sigma).requires_grad_()
    slots = torch.cat([torch.zeros(2, len(text["text"])), torch.ones(2, 4 * 6 // 4)], dim=1).bool()
    theirs = tiny.denoiser.module(
        hidden_states=QwenImage21Pipeline._pack_latents(noisy, 2, 64, 4, 6),
        encoder_hidden_states=text["text"].expand(2, -1, -1),
        encoder_hidden_states_mask=torch.ones(2, len(text["text"])),
        timestep=sigma,
        img_shapes=[[(1, 4, 6)]] * 2,
        img_mask=slots,
        return_dict=False,
    )[0][:, -24:]
    target = QwenImage21Pipeline._pack_latents(noises - latents, 2, 64, 4, 6)
    their_loss = (theirs - target).square().mean()
    mine = tiny.denoiser.predict(noisy, sigma, FAMILY.condition([text] * 2, [], 1.0))
    loss = (mine - tiny.denoiser.objective.target(latents, noises, sigma)).square().mean()
    assert torch.allclose(mine, theirs.transpose(1, 2).reshape(mine.shape), atol=1e-5)
    assert torch.allclose(loss, their_loss, rtol=1e-5)
    first, second = (torch.autograd.grad(one, noisy)[0] for one in (loss, their_loss))
    assert torch.allclose(first, second, atol=1e-6)


def test_a_text_beside_a_longer_one_is_as_alone(tiny):
    texts = tiny.encoders.text.encode(["cat", "a long prompt about dogs"])
    noisy, sigma = noise(2, 64, 4, 4), torch.tensor([0.3, 0.7])
    together = tiny.denoiser.predict(noisy, sigma, FAMILY.condition(texts, [], 1.0))
    for i, text in enumerate(texts):
        alone = tiny.denoiser.predict(noisy[i : i + 1], sigma[i : i + 1], FAMILY.condition([text], [], 1.0))
        assert torch.allclose(together[i : i + 1], alone, atol=1e-5)


def test_the_vae_sees_full_opacity_and_gives_three_channels(tiny):
    pixels = noise(1, 3, 32, 32).clamp(-1, 1)
    raw = tiny.encoders.image.encode(pixels)
    film = torch.cat([pixels, torch.ones(1, 1, 32, 32)], dim=1).unsqueeze(2)
    assert torch.allclose(raw, tiny.vae.encode(film).latent_dist.mode().squeeze(2))
    assert raw.shape == (1, 64, 2, 2)
    assert tiny.encoders.image.decode(raw).shape == pixels.shape


@pytest.fixture
def native_file(tmp_path):
    """ComfyUI's file: the gate and the way up as one matrix, in this order."""
    tensors = load_file(tiny_folder("qwen_image21") / "transformer" / "diffusion_pytorch_model.safetensors")
    for i in (0, 1):
        stem = f"transformer_blocks.{i}.img_mlp"
        halves = [tensors.pop(f"{stem}.{name}.weight") for name in ("gate_layer", "proj")]
        tensors[f"{stem}.gate_up.weight"] = torch.cat(halves)
    path = tmp_path / "qwen_image_2.1.safetensors"
    save_file(tensors, path)
    return path


def test_comfyuis_file_is_the_same_network_without_a_copy(tiny, native_file):
    source = open_source(str(native_file))
    family, variant = families.choose("auto", "auto", source)
    assert (family.name, variant) == ("qwen_image21", "qwen-image-2.1")
    module = family.load_denoiser(source, variant, CPU).module
    mine, theirs = module.state_dict(), tiny.denoiser.module.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    tensors = source.tensors()
    owned = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    mapped = to_diffusers(tensors, family.key_map(source.shapes))
    assert {tensor.untyped_storage().data_ptr() for tensor in mapped.values()} == owned


def test_reference_images_are_refused_with_the_reason(tiny, native_file):
    """The model takes some elsewhere: diffusers' pipeline puts them into the prompt."""
    base = open_base(ModelConfig(base=str(native_file)))
    for option in ("dataset.references", "validation.references", "sweep.references"):
        with pytest.raises(
            ConfigError, match=rf"{option}: qwen_image21 qwen-image-2.1 gets no reference images: .*text to image alone"
        ):
            check_reference_use(option, ["a.png"], base)
    check_reference_use("dataset.references", [], base)


def test_the_saved_file_has_the_names_of_the_halves_and_their_change(tiny):
    """ComfyUI reads gate_layer and proj behind `transformer.` as the halves of its gate_up."""
    made = FAMILY.tiny()
    paths = resolve_targets(made.denoiser.module, made.denoiser.target_presets, "default")
    adapter = inject(made.denoiser.module, paths, NetworkConfig(rank=2), seed=0)
    for number, parameter in enumerate(adapter.parameters().values()):
        parameter.data = noise(*parameter.shape) * (1 + number % 3)
    tensors = to_file(adapter, made.denoiser.file_key, torch.float32)
    modules = {key.rpartition(".lora_")[0] for key in tensors if ".lora_" in key}
    assert modules == {f"transformer.{path}" for path in paths}
    path = "transformer_blocks.1.img_mlp.gate_layer"
    layer = adapter.layers[path]
    base = layer.get_base_layer().weight
    parts = {name: tensors[f"transformer.{path}.{name}"] for name in ("lora_A.weight", "lora_B.weight", "alpha")}
    values = {name: value.detach() for name, value in layer.named_parameters() if "lora_" in name}
    expected = values["lora_B.default.weight"] @ values["lora_A.default.weight"] * layer.scaling["default"]
    assert torch.allclose(weight_change(parts, base), expected, atol=1e-5)
