"""Original single files: mapped without copying, equal to the host's predictions and rows, refused when wrong."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_loom.trainer import families
from lora_loom.trainer.errors import ConfigError, ModelFileError
from lora_loom.trainer.families import chroma, flux, flux2, krea2, lumina2, qwen_image, sd3, z_image
from lora_loom.trainer.families.common import unet
from lora_loom.trainer.families.common.family import Loading
from lora_loom.trainer.families.common.keymap import Part, to_diffusers
from lora_loom.trainer.families.common.source import open_source
from lora_loom.trainer.types import Geometry
from lora_loom.trainer.weights.frozen import FrozenLinear
from lora_loom.trainer.weights.quantize import is_quantized, stored_bytes
from scripts.host_toys import HEADLESS, TOYS, toy_inputs, toy_tensor
from tests.conftest import HOST_FIXTURES, tiny_folder

HOST = HOST_FIXTURES
CPU = Loading(dtype=None, device=torch.device("cpu"))
READERS = {
    "sd": unet.read_native,
    "sdxl": unet.read_native,
    "sd3": sd3.read_native,
    "chroma": chroma.read_native,
    "flux": flux.read_native,
    "flux2": flux2.read_native,
    "krea2": krea2.read_native,
    "lumina2": lumina2.read_native,
    "qwen_image": qwen_image.read_native,
    "z_image": z_image.read_native,
}


def record(name):
    return json.loads((HOST / f"{name}.json").read_text())


def weights(name, dtype=torch.float32):
    return {key: toy_tensor(key, tuple(shape)).to(dtype) for key, shape in record(name)["keys"].items()}


@pytest.fixture(params=HEADLESS)
def toy_name(request):
    return request.param


@pytest.fixture
def toy_file(toy_name, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({f"model.diffusion_model.{key}": tensor for key, tensor in weights(toy_name).items()}, path)
    return path


def load(path, variant="auto", loading=CPU):
    source = open_source(str(path))
    family, found = families.choose("auto", variant, source)
    return family, family.load_denoiser(source, found, loading)


def toy_conditioning(toy, family, inputs):
    """What a toy's network is told beside the latents, as the family makes it."""
    texts = [{"text": t} for t in inputs["text"]]
    for text, pooled in zip(texts, inputs.get("pooled", []), strict=False):
        text["pooled"] = pooled
    place = Geometry(original=(128, 96), resized=(128, 96), crop_left=8, crop_top=16, target=(112, 64))
    cond = dict(family.condition(texts, [place, place], 1.0))
    for name in inputs:
        if name.startswith("reference"):
            cond[name] = family.latent_space.to_model(inputs[name]).expand(2, -1, -1, -1)
    return cond


def test_prediction_equals_comfyuis(toy_name, toy_file):
    """The same weights and inputs through ComfyUI's class (recorded) and through our diffusers module."""
    toy, recorded = TOYS[toy_name], load_file(HOST / f"{toy_name}.safetensors")
    family, denoiser = load(toy_file, toy.variant)
    assert family.name == toy.family
    inputs = toy_inputs(toy)
    cond = toy_conditioning(toy, family, inputs)
    noisy = denoiser.objective.add_noise(inputs["latents"], inputs["noise"], inputs["sigma"])
    assert torch.allclose(noisy, recorded["noisy"], rtol=1e-6)
    predicted = denoiser.predict(noisy, inputs["sigma"], cond)
    denoised = denoiser.objective.to_denoised(noisy, predicted, inputs["sigma"])
    effect, expected = noisy - denoised, recorded["noisy"] - recorded["denoised"]
    assert (effect - expected).norm() / expected.norm() < 1e-5


def test_lora_rows_land_where_the_hosts_do(toy_name, toy_file):
    """Key by key: the original tensor and the rows that ComfyUI patches are those our module's weight comes from."""
    accepted = record(toy_name)["accepted"]
    shapes = {key: tuple(shape) for key, shape in record(toy_name)["keys"].items()}
    _, keymap = READERS[TOYS[toy_name].family](shapes)
    _, denoiser = load(toy_file)
    checked = 0
    for path, module in denoiser.module.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            target = accepted[denoiser.file_key(path)]
            part = keymap[f"{path}.weight"]
            assert target[0] == part.native
            assert part.swap_halves == (target[-1] == "other") or target[-1] != "other"
            if len(target) == 3:
                assert part.rows == (target[1], target[2])
            elif target[-1] != "other":
                assert part.rows is None
            checked += 1
    assert checked > 30


