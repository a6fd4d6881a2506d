"""Targets, quantised bases, frozen layers that cast on use, patching, looking into files."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lora_loom.trainer import families
from lora_loom.trainer.config.run import NetworkConfig
from lora_loom.trainer.diffusion.denoiser import Targets
from lora_loom.trainer.errors import ConfigError, ModelFileError
from lora_loom.trainer.lora.adapted import dense_weight
from lora_loom.trainer.lora.adapter import inject
from lora_loom.trainer.lora.host_formula import group_by_module, weight_change
from lora_loom.trainer.lora.patch import match_modules, patched
from lora_loom.trainer.lora.state_dict import to_file
from lora_loom.trainer.lora.targets import resolve_targets
from lora_loom.trainer.lora_tools.inspect import inspect, to_text
from lora_loom.trainer.weights.frozen import FrozenConv2d, FrozenLinear, compute_in
from lora_loom.trainer.weights.quantize import KINDS, is_quantized, quantize, stored_bytes
from tests.conftest import eject
from tests.lora.test_adapter import PATHS, Net, inputs

PRESETS = {"default": Targets("first"), "conv": Targets("conv")}


def test_presets_regexes_and_excludes():
    net = Net()
    assert resolve_targets(net, PRESETS, "default") == ["first"]
    assert resolve_targets(net, PRESETS, "regex:(first|last)$") == ["first", "last"]
    assert resolve_targets(net, PRESETS, "regex:.", exclude="conv|last") == ["first"]


@pytest.mark.parametrize(
    ("wanted", "exclude", "message"),
    [
        ("defualt", "", "did you mean 'default'"),
        ("regex:frst", "", "matches none of the 3 Linear and Conv2d modules; did you mean 'first'"),
        ("regex:(", "", "is not a regular expression"),
        ("default", "first", "leaves none of the 1 target modules"),
        ("default", "[", "is not a regular expression"),
    ],
)
def test_targets_that_match_nothing(wanted, exclude, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(") if "none of" not in message else message):
        resolve_targets(Net(), PRESETS, wanted, exclude)


@pytest.mark.parametrize("kind", KINDS)
def test_quantising_shrinks_and_still_trains(kind):
    net = nn.Sequential(nn.Linear(128, 128), nn.Linear(128, 64))
    before, x = stored_bytes(net), torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
    dense = net(x)
    quantize(net, kind)
    assert is_quantized(net)
    assert stored_bytes(net) < before * {"int8": 0.3, "float8": 0.3, "int4": 0.2, "int2": 0.15}[kind]
    error = (net(x) - dense).norm() / dense.norm()
    assert error < {"int8": 0.02, "float8": 0.08, "int4": 0.25, "int2": 1.5}[kind]
    adapter = inject(net, ["0", "1"], NetworkConfig(rank=2), seed=0)
    net(x).square().mean().backward()
    assert all(p.grad is not None for p in adapter.parameters().values())


def test_gradients_through_a_packed_layer_are_those_of_its_dense_weight():
    net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8))
    quantize(net, "int8")
    twin = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8))
    for mine, theirs in zip(twin, net, strict=True):
        mine.weight.data, mine.bias.data = dense_weight(theirs), theirs.bias.data
    grads = []
    for model in (net, twin):
        x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        model(x).square().sum().backward()
        grads.append(x.grad)
    assert torch.allclose(*grads, rtol=1e-4, atol=1e-5)


def test_packed_modules_stay_packed():
    net = nn.Sequential(nn.Linear(64, 64))
    quantize(net, "int8")
    packed = net[0]
    quantize(net, "int4")
    assert net[0] is packed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_frozen_layers_cast_on_use(dtype):
    """Forward and gradient equal a dense copy of the stored values; the stored weight itself is untouched."""
    net = Net()
    for parameter in net.parameters():
        parameter.data = parameter.data.to(dtype)
    reference = Net()
    for mine, stored in zip(reference.parameters(), net.parameters(), strict=True):
        mine.data = stored.data.float()
    pointers = [module.weight.data_ptr() for module in (net.first, net.conv, net.last)]
    net.requires_grad_(False)
    compute_in(net, torch.float32)
    assert isinstance(net.first, FrozenLinear)
    assert isinstance(net.first, nn.Linear)
    assert isinstance(net.conv, FrozenConv2d)
    assert [module.weight.data_ptr() for module in (net.first, net.conv, net.last)] == pointers
    grads, outputs = [], []
    for model in (net, reference):
        x, image = (tensor.clone().requires_grad_() for tensor in inputs())
        outputs.append(model(x, image))
        outputs[-1].backward()
        grads += [x.grad, image.grad]
    assert torch.allclose(*outputs, rtol=1e-5)
    assert torch.allclose(grads[0], grads[2], rtol=1e-4, atol=1e-6)
    assert torch.allclose(grads[1], grads[3], rtol=1e-4, atol=1e-6)


def test_the_cast_copy_is_not_kept_for_backward():
    layer = FrozenLinear(64, 64, bias=False)
    layer.weight = nn.Parameter(layer.weight.detach().bfloat16(), requires_grad=False)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(torch.randn(2, 64, requires_grad=True))
    assert saved == [], "autograd holds nothing; the layer refers to its stored weight"


class FakeDenoiser:
    family = "toy"

    def __init__(self):
        self.module = Net().requires_grad_(False)

    def file_key(self, path):
        return f"transformer.{path}"


def lora_file(denoiser):
    adapter = inject(denoiser.module, PATHS, NetworkConfig(rank=2), seed=1)
    for parameter in adapter.parameters().values():
        parameter.data += 0.2
    tensors = to_file(adapter, denoiser.file_key, torch.float32)
    eject(adapter)
    return tensors


@pytest.mark.parametrize("packed", [False, True])
def test_patching_applies_and_restores(packed):
    denoiser = FakeDenoiser()
    tensors = lora_file(denoiser)
    if packed:
        quantize(denoiser.module, "int8")
    net = denoiser.module
    base, weights = net(*inputs()).item(), {path: net.get_submodule(path).weight for path in PATHS}
    modules, _ = group_by_module(tensors)
    expected = {
        p: dense_weight(net.get_submodule(p))
        + weight_change(modules[f"transformer.{p}"], dense_weight(net.get_submodule(p)), 0.5)
        for p in PATHS
    }
    with patched(denoiser, tensors, 0.5):
        for path in PATHS:
            assert torch.allclose(net.get_submodule(path).weight, expected[path], atol=1e-6)
        assert net(*inputs()).item() != base
    assert all(net.get_submodule(path).weight is weights[path] for path in PATHS)
    assert net(*inputs()).item() == base


def test_patching_restores_after_an_error():
    denoiser = FakeDenoiser()
    base = denoiser.module(*inputs()).item()
    with pytest.raises(RuntimeError, match="boom"), patched(denoiser, lora_file(FakeDenoiser()), 1.0):
        raise RuntimeError("boom")
    assert denoiser.module(*inputs()).item() == base


def test_norms_and_biases_are_changed_and_restored():
    class Denoiser(FakeDenoiser):
        def __init__(self):
            super().__init__()
            self.module = torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.Linear(4, 4))

    denoiser = Denoiser()
    norm, linear = denoiser.module
    before = [parameter.clone() for parameter in denoiser.module.parameters()]
    tensors = {"transformer.0.w_norm": torch.ones(4), "transformer.0.b_norm": torch.ones(4), "transformer.1.diff_b": torch.ones(4)}  # fmt: skip
    with patched(denoiser, tensors, 0.5):
        assert torch.allclose(norm.weight, before[0] + 0.5)
        assert torch.allclose(norm.bias, before[1] + 0.5)
        assert torch.equal(linear.weight, before[2])
        assert torch.allclose(linear.bias, before[3] + 0.5)
    assert all(map(torch.equal, denoiser.module.parameters(), before))
    wide = {"transformer.1.lora_A.weight": torch.ones(2, 5), "transformer.1.lora_B.weight": torch.ones(4, 2)}
    with (
        pytest.raises(ModelFileError, match=r"transformer\.1 of the LoRA does not fit a weight of \(4, 4\)"),
        patched(denoiser, wide, 1.0),
    ):
        pass


def test_a_lora_of_another_model_is_named():
    tensors = {
        "transformer.frist.lora_A.weight": torch.ones(2, 8),
        "transformer.frist.lora_B.weight": torch.ones(12, 2),
    }
    with pytest.raises(
        ModelFileError, match=r"not in this toy model, first transformer\.frist \(did you mean 'transformer\.first'"
    ):
        match_modules(FakeDenoiser(), tensors)
    with pytest.raises(ModelFileError, match="no LoRA tensors"):
        match_modules(FakeDenoiser(), {})


def test_inspect_tells_what_matters(tmp_path):
    tensors = lora_file(FakeDenoiser())
    tensors["transformer.first.lora_B.weight"][:] = 0
    tensors["transformer.last.lora_A.weight"][0, 0] = float("nan")
    tensors["strange"] = torch.ones(1)
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, {"ss_steps": "100"})
    report = inspect(path)
    assert report.kinds == {"lora": 3}
    assert report.ranks == {2: 3}
    assert report.alphas == {"2": 3}
    assert report.zero == ("transformer.first.lora_B.weight",)
    assert report.broken == ("transformer.last.lora_A.weight",)
    assert report.unknown == ("strange",)
    text = to_text(report, path)
    assert "3" in text
    assert "ss_steps: 100" in text
    assert "NaN or infinite: 1 tensors" in text


def test_inspect_refuses_other_files(tmp_path):
    save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelFileError, match="holds no LoRA tensors"):
        inspect(tmp_path / "model.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"123456789")
    with pytest.raises(ModelFileError, match="damaged"):
        inspect(tmp_path / "bad.safetensors")
    with pytest.raises(ModelFileError, match="cannot read|damaged|No such file"):
        inspect(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"^(\w|\w\w|_)+[.]|^(\w+)+[.:]$", "takes longer than 1 s .*no repetition inside of a repetition"),
        ("a{99999999999}", "is not a regular expression"),
        ("(" * 400, "is not a regular expression"),
        ("(?R)", "is not a regular expression"),
        ("x" * 1_000_000, "has 1000000 characters: use at most 500"),
    ],
)
@pytest.mark.parametrize("field", ["target_modules", "exclude_modules"])
def test_no_pattern_can_freeze_the_process(field, pattern, message):
    """Python's own engine never came back from the first one."""
    net = torch.nn.ModuleDict({f"transformer_blocks_{n}_attn_add_q_proj": torch.nn.Linear(1, 1) for n in range(3)})
    wanted, exclude = (f"regex:{pattern}", "") if field == "target_modules" else ("regex:.", pattern)
    with pytest.raises(ConfigError, match=message) as refused:
        resolve_targets(net, {}, wanted, exclude=exclude)
    assert len(str(refused.value)) < 400


