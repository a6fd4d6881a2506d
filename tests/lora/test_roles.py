"""Roles told from structure: stand-ins of the layouts that today's networks have, a made-up one, and the families' own rows."""

import re
from functools import cache

import pytest
import torch
from torch import nn

from lora_loom.trainer import families
from lora_loom.trainer.config.run import NetworkConfig, OptimizerConfig
from lora_loom.trainer.lora.roles import block_paths, convolutions, presets, roles
from lora_loom.trainer.lora.targets import resolve_targets
from lora_loom.trainer.runs.modules import meanings, of_start

D = 64


def lin(inner, outer):
    return nn.Linear(inner, outer)


def module(**children):
    made = nn.Module()
    for name, child in children.items():
        made.add_module(name, child)
    return made


@cache
def class_of(name):
    return type(name, (nn.Module,), {})


def named(name, **children):
    """A module of a class of this name, as blocks are."""
    made = class_of(name)()
    for key, child in children.items():
        made.add_module(key, child)
    return made


def repeat(count, make, name="Block"):
    return nn.ModuleList([named(name, **make()) for _ in range(count)])


def attention(width=D, inner=D, key=None, context=None):
    return module(
        to_q=lin(width, inner),
        to_k=lin(context or width, key or inner),
        to_v=lin(context or width, key or inner),
        to_out=nn.ModuleList([lin(inner, width), nn.Dropout()]),
    )


def fused():
    return module(qkv=lin(D, 3 * D), norm=nn.LayerNorm(D), proj=lin(D, D))


def plain_mlp():
    return nn.Sequential(lin(D, 4 * D), nn.GELU(), lin(4 * D, D))


def gated(hidden=3 * D):
    return module(w1=lin(D, hidden), w2=lin(hidden, D), w3=lin(D, hidden))


def geglu():
    return module(net=nn.ModuleList([module(proj=lin(D, 8 * D)), nn.Dropout(), lin(4 * D, D)]))


def silu(outer, inner=D):
    return nn.Sequential(nn.SiLU(), lin(inner, outer))


QKVO, MLP, GLU = ("to_k", "to_out.0", "to_q", "to_v"), ("0", "2"), ("w1", "w2", "w3")


def under(prefix, names):
    return {f"{prefix}.{name}" for name in names}