def test_no_second_copy(toy_name, toy_file):
    """Every parameter shares the file's storage, but for the documented swap of the last modulation."""
    source = open_source(str(toy_file))
    shapes = source.shapes
    tensors = {key: tensor.clone() for key, tensor in source.tensors().items()}
    _, keymap = READERS[TOYS[toy_name].family](shapes)
    mapped = to_diffusers(tensors, keymap)
    owned = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    copied = sorted(key for key, tensor in mapped.items() if tensor.untyped_storage().data_ptr() not in owned)
    swapped = sorted(key for key, part in keymap.items() if part.swap_halves)
    assert copied == swapped
    assert sum(t.nbytes for t in mapped.values()) == sum(t.nbytes for t in tensors.values()), (
        "nothing read twice or left out"
    )


def test_loading_adds_no_bytes(toy_name, toy_file):
    _, denoiser = load(toy_file)
    total = sum(t.nbytes for t in weights(toy_name).values())
    assert stored_bytes(denoiser.module) <= total * 1.10 + 8 * len(record(toy_name)["keys"]), (
        "the map of the file, and the swaps"
    )


def test_the_prefix_is_optional(toy_name, tmp_path):
    bare = tmp_path / "bare.safetensors"
    save_file(weights(toy_name), bare)
    family, _ = load(bare)
    assert family.name == TOYS[toy_name].family


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16])
def test_fp8_and_half_files_stay_as_stored_and_compute_in_fp32(tmp_path, dtype):
    path = tmp_path / "model.safetensors"
    save_file(weights("sd3", dtype), path)
    _, denoiser = load(path, loading=Loading(dtype=None, device=torch.device("cpu"), compute_dtype=torch.float32))
    linear = denoiser.module.get_submodule("transformer_blocks.0.attn.to_q")
    assert type(linear) is FrozenLinear
    assert linear.weight.dtype == dtype
    inputs = toy_inputs(TOYS["sd3"])
    predicted = denoiser.predict(
        inputs["latents"], inputs["sigma"], {"text": inputs["text"], "pooled": inputs["pooled"]}
    )
    assert torch.isfinite(predicted).all()


def test_quantised_while_loading(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(weights("flux-dev"), path)
    _, plain = load(path)
    _, packed = load(path, loading=Loading(dtype=torch.float32, device=torch.device("cpu"), quantize="int8"))
    assert is_quantized(packed.module)
    assert stored_bytes(packed.module) < 0.35 * sum(t.nbytes for t in weights("flux-dev").values())
    assert not is_quantized(plain.module)


def test_packing_while_loading_makes_no_dense_copy(tmp_path, monkeypatch):
    """A bfloat16 file packed for float32: after each layer, those that wait are still the file's own pages."""
    from lora_loom.trainer.families.common import modules

    path = tmp_path / "model.safetensors"
    save_file(weights("sd3", torch.bfloat16), path)
    plain, copies = modules.quantize, []

    def watched(module, *options, **named):
        def cast_bytes(done, total):
            dense = [p for p in module.parameters() if type(p) is torch.nn.Parameter and p.ndim == 2]
            copies.append((done, total, sum(p.nbytes for p in dense if p.dtype != torch.bfloat16)))

        plain(module, *options, **named, progress=cast_bytes)

    monkeypatch.setattr(modules, "quantize", watched)
    loading = Loading(dtype=torch.float32, device=torch.device("cpu"), compute_dtype=torch.float32, quantize="int8")
    _, denoiser = load(path, loading=loading)
    assert [done for done, _, _ in copies] == list(range(1, copies[0][1] + 1))
    assert {size for _, _, size in copies} == {0}
    assert {p.dtype for p in denoiser.module.parameters() if type(p) is torch.nn.Parameter} == {torch.float32}


def test_an_already_quantised_folder(tmp_path):
    """A base that optimum-quanto packed before loads packed, with the same prediction."""
    import shutil

    from optimum.quanto import quantization_map

    from lora_loom.trainer.weights.quantize import quantize

    folder = tmp_path / "packed"
    shutil.copytree(tiny_folder("sd3"), folder)
    family = families.get("sd3")
    before = family.load_denoiser(open_source(str(folder)), "sd3", CPU)
    quantize(before.module, "int8")
    [weights_file] = (folder / "transformer").glob("*.safetensors")
    weights_file.unlink()  # the network may still read from it: a file of its own takes the name
    save_file({k: v.contiguous() for k, v in before.module.state_dict().items()}, weights_file)
    (folder / "transformer" / "quanto_qmap.json").write_text(json.dumps(quantization_map(before.module)))
    packed_source = open_source(str(folder))
    twice = Loading(dtype=None, device=torch.device("cpu"), quantize="int4")
    with pytest.raises(ConfigError, match=r"model\.quantize = 'int4': .* is quantised already; leave it out"):
        family.load_denoiser(packed_source, "sd3", twice)
    after = family.load_denoiser(packed_source, "sd3", CPU)
    assert is_quantized(after.module)
    tiny = family.tiny()
    cond = family.condition(tiny.encoders.text.encode(["cat"]), [], 1.0)
    noisy = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.5])
    expected = before.predict(noisy, sigma, cond)
    assert torch.allclose(expected, after.predict(noisy, sigma, cond), atol=1e-5)
    in_bfloat16 = Loading(dtype=None, device=torch.device("cpu"), compute_dtype=torch.bfloat16)
    half = family.load_denoiser(packed_source, "sd3", in_bfloat16).predict(noisy, sigma, cond)
    assert ((half - expected).norm() / expected.norm()).item() < 0.03, "packed in float32, computing in bfloat16"