BLOCKS = ("ResnetBlock2D", "Downsample2D", "Upsample2D")
TIMES = ("time_embedding.linear_1", "time_embedding.linear_2")
BY_CLASS = {
    "full": (("Transformer2DModel", *BLOCKS), ("conv_in", "conv_out", *TIMES), True),
    "unet-only": (("Transformer2DModel", *BLOCKS), ("conv_in", "conv_out", *TIMES), True),
    "full-lin": (("Transformer2DModel", "ResnetBlock2D"), TIMES, False),
    "attn-mlp": (("Transformer2DModel",), (), False),
    "unet-transformer-only": (("Transformer2DModel",), (), False),
    "unet-convblock-only": (BLOCKS, ("conv_in", "conv_out"), True),
    "attn-only": (("Attention",), (), False),
    "locon": (("Transformer2DModel", *BLOCKS), (), True),
}
"""{preset: (classes whose layers it trains, layers by name, whether convolutions larger than 1 x 1)}, as LyCORIS 4.1 and sd-scripts say it."""


@pytest.mark.parametrize("word", BY_CLASS)
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_words_of_lycoris_train_the_layers_of_its_classes(family, word):
    denoiser = families.all_families()[family].tiny().denoiser
    classes, names, large = BY_CLASS[word]
    inside = [
        path for path, part in denoiser.module.named_modules() if type(part).__name__.removeprefix("Frozen") in classes
    ]
    expected = {
        path
        for path, part in denoiser.module.named_modules()
        if isinstance(part, nn.Linear | nn.Conv2d)
        and (path in names or any(path.startswith(f"{one}.") for one in inside))
        and (large or not isinstance(part, nn.Conv2d) or part.kernel_size == (1, 1))
    }
    assert set(resolve_targets(denoiser.module, denoiser.target_presets, word)) == expected


@pytest.mark.parametrize(("word", "here"), [("full", "default"), ("attn-mlp", "default"), ("attn-only", "attention")])
def test_words_of_lycoris_train_the_blocks_of_transformers(word, here):
    denoiser = families.all_families()["flux"].tiny().denoiser
    found = resolve_targets(denoiser.module, denoiser.target_presets, word)
    assert found == resolve_targets(denoiser.module, denoiser.target_presets, here)
