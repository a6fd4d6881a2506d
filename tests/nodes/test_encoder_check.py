"""A cache of another model's VAE or CLIP is refused with the name of the socket."""

from types import SimpleNamespace

import pytest
import torch

from lora_loom.trainer.errors import ConfigError


def model(name, channels=4, **config):
    made = type(name, (), {})()
    made.latent_format = SimpleNamespace(latent_channels=channels)
    made.model_config = SimpleNamespace(unet_config=config)
    return made


SD3 = {"context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096}}}


@pytest.mark.parametrize(("channels", "found"), [(16, 4), (4, 16)])
def test_another_vae_is_named(host, channels, found):
    check = host("backend.encoder_check")
    check.check_latents(model("SD3", channels), torch.zeros(channels, 8, 8))
    with pytest.raises(
        ConfigError, match=rf"vae makes latents with {found} channels, but the model reads {channels}: link"
    ):
        check.check_latents(model("SD3", channels), torch.zeros(found, 8, 8))


@pytest.mark.parametrize(
    ("name", "config", "right", "wrong"),
    [
        ("BaseModel", {"context_dim": 768}, 768, 2048),
        ("SDXL", {"context_dim": 2048}, 2048, 768),
        ("SD3", SD3, 4096, 768),
        ("Flux", {"context_in_dim": 4096}, 4096, 768),
    ],
)
def test_another_clip_is_named(host, name, config, right, wrong):
    check = host("backend.encoder_check")
    check.check_text(model(name, **config), torch.zeros(1, 77, right))
    with pytest.raises(ConfigError, match=rf"clip makes texts {wrong} numbers wide, but the model reads {right}: link"):
        check.check_text(model(name, **config), torch.zeros(1, 77, wrong))


def test_what_is_not_known_is_not_refused(host):
    check = host("backend.encoder_check")
    check.check_text(model("Lumina2", context_dim=7), torch.zeros(1, 77, 768))
    check.check_text(model("SD3"), torch.zeros(1, 77, 768))
    check.check_text(model("SD3", **SD3), None)