@pytest.mark.parametrize(
    ("toy", "converter", "reader", "family_config"),
    [
        ("sd3", "convert_sd3_transformer_checkpoint_to_diffusers", sd3.read_native, None),
    ],
)
def test_keymap_agrees_with_diffusers_own_converter(toy, converter, reader, family_config):
    """An independent implementation of the same renaming, on the same tensors."""
    from diffusers.loaders import single_file_utils

    tensors = weights(toy)
    _, keymap = reader({key: tuple(t.shape) for key, t in tensors.items()})
    mine = to_diffusers(tensors, keymap)
    theirs = getattr(single_file_utils, converter)(dict(tensors))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_flux_keymap_agrees_with_diffusers_own_converter():
    """diffusers' converter knows only the real width, 3072: so on meta tensors of one real block each."""
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    keymap = flux.native_keys(1, 1, 3072, 12288, guidance=True)
    rows: dict[str, int] = {}
    for part in keymap.values():
        rows[part.native] = max(rows.get(part.native, 0), part.rows[1] if part.rows else 6144)
    tensors = {key: torch.arange(float(count)) for key, count in rows.items()}
    mine = to_diffusers(tensors, keymap)
    theirs = convert_flux_transformer_checkpoint_to_diffusers(dict(tensors))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_missing_and_unexpected_keys_are_listed():
    keymap = {"a.weight": Part("x.weight"), "b.weight": Part("y.weight"), "b.bias": Part("y.bias")}
    with pytest.raises(ModelFileError, match=r"1 missing \(y\.weight\); 1 unexpected \(z\)"):
        to_diffusers({"x.weight": torch.ones(1), "z": torch.ones(1)}, keymap)


def test_a_file_that_lost_a_tensor(toy_name, tmp_path):
    tensors = weights(toy_name)
    lost = next(
        key
        for key in sorted(tensors, reverse=True)
        if key.endswith(("qkv.weight", "linear1.weight", "to_k.weight", "wk.weight"))
    )
    del tensors[lost]
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    with pytest.raises(ModelFileError, match="missing"):
        load(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.ckpt", b"x", "is a pickle, which can run code .* convert it to .safetensors"),
        ("model.gguf", b"GGUF", "is a GGUF file"),
        ("model.txt", b"x", r"is not a \.safetensors file or a diffusers folder"),
        ("cut.safetensors", b'\x10\x00\x00\x00\x00\x00\x00\x00{"a"', "is damaged or truncated"),
    ],
)
def test_files_that_are_no_base(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelFileError, match=message):
        open_source(str(tmp_path / name))


def test_a_truncated_base(toy_file):
    toy_file.write_bytes(toy_file.read_bytes()[:-1000])
    with pytest.raises(ModelFileError, match="damaged or truncated"):
        open_source(str(toy_file))


@pytest.mark.parametrize(
    "key",
    ["transformer.x.lora_A.weight", "lora_unet_x.lora_down.weight", "lora_unet_x.hada_w1_a", "lora_unet_x.lokr_w1", "x.dora_scale"],
)  # fmt: skip
def test_a_lora_given_as_base(tmp_path, key):
    save_file({key: torch.ones(2, 2)}, tmp_path / "lora.safetensors")
    with pytest.raises(ModelFileError, match=r"is a LoRA, not a base model; give it as network\.init_from"):
        open_source(str(tmp_path / "lora.safetensors"))


def test_an_unknown_model(tmp_path):
    save_file({"layers.0.weight": torch.ones(2, 2)}, tmp_path / "other.safetensors")
    source = open_source(str(tmp_path / "other.safetensors"))
    with pytest.raises(
        ModelFileError,
        match=r"is not a base model of a known family \(chroma, flux, flux2, krea2, lumina2, qwen_image, qwen_image21, sd, sd3, sdxl, z_image\); its tensors begin with layers",
    ):
        families.detect(source.shapes, source.path)


