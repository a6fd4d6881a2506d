"""Twelve configurations of six trainers become what they mean."""

import json

import pytest

from lora_loom.trainer.config.toml import load, to_dict
from lora_loom.trainer.data.sets.checks import Surroundings
from lora_loom.trainer.importers.read import import_text
from lora_loom.trainer.importers.translation import TITLES
from tests.importers.samples import FACTS


def value(config, name):
    for part in name.split("."):
        config = config[int(part)] if part.isdecimal() else getattr(config, part)
    return config


@pytest.mark.parametrize("sample", FACTS)
def test_a_sample_becomes_what_it_means(sample, tmp_path):
    text, facts = FACTS[sample]
    done = import_text(text, Surroundings(tmp_path), sample)
    got = {name: value(done.config, name) for name in facts}
    assert got == {name: pytest.approx(one) if isinstance(one, float) else one for name, one in facts.items()}


@pytest.mark.parametrize("sample", FACTS)
def test_the_toml_says_what_was_translated_and_train_takes_it(sample, tmp_path):
    done = import_text(FACTS[sample][0], Surroundings(tmp_path), sample)
    path = tmp_path / "run.toml"
    path.write_text(done.toml, encoding="utf-8")
    assert to_dict(load(path)) == to_dict(done.config)


@pytest.mark.parametrize("sample", FACTS)
def test_every_option_is_said_something_about_once(sample, tmp_path):
    done = import_text(FACTS[sample][0], Surroundings(tmp_path), sample)
    names = [one.option for one in done.taken]
    assert len(names) == len(set(names))
    assert sum(done.counts().values()) == len(names)
    assert set(done.counts()) == set(TITLES)
    for one in done.taken:
        assert one.note or one.became == "exact", one.text()


SDXL = "accelerate launch sdxl_train_network.py --pretrained_model_name_or_path x.safetensors --train_data_dir d --network_module networks.lora --unet_lr 1e-4 "
EACH = '{"train":%s,"learning_rate":%s}'
ONE_TRAINER = '{"training_method":"LORA","model_type":"STABLE_DIFFUSION_XL_10_BASE","base_model_name":"m","concepts":[{"path":"c"}],"text_encoder":%s,"text_encoder_2":%s}'
TEXTS = {
    "two rates": (SDXL + "--text_encoder_lr 5e-5 1e-5", (5e-5, 1e-5, False)),
    "one rate": (SDXL + "--text_encoder_lr 5e-5", (5e-5, -1.0, False)),
    "alone": (SDXL + "--text_encoder_lr 5e-5 --network_train_text_encoder_only", (5e-5, -1.0, True)),
    "network alone": (SDXL + "--text_encoder_lr 5e-5 --network_train_unet_only", (0.0, -1.0, False)),
    "the first": (ONE_TRAINER % (EACH % ("true", 1e-5), EACH % ("false", 1e-5)), (1e-5, 0.0, False)),
    "each": (ONE_TRAINER % (EACH % ("true", 1e-5), EACH % ("true", 2e-5)), (1e-5, 2e-5, False)),
}


@pytest.mark.parametrize("case", TEXTS)
def test_rates_of_two_text_encoders_and_text_encoders_alone(case, tmp_path):
    given, expected = TEXTS[case]
    made = import_text(given, Surroundings(tmp_path), case).config
    text = made.text
    assert (text.learning_rate, text.learning_rate_2, text.alone) == expected
    assert not text.alone or made.network.target_modules == "default", "a choice would be refused"


def test_random_colours_and_turns_of_onetrainer(tmp_path):
    """A hue is a share of half a turn there (torchvision's unit), and degrees here."""
    image = {
        "enable_random_rotate": True,
        "random_rotate_max_angle": 12.0,
        "enable_random_hue": True,
        "random_hue_max_strength": 0.1,
        "enable_random_brightness": False,
        "random_brightness_max_strength": 0.4,
        "enable_fixed_contrast": True,
        "random_contrast_max_strength": 0.2,
    }
    text = json.dumps([{"path": "c", "image_variations": 4, "image": image, "text": {}}])
    done = import_text(text, Surroundings(tmp_path), "concepts.json")
    [made] = done.config.dataset
    assert (made.random_rotation, made.random_hue, made.image_variants) == (12.0, pytest.approx(18.0), 4)
    assert (made.random_brightness, made.random_contrast) == (0.0, 0.0)
    became = {one.option: one.became for one in done.taken}
    assert became["image.random_contrast_max_strength"] == "none"
    assert became["image.random_brightness_max_strength"] == "needless"


def test_noise_and_loss_of_sd_scripts(tmp_path):
    more = "--zero_terminal_snr --multires_noise_iterations 6 --multires_noise_discount 0.2 --ip_noise_gamma 0.1 --loss_type huber --v_parameterization"
    objective = import_text(SDXL + more, Surroundings(tmp_path), "run.sh").config.objective
    assert (objective.zero_terminal_snr, objective.ip_noise_gamma) == (True, 0.1)
    assert (objective.multires_noise_iterations, objective.multires_noise_discount) == (6, 0.2)
    assert (objective.loss, objective.huber_schedule) == ("huber", "snr")
    flux = SDXL.replace("sdxl_train", "flux_train").replace("networks.lora", "networks.lora_flux")
    done = import_text(flux + more, Surroundings(tmp_path), "run.sh")
    assert (done.config.objective.zero_terminal_snr, done.config.objective.multires_noise_iterations) == (False, 0)
    assert done.config.objective.huber_schedule == "constant"


