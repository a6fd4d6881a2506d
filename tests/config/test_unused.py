"""No option is ignored: one that would do nothing beside the others is refused, with the reason."""

import dataclasses

import pytest

from lora_loom.trainer import choices
from lora_loom.trainer.config import run as config_module
from lora_loom.trainer.config.run import Section, TrainConfig
from lora_loom.trainer.config.toml import parse
from lora_loom.trainer.config.unused import RULES, refuse_unused_options
from lora_loom.trainer.errors import ConfigError

IDLE = [
    ({"model": {"base": "b", "dtype": "float16", "quantize": "int8"}}, "model.dtype = 'float16' would do nothing"),
    ({"network": {"lokr_factor": 4}}, "network.lokr_factor = 4 would do nothing: only kind = 'lokr' reads it"),
    ({"schedule": {"kind": "cosine", "cycles": 3}}, "schedule.cycles = 3"),
    ({"schedule": {"kind": "cosine", "power": 2.0}}, "schedule.power = 2.0"),
    ({"schedule": {"kind": "restarts", "cycle_warmup": 0.1}}, "schedule.cycle_warmup = 0.1 would do nothing: only kind = 'warm_restarts' reads"),
    ({"schedule": {"kind": "restarts", "cycle_decay": 0.5}}, "schedule.cycle_decay = 0.5"),
    ({"schedule": {"kind": "restarts", "cycle_growth": 2.0}}, "schedule.cycle_growth = 2.0"),
    ({"schedule": {"kind": "rex", "decay": 0.5}}, "schedule.decay = 0.5 would do nothing: only kind = 'wsd' reads"),
    ({"schedule": {"timescale": 9}}, "schedule.timescale = 9"),
    ({"schedule": {"options": {"a": 1}}}, "schedule.options = {'a': 1} would do nothing: only kind = the path of a class reads"),
    ({"schedule": {"kind": "a.B", "min_lr_ratio": 0.5}}, "schedule.min_lr_ratio = 0.5"),
    ({"schedule": {"min_lr_ratio": 0.1}}, "schedule.min_lr_ratio = 0.1 would do nothing: only kind = 'linear' or 'cosine'"),
    ({"objective": {"timestep_sampling": "uniform", "logit_mean": 0.5}}, "objective.logit_mean = 0.5"),
    ({"objective": {"timestep_sampling": "beta", "logit_std": 0.5}}, "objective.logit_std = 0.5"),
    ({"objective": {"mode_scale": 1.0}}, "objective.mode_scale = 1.0"),
    ({"objective": {"beta": [1.0, 2.0]}}, "objective.beta = (1.0, 2.0)"),
    ({"objective": {"huber_schedule": "snr"}}, "objective.huber_schedule = 'snr' would do nothing: only loss"),
    ({"objective": {"multires_noise_discount": 0.5}}, "objective.multires_noise_discount = 0.5 would do nothing"),
    ({"objective": {"scheduled_sampling_probability": 0.5}}, "objective.scheduled_sampling_probability = 0.5 would do nothing: nothing is"),
    ({"objective": {"scheduled_sampling_ramp_steps": 5}}, "objective.scheduled_sampling_ramp_steps = 5 would do nothing"),
    ({"objective": {"scheduled_sampling_strategy": "biased_late"}}, "objective.scheduled_sampling_strategy = 'biased_late' would"),
    ({"objective": {"soft_min_snr": True}}, "objective.soft_min_snr = True would do nothing"),
    ({"objective": {"huber_delta": 0.2}}, "objective.huber_delta = 0.2 would do nothing: only loss = 'huber' or 'smooth_l1' reads it"),
    ({"memory": {"cache": "online", "vae_batch_size": 4}}, "memory.vae_batch_size = 4 would do nothing: cache = 'online'"),
    ({"data": {"min_side": 64}}, "data.min_side = 64"),
    ({"data": {"max_side": 4096}}, "data.max_side = 4096"),
    ({"data": {"buckets": "off", "upscale": False}}, "data.upscale = False"),
    ({"dataset": [{"folder": "x"}, {"folder": "y", "role": "validation", "repeats": 2}]}, "dataset.repeats = 2"),
    ({"dataset": [{"folder": "x"}, {"folder": "y", "role": "validation", "weight": 2.0}]}, "dataset.weight = 2.0"),
    ({"dataset": [{"folder": "x"}, {"folder": "y", "role": "validation", "flip": True}]}, "dataset.flip = True"),
    ({"dataset": [{"folder": "x"}, {"folder": "y", "role": "validation", "caption_dropout": 0.1}]}, "caption_dropout"),
    ({"dataset": [{"folder": "x"}, {"folder": "y", "role": "validation", "shuffle_tags": True}]}, "dataset.shuffle_tags"),
    ({"dataset": [{"folder": "x"}, {"folder": "y", "role": "validation", "tag_dropout": 0.1}]}, "dataset.tag_dropout"),
    *(
        ({"dataset": [{"folder": "x"}, {"folder": "y", "role": "validation", name: 0.1}]}, f"dataset.{name} = 0.1 would do nothing: validation")
        for name in ("random_brightness", "random_contrast", "random_saturation", "random_hue", "random_rotation")
    ),
    *(
        ({"dataset": [{"folder": "x"}, {"folder": "y", "role": "validation", name: value}]}, f"dataset.{name} = {value} would do nothing: validation")
        for name, value in (("caption_dropout_every_n_epochs", 2), ("token_warmup_step", 9), ("probability", 0.5), ("timestep_range", (0.0, 0.5)), ("start_step", 1), ("end_step", 1),
                            ("start_epoch", 1), ("end_epoch", 1))
    ),
    ({"dataset": [{"folder": "x", "only_listed": True, "recursive": True}]}, "dataset.recursive = True would do nothing: only_listed"),
    ({"dataset": [{"folder": "x", "only_listed": True, "layout": "kohya"}]}, "dataset.layout = 'kohya' would do nothing: only_listed"),
    ({"dataset": [{"folder": "x", "token_warmup_min": 2}]}, "dataset.token_warmup_min = 2 would do nothing: captions do not grow"),
    ({"dataset": [{"folder": "x", "image_variants": 4}]}, "dataset.image_variants = 4 would do nothing: images never change"),
    ({"dataset": [{"folder": "x"}, {"folder": "y", "role": "validation", "teacher": "base"}]}, "dataset.teacher = 'base' would do nothing: validation images"),
    ({"dataset": [{"folder": "x"}, {"folder": "y", "role": "regularisation", "class_prompt": "a dog"}]}, "dataset.class_prompt = 'a dog' would do nothing: regularisation images"),
    ({"dataset": [{"folder": "x", "slider_scale": 3.0}]}, "dataset.slider_scale = 3.0 would do nothing: only slider_positive"),
    ({"dataset": [{"folder": "x"}, {"folder": "y", "role": "validation", "strength": -1.0}]}, "dataset.strength = -1.0 would do nothing: validation"),
    ({"dataset": [{"folder": "x", "slider_positive": "a", "slider_negative": "b", "masks": "alpha"}]}, "dataset.masks = 'alpha' would do nothing: a slider"),
    ({"dataset": [{"folder": "x", "teacher_weight": 0.5}]}, "dataset.teacher_weight = 0.5 would do nothing: only role"),
    ({"dataset": [{"folder": "x", "teacher_share": 0.5}]}, "dataset.teacher_share = 0.5 would do nothing: only role"),
    ({"dataset": [{"folder": "x", "metadata": "t.csv"}]}, "dataset.metadata = 't.csv' would do nothing: only captions"),
    ({"dataset": [{"folder": "x", "captions": "json", "file_field": "f"}]}, "dataset.file_field = 'f'"),
    ({"dataset": [{"folder": "x", "captions": "filename", "caption_field": "f"}]}, "dataset.caption_field = 'f'"),
    ({"dataset": [{"folder": "x", "keep_tokens": 1}]}, "dataset.keep_tokens = 1 would do nothing: no tag is moved"),
    ({"dataset": [{"folder": "x", "keep_separator": "|||"}]}, "dataset.keep_separator"),
    ({"dataset": [{"folder": "x", "tag_separator": "."}]}, "dataset.tag_separator"),
    ({"dataset": [{"folder": "x", "caption_variants": 4}]}, "dataset.caption_variants = 4"),
    ({"dataset": [{"folder": "x", "buckets": "kohya", "aspects": [1.0]}]}, "dataset.aspects"),
    ({"dataset": [{"folder": "x", "size_metric": "area"}]}, "dataset.size_metric"),
    ({"dataset": [{"folder": "x", "buckets": "pixel", "min_side": 64}]}, "dataset.min_side"),
    ({"dataset": [{"folder": "x", "buckets": "pixel", "max_side": 64}]}, "dataset.max_side"),
    *(
        ({"validation": {name: value}}, f"validation.{name} = ")
        for name, value in (("sample_every", 5), ("negative_prompt", "x"), ("references", ["a.png"]), ("seed", 3), ("sample_steps", 4),
                            ("guidance_scale", 2.0), ("model_guidance", 2.0), ("model", "x"), ("width", 64), ("height", 64),
                            ("sizes", "64x64"), ("sampler", "heun"), ("scheduler", "karras"), ("guidance_rescale", 0.5), ("skip_layers", [7]), ("clip_score", "x"), ("same_seed", True))
    ),
    ({"validation": {"prompts": ["a"], "sizes": "64x64", "width": 64}}, "validation.width = 64"),
    ({"output": {"tracker_project": "x"}}, "output.tracker_project = 'x'"),
    ({"output": {"tracker_run": "x"}}, "output.tracker_run = 'x'"),
    ({"output": {"tracker_dir": "x"}}, "output.tracker_dir = 'x'"),
    ({"output": {"hub_checkpoints": True}}, "output.hub_checkpoints = True"),
    ({"output": {"hub_private": False}}, "output.hub_private = False"),
    *(
        ({"validation": {"prompts": ["a"], name: value}}, f"validation.{name} = {value} would do nothing: no layer is skipped")
        for name, value in (("skip_layer_scale", 2.5), ("skip_layer_start", 0.02), ("skip_layer_end", 0.2))
    ),
    ({"sweep": {"guidance": [{"skip_layer_scale": 2.5}]}}, "sweep.guidance.skip_layer_scale = 2.5 would do nothing: no layer"),
    ({"sweep": {"guidance": [{"eta": 0.5}]}}, "sweep.guidance.eta = 0.5"),
    ({"sweep": {"guidance": [{"norm_threshold": 5.0}]}}, "sweep.guidance.norm_threshold = 5.0"),
    ({"sweep": {"guidance": [{"momentum": -0.5}]}}, "sweep.guidance.momentum = -0.5 would do nothing: only method"),
]  # fmt: skip

