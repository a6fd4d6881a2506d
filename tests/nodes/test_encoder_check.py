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


@pytest.mark.parametrize(
    ("name", "config", "right", "wrong"),
    [
        ("SDXL", {"adm_in_channels": 2816}, 1280, 768),
        ("SD3", {"adm_in_channels": 2048}, 2048, 768),
        ("Flux", {"vec_in_dim": 768}, 768, 2048),
    ],
)
def test_the_clip_of_a_relative_is_known_by_its_pooled_text(host, name, config, right, wrong):
    check, pack = host("backend.encoder_check"), host("backend.packing").pack
    text = {"cross_attn": torch.zeros(1, 77, 4096)}
    check.check_item(model(name, **config), pack({**text, "pooled_output": torch.zeros(1, right)}))
    with pytest.raises(
        ConfigError, match=rf"clip makes summaries of texts {wrong} numbers wide, but the model reads {right}: link"
    ):
        check.check_item(model(name, **config), pack({**text, "pooled_output": torch.zeros(1, wrong)}))


def test_a_vae_of_videos_is_told_from_one_of_images(host):
    check = host("backend.encoder_check")
    images, unknown = SimpleNamespace(latent_channels=16, latent_dim=2), SimpleNamespace(latent_channels=16)
    network = model("Flux", 16)
    check.check_vae(network, images)
    network.latent_format.latent_dimensions = 3
    check.check_vae(network, unknown)
    with pytest.raises(ConfigError, match="latents of images, but the model reads those of videos: link"):
        check.check_vae(network, images)


def test_the_node_that_has_the_wrong_one_is_named(host):
    check = host("backend.encoder_check")
    sd1, vae = model("BaseModel", 4, context_dim=768), SimpleNamespace(latent_channels=16)
    with pytest.raises(ConfigError, match=r"^LoomValidation: vae makes latents with 16 channels"):
        check.check_vae(sd1, vae, check.VALIDATION)
    with pytest.raises(ConfigError, match=r"^LoomCache: vae makes latents with 16 channels"):
        check.check_vae(sd1, vae)
    with pytest.raises(
        ConfigError, match=r"^LoomValidation: clip makes texts 64 numbers wide, but the model reads 768"
    ):
        check.check_unpacked(sd1, {"cross_attn": torch.zeros(1, 7, 64)}, check.VALIDATION)
    check.check_unpacked(sd1, {"cross_attn": torch.zeros(1, 7, 768)}, check.VALIDATION)
