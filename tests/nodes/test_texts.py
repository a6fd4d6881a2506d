"""What the text encoder of a run is, without ComfyUI: which CLIPs can be trained, what the network is fed, storages that are followed."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lora_loom.trainer.config.run import NetworkConfig, OptimizerConfig, TextConfig
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.types import Geometry


class SD1ClipModel(nn.Module):
    def __init__(self, clip="clip_l", width=32):
        super().__init__()
        self.clip = clip
        encoder = nn.Module()
        encoder.transformer = SimpleNamespace(get_input_embeddings=lambda: nn.Embedding(4, width))
        setattr(self, clip, encoder)


class SDXLClipModel(nn.Module):
    pass


class SD3ClipModel(nn.Module):
    pass


class Refiner(SD1ClipModel):
    def __init__(self):
        super().__init__("clip_g")


def clip(network, patches=(), schedule=False):
    patcher = SimpleNamespace(patches={key: [(1.0, value, 1.0, None, None)] for key, value in patches}, model=network)
    return SimpleNamespace(cond_stage_model=network, patcher=patcher, layer_idx=None, use_clip_schedule=schedule)


def model(kind, width=32):
    config = SimpleNamespace(unet_config={"context_dim": width})
    return SimpleNamespace(model=type(kind, (SimpleNamespace,), {})(model_config=config))


@pytest.mark.parametrize(
    ("network", "kind", "message"),
    [
        (Refiner(), "SDXL", "of this CLIP .Refiner. are not trained, only those of SD 1, SD 2 and SDXL"),
        (SD3ClipModel(), "BaseModel", "of this CLIP .SD3ClipModel. are not trained"),
        (SD1ClipModel(), "Flux", "the text encoders of Flux models are not trained"),
        (SD1ClipModel(), "SDXL", "is a SD1ClipModel, which does not belong to a SDXL model"),
        (SDXLClipModel(), "BaseModel", "is a SDXLClipModel, which does not belong to a BaseModel model"),
        (SD1ClipModel(width=16), "BaseModel", "makes texts 16 numbers wide, but the model reads 32"),
    ],
)
def test_a_clip_that_does_not_go_with_the_model_is_refused_by_name(host, network, kind, message):
    check = host("encoding.texts").check_texts
    with pytest.raises(ConfigError, match=message):
        check(model(kind), clip(network), TextConfig(learning_rate=1e-4), OptimizerConfig(), NetworkConfig())


def test_rates_patches_and_schedules_that_cannot_be_trained_are_refused(host):
    base = model("BaseModel")

    def check(*given, **network):
        host("encoding.texts").check_texts(*given, NetworkConfig(**network))

    asked, rate = TextConfig(learning_rate=1e-4), OptimizerConfig(learning_rate=1e-3)
    check(base, clip(SD1ClipModel()), asked, rate)
    check(base, clip(SD1ClipModel("clip_h")), asked, rate)
    with pytest.raises(ConfigError, match="text_learning_rate is 0"):
        check(base, clip(SD1ClipModel()), TextConfig(), rate)
    with pytest.raises(ConfigError, match=r"text\.learning_rate_2 = 0.1: SD1ClipModel has one text encoder"):
        check(base, clip(SD1ClipModel()), TextConfig(learning_rate=0.1, learning_rate_2=0.1), rate)
    with pytest.raises(ConfigError, match="prodigy finds one rate for all"):
        check(base, clip(SD1ClipModel()), asked, OptimizerConfig(name="prodigy", learning_rate=1.0))
    lora = SimpleNamespace(name="lora", weights=(torch.ones(1, 1), torch.ones(1, 1), 1.0, None, None, None))
    check(base, clip(SD1ClipModel(), [("clip_l.x.weight", lora)]), asked, rate)
    with pytest.raises(ConfigError, match="clip carries diff .*Loom LoRA Merge into Base.*Link the loader's CLIP"):
        check(base, clip(SD1ClipModel(), [("clip_l.x.weight", ("diff", (torch.ones(1),)))]), asked, rate)
    with pytest.raises(ConfigError, match="a schedule or hooks"):
        check(base, clip(SD1ClipModel(), schedule=True), asked, rate)
    alone = TextConfig(learning_rate=1e-4, alone=True)
    check(base, clip(SD1ClipModel()), alone, rate)
    with pytest.raises(ConfigError, match=r"network\.target_modules = 'attention' would have no effect: text.alone"):
        check(base, clip(SD1ClipModel()), alone, rate, target_modules="attention")


def said(number):
    return {"cross_attn": torch.full((1, 2, 3), number), "pooled_output": torch.full((1, 2), number + 5.0)}


def test_the_network_is_fed_the_text_of_the_moment_and_the_sizes_of_the_image(host, monkeypatch):
    text = host("encoding.trained_text")

    def inputs(model, given, geometry, *_):
        sizes = torch.tensor([[float(geometry.crop_left)]])
        made = {"c_crossattn": given["cross_attn"] * model.scale, "other": 3}
        return {**made, "y": torch.cat([given["pooled_output"], sizes], dim=1)}

    monkeypatch.setattr(text, "network_inputs", inputs)
    base = SimpleNamespace(latent_format=SimpleNamespace(latent_channels=4), scale=1.0)
    placed = text.PlacedTexts(base, (said(1.0), said(2.0)), 8)
    geometry = Geometry(original=(9, 9), resized=(9, 9), crop_left=7, crop_top=0, target=(8, 8))
    blank = placed.add(geometry)
    now = {"cross_attn": torch.zeros(1, 4, 3, requires_grad=True), "pooled_output": torch.ones(1, 2)}
    made = text.put_text(blank, now)
    assert made["c_crossattn"] is now["cross_attn"]
    assert made["y"].tolist() == [[1.0, 1.0, 7.0]]
    assert made["other"] == 3
    base.scale = 2.0
    with pytest.raises(ConfigError, match="does not read the text as CLIP gives it"):
        text.PlacedTexts(base, (said(1.0), said(2.0)), 8).add(geometry)


def test_the_weights_of_a_clip_are_followed_like_those_of_a_model(host):
    reshare = host("backend.sharing.reshare")

    class Patcher:
        def __init__(self, network):
            self.model, self.patches, self.object_patches = network, {}, {}
            self.model_options = {"transformer_options": {}}
            self.parent, self.backup, self.hook_backup = None, {}, {}

    source = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)).requires_grad_(False)

    def network():
        return copy.deepcopy(source)

    first, second = Patcher(network()), Patcher(network())
    second.model[1].weight.data[0] = 9.0
    shadow = host("backend.shadow").build_shadow(first.model, dict(first.model.state_dict()))
    base = reshare.SharedBase(shadow, first, lambda: [second])
    assert base.follow() == "", "another one of the class"
    again = Patcher(network())
    base = reshare.SharedBase(shadow, first, lambda: [again])
    assert "training shares that copy now" in base.follow()
    assert shadow[0].weight.data_ptr() == again.model[0].weight.data_ptr()