USED = [
    {"network": {"kind": "lokr", "lokr_factor": 4}},
    {"schedule": {"kind": "restarts", "cycles": 3, "min_lr_ratio": 0.1}},
    {"schedule": {"kind": "polynomial", "power": 2.0}},
    {"objective": {"timestep_sampling": "logit_normal", "logit_mean": 0.5, "logit_std": 0.5}},
    {"objective": {"logit_mean": 0.5}},
    {"objective": {"timestep_sampling": "mode", "mode_scale": 1.0}},
    {"objective": {"timestep_sampling": "beta", "beta": [1.0, 2.0], "loss": "huber", "huber_delta": 0.2}},
    {"memory": {"vae_batch_size": 4}},
    {
        "validation": {
            "prompts": ["a"],
            "sample_every": 5,
            "negative_prompt": "x",
            "seed": 3,
            "width": 64,
            "guidance_scale": 2.0,
            "model_guidance": 2.0,
            "model": "x",
        }
    },
    {"output": {"report_to": "tensorboard", "tracker_dir": "x", "tracker_run": "y"}},
    {"data": {"buckets": "kohya", "min_side": 64, "max_side": 4096, "upscale": False}},
    {"dataset": [{"folder": "x", "repeats": 2, "weight": 2.0, "flip": True, "caption_dropout": 0.1}]},
    {
        "dataset": [
            {"folder": "x", "captions": "metadata", "metadata": "t.csv", "file_field": "f", "caption_field": "c"}
        ]
    },
    {"dataset": [{"folder": "x", "tag_dropout": 0.1, "keep_tokens": 1, "tag_separator": ".", "caption_variants": 4}]},
    {"dataset": [{"folder": "x", "secondary_separator": ";;;", "tag_separator": "."}]},
    {"dataset": [{"folder": "x", "wildcards": True, "caption_variants": 4, "buckets": "kohya", "min_side": 64}]},
    {"dataset": [{"folder": "x"}, {"folder": "y", "role": "regularisation", "teacher": "base"}]},
    {"dataset": [{"folder": "x", "aspects": [1.0], "min_size": 4, "size_metric": "area"}]},
    {
        "dataset": [
            {"folder": "x", "token_warmup_step": 9, "token_warmup_min": 2, "keep_tokens": 1, "tag_separator": "."}
        ]
    },
    {"dataset": [{"folder": "x", "crop": "random", "image_variants": 4}]},
    {"dataset": [{"folder": "x", "random_hue": 5.0, "image_variants": 4}]},
    {"sweep": {"guidance": [{"method": "apg", "eta": 0.5, "norm_threshold": 5.0, "momentum": -0.5}]}},
]