def test_the_wrong_family_is_named():
    source = open_source(str(tiny_folder("sd3")))
    with pytest.raises(ModelFileError, match="is a sd3 model, not flux: set model.family = 'sd3'"):
        families.choose("flux", "auto", source)
    with pytest.raises(ConfigError, match="did you mean 'sdxl'"):
        families.choose("sdxk", "auto", source)
    with pytest.raises(ConfigError, match=r"model\.variant = 'sd4': did you mean 'sd3'"):
        families.choose("auto", "sd4", source)


def test_incomplete_folders(tmp_path):
    with pytest.raises(ModelFileError, match="does not exist"):
        open_source(str(tmp_path / "nowhere"))
    with pytest.raises(ModelFileError, match="neither a transformer nor a unet folder"):
        open_source(str(tmp_path))
    (tmp_path / "unet").mkdir()
    with pytest.raises(ModelFileError, match=r"has no config\.json"):
        open_source(str(tmp_path))
    (tmp_path / "unet" / "config.json").write_text("{}")
    with pytest.raises(ModelFileError, match=r"has no \.safetensors file"):
        open_source(str(tmp_path))


def test_a_folder_without_encoders(tmp_path):
    import shutil

    shutil.copytree(tiny_folder("sdxl"), tmp_path / "base")
    shutil.rmtree(tmp_path / "base" / "tokenizer_2")
    with pytest.raises(ModelFileError, match=r"lacks tokenizer_2: it needs text_encoder"):
        families.get("sdxl").load_encoders(open_source(str(tmp_path / "base")), "sdxl", CPU)


def test_a_single_file_needs_a_folder_for_its_encoders(toy_file):
    with pytest.raises(ModelFileError, match=r"set model\.encoders to a diffusers folder"):
        open_source(str(toy_file)).encoder_folder()
    assert open_source(str(toy_file), str(tiny_folder("sd3"))).encoder_folder() == tiny_folder("sd3")
    with pytest.raises(ModelFileError, match="is not a folder"):
        open_source(str(toy_file), str(toy_file))


def test_variants_are_read_from_the_file(tmp_path):
    import shutil

    tensors = weights("sdxl")
    save_file(
        {
            **{f"model.diffusion_model.{k}": t for k, t in tensors.items()},
            "v_pred": torch.ones(1),
            "ztsnr": torch.ones(1),
        },
        tmp_path / "v.safetensors",
    )
    family, denoiser = load(tmp_path / "v.safetensors")
    assert denoiser.objective == family.variants["sdxl-v-ztsnr"].objective
    shutil.copytree(tiny_folder("sdxl"), tmp_path / "folder")
    (tmp_path / "folder" / "scheduler").mkdir()
    (tmp_path / "folder" / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "v_prediction"}')
    _, denoiser = load(tmp_path / "folder")
    assert denoiser.objective.name == "v"
    _, denoiser = load(tmp_path / "folder", "sdxl")
    assert denoiser.objective.name == "epsilon", "what is asked for counts before what the scheduler says"
    shutil.copytree(
        tmp_path / "folder" / "scheduler", shutil.copytree(tiny_folder("sd"), tmp_path / "sd") / "scheduler"
    )
    assert families.choose("auto", "auto", open_source(str(tmp_path / "sd")))[1] == "sd1-v"
    assert load(tmp_path / "sd")[1].objective.name == "v"
    assert load_variant("flux-dev", tmp_path) == "dev"
    assert load_variant("flux-schnell", tmp_path) == "schnell"
    assert load_variant("sd2", tmp_path) == "sd2"


def load_variant(name, folder):
    path = folder / f"{name}.safetensors"
    save_file(weights(name), path)
    source = open_source(str(path))
    return families.detect(source.shapes, path)[1]


def test_time_ids_of_a_mirrored_crop():
    """SDXL: [height, width, top, left, target height, target width]; a mirrored image is cropped from its other edge."""
    from lora_loom.trainer.families.sdxl import time_ids

    place = Geometry(original=(1920, 1080), resized=(1216, 684), crop_left=32, crop_top=6, target=(1152, 640))
    assert time_ids(place).tolist() == [1080, 1920, 6, 32, 640, 1152]
    mirrored = Geometry(
        original=(1920, 1080), resized=(1216, 684), crop_left=10, crop_top=6, target=(1152, 640), flip=True
    )
    assert time_ids(mirrored).tolist() == [1080, 1920, 6, 54, 640, 1152]