# {layout: (blocks, their attention, mlp, modulation)}, after the classes that have it
LAYOUTS = {
    "Flux double": (
        lambda: {"img_mod": module(lin=lin(D, 6 * D)), "img_attn": fused(), "img_mlp": plain_mlp(), "txt_mod": module(lin=lin(D, 6 * D)), "txt_attn": fused(), "txt_mlp": plain_mlp()},
        {"img_attn.qkv", "img_attn.proj", "txt_attn.qkv", "txt_attn.proj"},
        under("img_mlp", MLP) | under("txt_mlp", MLP),
        {"img_mod.lin", "txt_mod.lin"},
    ),
    "Flux single": (
        lambda: {"linear1": lin(D, 7 * D), "linear2": lin(5 * D, D), "modulation": module(lin=lin(D, 3 * D))},
        {"linear1", "linear2"}, set(), {"modulation.lin"},
    ),
    "FLUX.2 single, no modulation": (
        lambda: {"linear1": lin(D, 9 * D), "linear2": lin(4 * D, D)}, {"linear1", "linear2"}, set(), set(),
    ),
    "Flux single of diffusers": (
        lambda: {"norm": module(linear=lin(D, 3 * D)), "proj_mlp": lin(D, 4 * D), "proj_out": lin(5 * D, D), "attn": module(to_q=lin(D, D), to_k=lin(D, D), to_v=lin(D, D))},
        under("attn", ("to_q", "to_k", "to_v")), {"proj_mlp", "proj_out"}, {"norm.linear"},
    ),
    "Z-Image": (
        lambda: {"attention": module(qkv=lin(D, 3 * D), out=lin(D, D)), "feed_forward": gated(), "adaLN_modulation": nn.Sequential(lin(32, 4 * D))},
        {"attention.qkv", "attention.out"}, under("feed_forward", GLU), {"adaLN_modulation.0"},
    ),
    "Lumina 2, grouped": (
        lambda: {"attention": module(qkv=lin(D, 2 * D), out=lin(D, D)), "feed_forward": gated(), "adaLN_modulation": silu(4 * D)},
        {"attention.qkv", "attention.out"}, under("feed_forward", GLU), {"adaLN_modulation.1"},
    ),
    "Krea 2, grouped and gated": (
        lambda: {"attn": module(wq=lin(D, 96), wk=lin(D, 32), wv=lin(D, 32), gate=lin(D, 96), wo=lin(96, D)), "mlp": module(gate=lin(D, 160), up=lin(D, 160), down=lin(160, D))},
        under("attn", ("wq", "wk", "wv", "gate", "wo")), under("mlp", ("gate", "up", "down")), set(),
    ),
    "Qwen-Image": (
        lambda: {"img_mod": silu(6 * D), "txt_mod": silu(6 * D), "attn": attention(), "img_mlp": geglu(), "txt_mlp": geglu()},
        under("attn", QKVO), under("img_mlp.net", ("0.proj", "2")) | under("txt_mlp.net", ("0.proj", "2")), {"img_mod.1", "txt_mod.1"},
    ),
    "Anima": (
        lambda: {"self_attn": attention(), "cross_attn": attention(context=32), "mlp": module(layer1=lin(D, 4 * D), layer2=lin(4 * D, D)), "adaln_modulation_mlp": nn.Sequential(nn.SiLU(), lin(D, 16), lin(16, 3 * D))},
        under("self_attn", QKVO) | under("cross_attn", QKVO), under("mlp", ("layer1", "layer2")), under("adaln_modulation_mlp", ("1", "2")),
    ),
    "HiDream, experts": (
        lambda: {"adaLN_modulation": silu(12 * D), "attn1": attention(), "ff_i": module(shared_experts=gated(2 * D), experts=nn.ModuleList([gated(), gated()]))},
        under("attn1", QKVO), under("ff_i.shared_experts", GLU) | under("ff_i.experts.0", GLU) | under("ff_i.experts.1", GLU), {"adaLN_modulation.1"},
    ),
    "wide and narrow heads": (
        lambda: {"wide": attention(inner=96), "narrow": attention(inner=32), "grouped": attention(inner=96, key=16), "ff": plain_mlp()},
        under("wide", QKVO) | under("narrow", QKVO) | under("grouped", QKVO), under("ff", MLP), set(),
    ),
    "Wan": (
        lambda: {"self_attn": module(q=lin(D, D), k=lin(D, D), v=lin(D, D), o=lin(D, D)), "cross_attn": module(q=lin(D, D), k=lin(D, D), v=lin(D, D), o=lin(D, D)), "ffn": plain_mlp()},
        under("self_attn", "qkvo") | under("cross_attn", "qkvo"), under("ffn", MLP), set(),
    ),
    "Kandinsky 5": (
        lambda: {"visual_modulation": module(activation=nn.SiLU(), out_layer=lin(32, 9 * D)), "self_attention": module(to_query=lin(D, D), to_key=lin(D, D), to_value=lin(D, D), out_layer=lin(D, D)), "feed_forward": module(in_layer=lin(D, 4 * D), out_layer=lin(4 * D, D))},
        under("self_attention", ("to_query", "to_key", "to_value", "out_layer")), under("feed_forward", ("in_layer", "out_layer")), {"visual_modulation.out_layer"},
    ),
    "Omnigen 2, norms that modulate": (
        lambda: {"attn": attention(key=32), "feed_forward": gated(), "norm1": module(linear=lin(32, 4 * D), norm=nn.LayerNorm(D))},
        under("attn", QKVO), under("feed_forward", GLU), {"norm1.linear"},
    ),
    "AuraFlow": (
        lambda: {"modC": silu(6 * D), "modX": silu(6 * D), "attn": module(**{f"w{n}{x}": lin(D, D) for n in (1, 2) for x in "qkvo"}), "mlpX": module(c_fc1=lin(D, 3 * D), c_fc2=lin(D, 3 * D), c_proj=lin(3 * D, D))},
        under("attn", [f"w{n}{x}" for n in (1, 2) for x in "qkvo"]), under("mlpX", ("c_fc1", "c_fc2", "c_proj")), {"modC.1", "modX.1"},
    ),
    "SD3": (
        lambda: {name: module(adaLN_modulation=silu(6 * D), attn=fused(), mlp=module(fc1=lin(D, 4 * D), fc2=lin(4 * D, D))) for name in ("x_block", "context_block")},
        {"x_block.attn.qkv", "x_block.attn.proj", "context_block.attn.qkv", "context_block.attn.proj"},
        {"x_block.mlp.fc1", "x_block.mlp.fc2", "context_block.mlp.fc1", "context_block.mlp.fc2"},
        {"x_block.adaLN_modulation.1", "context_block.adaLN_modulation.1"},
    ),
    "JoyImage, attention loose in the block": (
        lambda: {"img_attn_qkv": lin(D, 3 * D), "img_attn_proj": lin(D, D), "img_mlp": plain_mlp()},
        {"img_attn_qkv", "img_attn_proj"}, under("img_mlp", MLP), set(),
    ),
    "all loose in the block": (
        lambda: {"alpha": lin(D, 96), "beta": lin(D, 32), "gamma": lin(D, 32), "delta": lin(96, D), "epsilon": lin(D, 4 * D), "zeta": lin(4 * D, D)},
        {"alpha", "beta", "gamma", "delta"}, {"epsilon", "zeta"}, set(),
    ),
    "foreign names": (
        lambda: {"uno": module(a=lin(D, D), b=lin(D, D), c=lin(D, D), d=lin(D, D)), "due": module(a=lin(D, 5 * D), b=lin(5 * D, D)), "tre": silu(6 * D)},
        under("uno", "abcd"), under("due", "ab"), {"tre.1"},
    ),
}  # fmt: skip