TOOLKIT = '{"job":"extension","config":{"process":[{"type":"sd_trainer","network":%s,"model":{"name_or_path":"x.safetensors","arch":"sdxl"}}]}}'
UNETS = {
    "sd-scripts": (SDXL, ("transformer", 0)),
    "sd-scripts, LoCon": (SDXL + "--network_args conv_dim=8 conv_alpha=4", ("locon", 8)),
    "LyCORIS": (SDXL.replace("networks.lora", "lycoris.kohya"), ("full", 0)),
    "LyCORIS, attention": (SDXL.replace("networks.lora", "lycoris.kohya") + "--network_args preset=attn-only", ("attn-only", 0)),
    "LyCORIS, convolutions": (SDXL.replace("networks.lora", "lycoris.kohya") + "--network_args preset=full conv_dim=8", ("full", 8)),
    "LyCORIS, none": (SDXL.replace("networks.lora", "lycoris.kohya") + "--network_args preset=full-lin conv_dim=8", ("full-lin", 0)),
    "OneTrainer": (ONE_TRAINER % (EACH % ("false", 1e-5), EACH % ("false", 1e-5)), ("all", 0)),
    "ai-toolkit": (TOOLKIT % '{"type":"lora","linear":8,"linear_alpha":8}', ("transformer", 0)),
    "ai-toolkit, LoCon": (TOOLKIT % '{"type":"lora","linear":8,"linear_alpha":8,"conv":4}', ("conv", 4)),
}  # fmt: skip


@pytest.mark.parametrize("case", UNETS)
def test_an_imported_run_of_a_unet_adapts_what_the_other_trainer_adapts(case, tmp_path):
    """Our own default also has convolutions."""
    given, expected = UNETS[case]
    network = import_text(given, Surroundings(tmp_path), f"{case}.json" if given[0] == "{" else "run.sh").config.network
    assert (network.target_modules, network.conv_rank) == expected


def test_simpletuners_scheduled_sampling(tmp_path):
    options = {
        "model_family": "lumina2",
        "scheduled_sampling_max_step_offset": 10,
        "scheduled_sampling_sampler": "unipc",
    }

    def rollout(**more):
        objective = import_text(json.dumps({**options, **more}), Surroundings(tmp_path), "config.json").config.objective
        names = ("max_step_offset", "probability", "ramp_steps", "strategy")
        return tuple(getattr(objective, f"scheduled_sampling_{name}") for name in names)

    assert rollout() == (10, 0.0, 0, "uniform"), "its probability is 0 where it is left out"
    assert rollout(scheduled_sampling_probability=1.0, scheduled_sampling_strategy="biased_late") == (
        10,
        1.0,
        0,
        "biased_late",
    )
    assert rollout(scheduled_sampling_ramp_steps=500) == (10, 0.5, 500, "uniform")


@pytest.mark.parametrize("script", ["flux_train_network.py", "sd3_train_network.py"])
def test_kohyas_mask_of_t5(script, tmp_path):
    command = f"python {script} --pretrained_model_name_or_path a.safetensors --network_module networks.lora"
    for more, masked in (("", False), (" --apply_t5_attn_mask", True)):
        assert import_text(command + more, Surroundings(tmp_path), "train.sh").config.text.t5_attention_mask is masked


def test_simpletuners_mask_of_t5(tmp_path):
    options = {"model_family": "flux", "flux_attention_masked_training": True}
    assert import_text(json.dumps(options), Surroundings(tmp_path), "config.json").config.text.t5_attention_mask


def test_simpletuners_token_routing(tmp_path):
    """The guide's block, and two routes."""
    guide = {"selection_ratio": 0.5, "start_layer_idx": 2, "end_layer_idx": -2}
    for routes, expected in (
        ([guide], "2:-2:0.5"),
        ([guide, {**guide, "selection_ratio": 0.25}], "2:-2:0.5,2:-2:0.25"),
    ):
        text = json.dumps({"model_family": "flux", "tread_config": {"routes": routes}})
        assert import_text(text, Surroundings(tmp_path), "config.json").config.objective.tread_routes == expected


def test_lycoris_trained_norms(tmp_path):
    """They have native names alone, and there are none outside of UNets."""
    arguments = (
        "--pretrained_model_name_or_path a.safetensors --network_module lycoris.kohya --network_args train_norm=True"
    )
    for script, trained in (("train_network.py", True), ("flux_train_network.py", False)):
        config = import_text(f"python {script} {arguments}", Surroundings(tmp_path), "train.sh").config
        assert (config.network.train_norm, config.output.format) == (trained, "native" if trained else "kohya")