def made(sections):
    return parse({"name": "run", "model": {"base": "b"}, "dataset": [{"folder": "x"}], **sections}, TrainConfig)


@pytest.mark.parametrize(("sections", "message"), IDLE, ids=[message for _, message in IDLE])
def test_idle_options_are_refused(sections, message):
    with pytest.raises(ConfigError) as error:
        refuse_unused_options(made(sections))
    assert message in str(error.value)
    assert "leave it out" in str(error.value)


@pytest.mark.parametrize("sections", USED, ids=str)
def test_options_in_use_are_not(sections):
    refuse_unused_options(made(sections))


def test_every_rule_is_tested_and_names_a_field():
    told = {name for sections, _ in IDLE for section in sections.values() for name in _names(section)}
    for kind, _, names, _, _ in RULES:
        assert set(names) <= {field.name for field in dataclasses.fields(kind)}
        assert set(names) <= told


def _names(section):
    if isinstance(section, dict):
        return [*section, *(name for value in section.values() for name in _names(value))]
    return [name for item in section for name in _names(item)] if isinstance(section, list) else []


def test_every_field_is_read_somewhere():
    """A field that no module but the configuration itself mentions cannot have an effect."""
    import re
    from pathlib import Path

    root = Path(config_module.__file__).parents[1]
    source = "\n".join(
        path.read_text() for path in root.rglob("*.py") if path.parent.name != "config" or path.name == "toml.py"
    )
    tables = [table for table in vars(choices).values() if isinstance(table, dict)]
    read = {
        option
        for table in tables
        for one in table.values()
        if isinstance(one, choices.Choice)
        for option in one.options
    }
    sections = [c for c in vars(config_module).values() if isinstance(c, type) and issubclass(c, Section)]
    unread = [
        f"{cls.__name__}.{field.name}"
        for cls in sections
        if cls is not Section
        for field in dataclasses.fields(cls)
        if field.name not in read and not re.search(rf"\.{field.name}\b", source)
    ]
    assert unread == []