def with_surroundings(make, blocks=12):
    """Blocks between what every network has around them, and short stacks: refiners, and an adapter of the text."""
    refiner = repeat(1, lambda: {"attn": attention(32, 32), "mlp": module(up=lin(32, 64), down=lin(64, 32))}, "Refiner")
    adapter = repeat(6, lambda: {"first": lin(16, 16), "second": lin(16, 16)}, "Adapter")
    return module(
        entry=lin(16, D),
        clock=nn.Sequential(lin(32, D), nn.SiLU(), lin(D, D)),
        refiner=refiner,
        text_adapter=module(blocks=adapter, out=lin(16, D)),
        trunk=repeat(blocks, make),
        last=module(adaLN_modulation=silu(2 * D), linear=lin(D, 16)),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_roles_of_the_layouts_that_networks_have(layout):
    make, *expected = LAYOUTS[layout]
    with torch.device("meta"):
        network = with_surroundings(make)
    told = roles(network)
    for role, names in zip(("attention", "mlp", "modulation"), expected, strict=True):
        found = {path for path, one in told.items() if one == role}
        assert found == {f"trunk.{i}.{name}" for i in range(12) for name in names}, role
    assert {path for path, one in told.items() if one == "outside"} == {path for path in told if not path.startswith("trunk")}  # fmt: skip


def test_presets_of_a_network_that_nobody_described_train_the_right_layers():
    """Under names that say nothing, in lists of lists, where matching "attn" would find nothing."""
    with torch.device("meta"):
        pairs = [nn.ModuleList([named("Mixer", q=lin(D, D), kv=lin(D, 2 * D), o=lin(D, D)), named("Wide", a=lin(D, 256), b=lin(256, D))]) for _ in range(3)]  # fmt: skip
        network = module(entry=lin(4, D), strata=nn.ModuleList(pairs), exit=lin(D, 4))
    first = [f"strata.{i}.0.{name}" for i in range(3) for name in ("kv", "o", "q")]
    second = [f"strata.{i}.1.{name}" for i in range(3) for name in "ab"]
    found = presets(network)
    assert resolve_targets(network, found, "default") == sorted(first + second)
    assert resolve_targets(network, found, "attention") == first
    assert resolve_targets(network, found, "attention+mlp") == sorted(first + second)
    assert resolve_targets(network, found, "all") == sorted(first + second)


def unet():
    """Stages of mixed content with blocks deep inside, in stacks of different lengths."""

    def block():
        return {"attn1": attention(), "attn2": attention(context=48), "ff": geglu()}

    def stage(depth):
        resnet = named("ResBlock", conv=nn.Conv2d(D, D, 3), emb_layers=silu(D))
        return nn.Sequential(resnet, named("SpatialTransformer", proj_in=lin(D, D), transformer_blocks=repeat(depth, block, "Basic"), proj_out=lin(D, D)))  # fmt: skip

    return module(time_embed=nn.Sequential(lin(16, D), nn.SiLU(), lin(D, D)), input_blocks=nn.ModuleList([stage(1), stage(2)]), middle=stage(10))  # fmt: skip


def test_a_unets_blocks_are_found_in_all_of_its_stages():
    with torch.device("meta"):
        network = unet()
    assert len(block_paths(network)) == 13
    attention_only = resolve_targets(network, presets(network), "attention")
    assert len(attention_only) == 13 * 8
    assert all(".attn" in path for path in attention_only)
    assert not [path for path, role in roles(network).items() if role != "outside" and "transformer_blocks" not in path]


def test_a_unets_default_also_holds_the_convolutions_of_its_resnets():
    """The first and the last one, what makes patches, and those with groups stay out; `all` means Linears, as before."""
    with torch.device("meta"):
        network = named("Unet", **dict(unet().named_children()))
        network.first, network.out = nn.Sequential(nn.Conv2d(4, D, 3)), nn.Conv2d(D, 4, 3)
        patches = with_surroundings(LAYOUTS[next(iter(LAYOUTS))][0])
        patches.embed = named("Patches", proj=nn.Conv2d(4, D, 2, stride=2))
        depthwise = module(one=named("Deep", conv=nn.Conv2d(D, D, 3, groups=D)), two=named("Deep", conv=nn.Conv2d(D, D, 3, groups=D)))  # fmt: skip
        narrow = module(one=named("Scale", conv=nn.Conv2d(D, D, 1)), two=named("Scale", conv=nn.Conv2d(D, D, 1)))
    inside = {path for path, part in network.named_modules() if isinstance(part, nn.Conv2d) and "." in path} - {
        "first.0"
    }
    assert len(inside) == 3
    assert convolutions(network) == inside
    found = presets(network)
    every = set(resolve_targets(network, found, "all"))
    assert (
        set(resolve_targets(network, found, "default"))
        == set(resolve_targets(network, found, "conv"))
        == every | inside
    )
    assert not every & inside
    for other in (patches, depthwise, narrow):
        assert not convolutions(other)
    assert "conv" not in presets(patches)


def test_a_network_without_a_stack_counts_as_one_block():
    told = roles(module(one=attention(), two=plain_mlp()))
    assert {path for path, role in told.items() if role == "attention"} == under("one", QKVO)
    assert {path for path, role in told.items() if role == "mlp"} == under("two", MLP)


TEXT_OF_THE_LAST_BLOCK = r"blocks\.1\.(attn\.(add_q_proj|to_add_out)$|txt_mlp)"
EXCEPTIONS = {
    ("qwen_image", "attention"): TEXT_OF_THE_LAST_BLOCK,
    ("qwen_image", "attention+mlp"): TEXT_OF_THE_LAST_BLOCK,
    ("qwen_image", "all"): TEXT_OF_THE_LAST_BLOCK,
    ("sd3", "attention"): r"blocks\.1\.attn\.add_q_proj$",
    ("sd3", "attention+mlp"): r"blocks\.1\.attn\.add_q_proj$",
    ("sd3", "all"): r"blocks\.1\.attn\.add_q_proj$|norm1_context\.linear$",
}
"""Where the row of a family and the rule differ in the blocks: the last block's projections that nothing reads, and rows that lie
in another order in the original file. A family's `all` also holds what stands outside of the blocks, and convolutions."""


@pytest.mark.parametrize("family", families.all_families())
@pytest.mark.parametrize("preset", ["attention", "attention+mlp", "all"])
def test_a_familys_row_is_the_rule_and_its_exceptions(family, preset):
    denoiser = families.get(family).tiny().denoiser
    told = roles(denoiser.module)
    by_row = set(resolve_targets(denoiser.module, denoiser.target_presets, preset))
    by_row = {path for path in by_row if preset != "all" or told.get(path, "outside") != "outside"}
    by_rule = set(resolve_targets(denoiser.module, presets(denoiser.module), preset))
    pattern = EXCEPTIONS.get((family, preset), "(?!)")
    apart = by_row ^ by_rule
    assert not [path for path in apart if not re.search(pattern, path)]
    assert bool(apart) == (pattern != "(?!)")


def test_a_start_lora_of_an_earlier_version_keeps_its_layers_that_nothing_reads():
    network = families.get("sd3").tiny().denoiser
    found = resolve_targets(network.module, network.target_presets, "attention")
    idle = "transformer_blocks.1.attn.add_q_proj"
    assert idle not in found
    start = {f"{network.file_key(path)}.lora_{side}.weight": torch.ones(1, 1) for path in [*found, idle] for side in "AB"}  # fmt: skip
    assert of_start([found], start, network.file_key, network.module) == sorted([*found, idle])
    del start[f"{network.file_key(idle)}.lora_A.weight"], start[f"{network.file_key(idle)}.lora_B.weight"]
    assert of_start([["x_embedder"], found], start, network.file_key, network.module) == found


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_start_lora_of_before_a_unets_convolutions_trained_goes_on_as_it_is(family):
    network = families.get(family).tiny().denoiser
    given = network.module, network.target_presets
    before = resolve_targets(*given, "transformer")
    start = {f"{network.file_key(path)}.lora_{side}.weight": torch.ones(1, 1) for path in before for side in "AB"}
    found = meanings(*given, NetworkConfig(init_from="before.safetensors"), OptimizerConfig())
    assert of_start(found, start, network.file_key, network.module) == before
    [now] = meanings(*given, NetworkConfig(), OptimizerConfig())
    more = set(now) - set(before)
    assert set(before) < set(now)
    assert {path.split(".")[-1] for path in more} == {"conv1", "conv2", "conv_shortcut", "conv"}


@pytest.mark.parametrize("family", ["sd", "sdxl", "flux"])
def test_the_default_of_an_optimizer_for_matrices_holds_no_convolutions(family):
    network = families.get(family).tiny().denoiser
    given = network.module, network.target_presets
    [found] = meanings(*given, NetworkConfig(), OptimizerConfig(name="muon"))
    [every] = meanings(*given, NetworkConfig(), OptimizerConfig())
    assert found == [path for path in every if isinstance(network.module.get_submodule(path), nn.Linear)]
    assert (found == every) == (family == "flux")
    [named] = meanings(*given, NetworkConfig(target_modules="all"), OptimizerConfig(name="muon"))
    assert named == resolve_targets(*given, "all"), "what somebody names is not changed"
