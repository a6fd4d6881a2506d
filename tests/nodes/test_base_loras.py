"""Patches of a MODEL told apart, and read as base LoRAs, without ComfyUI: adapters here are stand-ins with its names and orders."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lora_loom.trainer.errors import ConfigError, ModelFileError
from lora_loom.trainer.lora.base_lora import lay_base_loras
from lora_loom.trainer.lora.host_formula import weight_change

KEY = "diffusion_model.a.weight"


def adapter(kind, *weights):
    return SimpleNamespace(name=kind, weights=weights)


def lora(rows=6, columns=4, alpha=2.0, mid=None, dora=None, seed=0, rank=2):
    source = torch.Generator().manual_seed(seed)
    up, down = torch.randn(rows, rank, generator=source), torch.randn(rank, columns, generator=source)
    return adapter("lora", up, down, alpha, mid, dora, None)


class Patcher:
    def __init__(self, **patches):
        network = nn.Module()
        network.a, network.norm = nn.Linear(4, 6), nn.LayerNorm(4)
        network.requires_grad_(False)
        self.model = SimpleNamespace(diffusion_model=network)
        self.patches = {f"diffusion_model.{key.replace('__', '.')}": chain for key, chain in patches.items()}
        self.model_options, self.patches_uuid = {"transformer_options": {}}, "first"

    def clone(self):
        made = Patcher()
        made.model, made.patches = self.model, {key: list(chain) for key, chain in self.patches.items()}
        return made


def entry(value, strength=1.0, kept=1.0, rows=None, function=None):
    return strength, value, kept, rows, function


REFUSED = {
    "DoRA": entry(lora(dora=torch.ones(6))),
    "lora with lora_mid.weight": entry(lora(mid=torch.ones(2, 2, 1, 1))),
    "glora": entry(adapter("glora", torch.ones(1))),
    "diff": entry(("diff", (torch.ones(6, 4),))),
    "set": entry(("set", (torch.ones(6, 4),))),
    "merged weights": entry((torch.ones(6, 4),)),
    "lora of reordered rows": entry(lora(), function=lambda weight: weight),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_kind_that_cannot_be_computed_next_to_the_weights_is_refused_by_name(host, kind):
    patcher = Patcher(a__weight=[REFUSED[kind]])
    with pytest.raises(ModelFileError, match=rf"carries {kind} \({KEY}\).*Connect the loader's MODEL directly"):
        host("backend.denoiser").refuse_patches(patcher)


def test_merged_models_and_biases_are_refused_too(host):
    refuse = host("backend.denoiser").refuse_patches
    with pytest.raises(ModelFileError, match="merged weights"):
        refuse(Patcher(a__weight=[entry(lora(), kept=0.5)]))
    with pytest.raises(ModelFileError, match="something else than a weight"):
        refuse(Patcher(a__bias=[entry(lora())]))
    refuse(Patcher(a__weight=[entry(lora())]))
    assert not host("backend.denoiser").is_plain(Patcher(a__weight=[entry(lora())])), "but a run does not share it"


def test_loras_of_a_model_are_a_base_lora_of_the_same_change(host):
    loha = adapter("loha", *(torch.full(s, 0.5) for s in ((6, 2), (2, 4))), 1.0, *(torch.full(s, 0.3) for s in ((6, 2), (2, 4))), None, None, None)  # fmt: skip
    some = lora(rows=3, seed=1)
    patcher = Patcher(a__weight=[entry(lora(), 0.5), entry(loha, 2.0), entry(some, 0.8, rows=(0, 2, 3))])
    [below] = host("backend.base_loras").read_base_loras(patcher, (), "x.safetensors at 0.5")
    assert (below.identity.file, below.identity.use) == ("x.safetensors at 0.5", "always")
    layer = patcher.model.diffusion_model.a
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    expected = layer.weight.clone()
    for strength, value, _, rows, _ in patcher.patches[KEY]:
        names = host("backend.patches").NAMES[value.name]
        parts = {n: torch.as_tensor(v) for n, v in zip(names, value.weights, strict=True) if v is not None}
        part = expected[slice(rows[1], rows[1] + rows[2]) if rows else slice(None)]
        part += weight_change(parts, torch.zeros_like(part), strength)
    lay_base_loras(patcher.model.diffusion_model, [below])
    assert torch.allclose(layer(x), x @ expected.t() + layer.bias, atol=1e-5)


def test_what_a_loader_node_made_in_inference_mode_has_a_gradient_above_it(host):
    with torch.inference_mode():
        patcher = Patcher(a__weight=[entry(lora(), 0.5), entry(lora(rows=3, seed=1), rows=(0, 2, 3))])
        [below] = host("backend.base_loras").read_base_loras(patcher, ())
        layer = patcher.model.diffusion_model.a
    weight = layer.weight.clone()
    layer.weight, layer.bias = nn.Parameter(weight, requires_grad=False), None
    with torch.inference_mode():
        lay_base_loras(patcher.model.diffusion_model, [below])
    x = torch.ones(3, 4, requires_grad=True)
    layer(x).sum().backward()
    whole = weight + sum(change.dense() for change in below.changes["a"])
    assert torch.allclose(x.grad, whole.sum(0).expand(3, 4), atol=1e-5)


def test_the_digest_is_of_tensors_and_strengths(host):
    digest = host("backend.patches").patches_digest
    assert digest(Patcher()) == ""
    mine = digest(Patcher(a__weight=[entry(lora())]))
    assert mine == digest(Patcher(a__weight=[entry(lora())]))
    assert mine != digest(Patcher(a__weight=[entry(lora(), 0.5)]))
    assert mine != digest(Patcher(a__weight=[entry(lora(seed=1))]))
    assert mine != digest(Patcher(a__weight=[entry(lora(alpha=1.0))]))


def test_the_plain_model_is_loaded_not_the_patched_one(host):
    patcher = Patcher(a__weight=[entry(lora())])
    plain = host("backend.patches").without_patches(patcher)
    assert plain.patches == {}
    assert plain.model is patcher.model
    assert plain.patches_uuid != patcher.patches_uuid
    assert patcher.patches, "the MODEL that was given keeps its LoRA"
    bare = Patcher()
    assert host("backend.patches").without_patches(bare) is bare


def test_one_of_another_model_is_refused_by_name(host):
    read = host("backend.base_loras").read_base_loras
    with pytest.raises(ModelFileError, match=r"a has the shape \(6, 5\), this model's layer \(6, 4\)"):
        read(Patcher(a__weight=[entry(lora(columns=5))]), ())
    with pytest.raises(ModelFileError, match="norm changes a LayerNorm"):
        read(Patcher(norm__weight=[entry(lora(rows=4, columns=1))]), ())


def test_of_two_that_claim_a_layer_the_one_with_another_shape_is_refused(host):
    read = host("backend.base_loras").read_base_loras
    with pytest.raises(ModelFileError, match=r"a has the shape \(6, 5\), this model's layer \(6, 4\)"):
        read(Patcher(a__weight=[entry(lora()), entry(lora(columns=5))]), ())
    read(Patcher(a__weight=[entry(lora()), entry(lora(seed=1))]), ())


def test_two_of_different_ranks_on_a_layer_add_up(host):
    first, second = lora(), lora(seed=1, rank=3, alpha=1.5)
    patcher = Patcher(a__weight=[entry(first, 0.5), entry(second, 2.0)])
    [below] = host("backend.base_loras").read_base_loras(patcher, ())
    layer = patcher.model.diffusion_model.a
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    made = [up @ down * alpha / down.shape[0] for up, down, alpha, *_ in (first.weights, second.weights)]
    expected = layer(x) + x @ (0.5 * made[0] + 2.0 * made[1]).t()
    lay_base_loras(patcher.model.diffusion_model, [below])
    assert torch.allclose(layer(x), expected, atol=1e-5)


def test_names_of_the_loaders_before_the_node(host):
    graph = {
        "m": {"class_type": "UNETLoader", "inputs": {"unet_name": "x"}},
        "a": {"class_type": "LoraLoaderModelOnly", "inputs": {"model": ["m", 0], "lora_name": "s/a.safetensors", "strength_model": 0.8}},
        "s": {"class_type": "ModelSamplingSD3", "inputs": {"model": ["a", 0], "shift": 3.0}},
        "b": {"class_type": "LoraLoader", "inputs": {"model": ["s", 0], "lora_name": "b.safetensors", "strength_model": ["n", 0]}},
        "t": {"class_type": "LoomTrain", "inputs": {"model": ["b", 0]}},
    }  # fmt: skip
    names = host("backend.base_loras").loader_names
    assert names(graph, "t") == "a.safetensors at 0.8, b.safetensors"
    both = {
        **graph,
        "b": {
            "class_type": "LoraLoader",
            "inputs": {"clip": ["m", 1], "lora_name": "b.safetensors", "strength_clip": 0.5},
        },
    }
    both["t"] = {"class_type": "LoomTrain", "inputs": {"model": ["a", 0], "clip": ["b", 1]}}
    assert (names(both, "t"), names(both, "t", "clip")) == ("a.safetensors at 0.8", "b.safetensors at 0.5")
    assert names(None, "t") == ""
    assert names({"t": {"class_type": "LoomTrain", "inputs": {"model": ["t", 0]}}}, "t") == ""


def test_what_a_run_was_trained_on_is_read_from_its_record(host):
    recorded = host("backend.base_loras").recorded_below
    assert recorded({}) == ((), "", "")
    file = {"file": "/x/a.safetensors", "strength": 0.5, "use": "always"}
    record = {
        "config": {"model": {"base_lora": [file]}},
        "base_loras": [{"digest": "of the MODEL"}, {"digest": "of the file"}],
    }
    [one], patches, on_clip = recorded(record)
    assert (one.file, one.strength, patches, on_clip) == ("/x/a.safetensors", 0.5, "of the MODEL", "")
    assert recorded({**record, "base_loras": record["base_loras"][1:]})[1] == ""
    clip = {"digest": "of the CLIP", "on_clip": True}
    assert recorded({**record, "base_loras": [*record["base_loras"], clip]})[1:] == ("of the MODEL", "of the CLIP")
    assert recorded({**record, "base_loras": [record["base_loras"][1], clip]})[1:] == ("", "of the CLIP")


def test_a_sweep_wants_the_clip_of_the_run(host):
    check, digest = host("backend.base_loras").check_clip_loras, host("backend.patches").patches_digest
    had, plain = (SimpleNamespace(patcher=one) for one in (Patcher(a__weight=[entry(lora())]), Patcher()))
    check(plain, "")
    check(had, "")
    check(had, digest(had.patcher))
    with pytest.raises(ConfigError, match="the CLIP that clip of its LoomTrain was given"):
        check(plain, digest(had.patcher))


def test_loras_of_a_clip_are_a_base_lora_that_is_on_the_clip(host):
    network = nn.Module()
    network.clip_l = nn.Module()
    network.clip_l.q_proj = nn.Linear(4, 6)
    patcher = SimpleNamespace(patches={"clip_l.q_proj.weight": [entry(lora(), 0.5)]})
    read = host("backend.base_loras").read_clip_loras
    assert read(None) == read(SimpleNamespace(patcher=SimpleNamespace(patches={}))) == ()
    [below] = read(SimpleNamespace(patcher=patcher, cond_stage_model=network), "a.safetensors at 0.5")
    assert list(below.changes) == ["clip_l.q_proj"]
    assert below.identity.record() == {"file": "a.safetensors at 0.5", "digest": below.identity.digest, "strength": 1.0, "use": "always", "on_clip": True}  # fmt: skip
    assert "in the text encoders: load it" in below.identity.text()
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    before = network.clip_l.q_proj(x)
    lay_base_loras(network, [below])
    up, down, alpha, *_ = lora().weights
    assert torch.allclose(network.clip_l.q_proj(x), before + 0.5 * alpha / 2 * x @ (up @ down).t(), atol=1e-5)
