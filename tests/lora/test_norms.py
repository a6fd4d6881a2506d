"""Trained norms: what they compute, what their files hold, and where they are refused."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lora_loom.trainer import families
from lora_loom.trainer.config.run import NetworkConfig
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.lora.adapter import inject
from lora_loom.trainer.lora.host_formula import bias_change, group_by_module, weight_change
from lora_loom.trainer.lora.kinds.norms import is_norm
from lora_loom.trainer.lora.patch import patched
from lora_loom.trainer.lora.state_dict import max_relative_error, to_file, to_training
from lora_loom.trainer.lora.targets import with_norms
from lora_loom.trainer.runs.headless import run_folder, train
from tests.conftest import FAMILIES, SilentHost, make_config


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.group, self.conv = nn.GroupNorm(2, 4), nn.Conv2d(4, 6, 3, padding=1)
        self.layer, self.out = nn.LayerNorm(6), nn.Linear(6, 3)
        self.plain = nn.LayerNorm(3, elementwise_affine=False)
        self.slim = nn.LayerNorm(3, bias=False)
        for number, parameter in enumerate(self.parameters()):
            source = torch.Generator().manual_seed(number)
            parameter.data = torch.randn(parameter.shape, generator=source)

    def forward(self, x):
        x = self.conv(self.group(x)).flatten(2).transpose(1, 2)
        return self.slim(self.plain(self.out(self.layer(x))))


PATHS = ["conv", "out"]
X = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(9))


def adapted(**options):
    net = Net()
    adapter = inject(net, with_norms(net, PATHS), NetworkConfig(rank=2, **options), seed=0)
    source = torch.Generator().manual_seed(3)
    for parameter in adapter.parameters().values():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=source)
    return net, adapter


def test_norms_with_a_weight_are_found():
    assert with_norms(Net(), PATHS) == ["conv", "group", "layer", "out", "slim"]
    assert with_norms(Net(), PATHS, "gro") == ["conv", "layer", "out", "slim"]


@pytest.mark.parametrize("kind", ["lora", "lokr", "glora"])
def test_the_output_is_that_of_changed_norms_and_every_tensor_trains(kind):
    net, adapter = adapted(kind=kind)
    out, file = net(X), to_file(adapter, str, torch.float32)
    assert max_relative_error(adapter, str, file)[0] < 1e-5
    modules, unknown = group_by_module(file)
    assert not unknown
    assert {path: set(modules[path]) for path in ("group", "layer", "slim")} == {
        "group": {"w_norm", "b_norm"}, "layer": {"w_norm", "b_norm"}, "slim": {"w_norm"},
    }  # fmt: skip
    other = Net()
    with torch.no_grad():
        for path, parts in modules.items():
            part = other.get_submodule(path)
            part.weight += weight_change(parts, part.weight)
            if (change := bias_change(parts)) is not None:
                part.bias += change
    assert torch.allclose(out, other(X), atol=1e-5)
    out.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in adapter.parameters().values())
    with adapter.disabled():
        assert torch.allclose(net(X), Net()(X), atol=1e-6)
    again, other_adapter = adapted(kind=kind)
    other_adapter.load(to_training(other_adapter, str, file))
    assert torch.allclose(again(X), out, atol=1e-5)


def test_strength_and_the_limit_of_norms():
    net, adapter = adapted()
    for path in PATHS:
        adapter.layers[path].lora_B["default"].weight.data.zero_()
    with adapter.at_strength(-1.0):
        minus = net.group(X)
    with adapter.disabled():
        plain = net.group(X)
    assert torch.allclose(minus - plain, plain - net.group(X), atol=1e-5)
    before = adapter.layers["group"].values()["w_norm"].clone()
    assert adapter.scale_norms(1e-6) == 0
    assert torch.equal(adapter.layers["group"].values()["w_norm"], before)


@pytest.mark.parametrize("family", FAMILIES)
def test_unets_have_them_and_others_say_so(family):
    module = families.all_families()[family].tiny().denoiser.module
    if family in ("sd", "sdxl"):
        assert len(with_norms(module, [])) == sum(is_norm(part) for part in module.modules()) > 4
    else:
        with pytest.raises(ConfigError, match="has no LayerNorm or GroupNorm with a weight"):
            with_norms(module, [])


def test_a_run_trains_them_and_its_file_does_what_was_trained(tmp_path):
    def config(**more):
        return make_config(
            "sd", tmp_path, network={"rank": 2, "target_modules": "attention", "train_norm": True, **more}
        )

    host = SilentHost()
    assert train(config(), host).state == "finished"
    tensors = load_file(run_folder(config()).saved_loras()[-1].path)
    norms = [key for key in tensors if key.endswith("w_norm")]
    assert norms
    assert all(tensors[key].any() for key in norms)
    denoiser = families.all_families()["sd"].tiny().denoiser
    norm = next(path for path, part in denoiser.module.named_modules() if is_norm(part))
    before = denoiser.module.get_submodule(norm).weight.clone()
    with patched(denoiser, tensors, 1.0):
        change = denoiser.module.get_submodule(norm).weight - before
        assert torch.allclose(change, tensors[f"{denoiser.file_key(norm)}.w_norm"].float(), atol=1e-6)
    assert torch.equal(denoiser.module.get_submodule(norm).weight, before)
    with pytest.raises(ConfigError, match=r"output\.format = 'kohya': trained norms have no form"):
        train(make_config("sd", tmp_path / "other", network={"train_norm": True}, output={"format": "kohya"}), host)
    with pytest.raises(ConfigError, match="muon trains matrices alone"):
        train(make_config("sd", tmp_path / "muon", network={"train_norm": True}, optimizer={"name": "muon"}), host)
