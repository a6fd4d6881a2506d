"""Configuration: plain TOML in, a checked tree out; every error names place, value and remedy."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_loom.trainer.config import run as config_module
from lora_loom.trainer.config.help_texts import texts
from lora_loom.trainer.config.run import DatasetConfig, NetworkConfig, Section, TrainConfig
from lora_loom.trainer.config.toml import (
    changed_settings,
    differences,
    digest,
    fixed_settings,
    load,
    override,
    parse,
    to_dict,
)
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.storage.names import check_name

MINIMAL = {"name": "run", "model": {"base": "base"}, "dataset": [{"folder": "images"}]}
SECTIONS = [
    cls
    for cls in vars(config_module).values()
    if isinstance(cls, type) and issubclass(cls, Section) and cls is not Section
]


def made(**sections):
    return parse({**MINIMAL, **sections}, TrainConfig)


def write(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


TOML = """
name = "cat"
[model]
base = "models/base"
[[dataset]]
folder = "cats"
repeats = 2
[[dataset]]
folder = "dogs"
role = "regularisation"
[network]
rank = 8
[objective]
shift = 3
beta = [1, 2.5]
"""


def test_a_toml_file_becomes_the_tree(tmp_path):
    config = load(write(tmp_path, TOML))
    assert config.name == "cat"
    assert [d.role for d in config.dataset] == ["train", "regularisation"]
    assert (config.network.rank, config.objective.shift, config.objective.beta) == (8, 3.0, (1.0, 2.5))
    assert config.training.save_every == 250


def test_round_trip():
    config = made(
        sweep={"prompts": ["a", "b"], "guidance": [{"method": "apg", "scale": 5}]},
        optimizer={"options": {"betas": [0.9, 0.99]}},
    )
    assert parse(to_dict(config), TrainConfig) == config


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"training": {"stepz": 3}}, "unknown option training.stepz: did you mean 'steps'?"),
        ({"trainig": {}}, "unknown option trainig: did you mean 'training'?"),
        (
            {"dataset": [{"folder": "x", "capton": "y"}]},
            "unknown option dataset.0.capton: did you mean 'caption' or 'captions'",
        ),
        ({"sweep": {"guidance": [{"metod": "apg"}]}}, "unknown option sweep.guidance.0.metod: did you mean 'method'?"),
        ({"training": {"zzz": 3}}, "unknown option training.zzz: known: batch_size, ema_decay"),
        ({"training": {"steps": "many"}}, "training.steps = 'many': use a valid integer"),
        ({"training": {"steps": True}}, "training.steps = True: use a valid integer"),
        ({"training": {"steps": 1.5}}, "training.steps = 1.5: use a valid integer"),
        ({"optimizer": {"learning_rate": "1e-4"}}, "optimizer.learning_rate = '1e-4': use a valid number"),
        (
            {"network": {"kind": "lorra"}},
            "network.kind = 'lorra': use 'lora', 'dora', 'loha', 'lokr', 'glora', 'oft', 'boft', 'diff', 'ia3' or 'full'",
        ),
        ({"model": {}}, "model.base is missing"),
        ({"dataset": []}, "dataset = (): add at least one [[dataset]] table"),
        ({"dataset": [{"folder": "x", "role": "validation"}]}, "give one set role = 'train'"),
        ({"network": {"rank": 0}}, "network.rank = 0: use 1 or more (16 is usual)"),
        ({"network": {"rank": 100_000_000}}, "network.rank = 100000000: use 16384 or less (16 is usual)"),
        ({"data": {"resolution": 1_000_000}}, "data.resolution = 1000000: use at most 16384 pixels"),
        ({"validation": {"timesteps": 10**9}}, "validation.timesteps = 1000000000: use 1000 or less"),
        ({"dataset": [{"folder": "x", "repeats": 10**9}]}, "dataset.repeats = 1000000000: use 100000 or less"),
        ({"network": {"alpha": 0}}, "network.alpha = 0.0: use a number above 0"),
        ({"network": {"kind": "lokr", "dropout": 0.1}}, "network.dropout = 0.1: lokr has no dropout here"),
        ({"optimizer": {"learning_rate": 0}}, "optimizer.learning_rate = 0.0: use a number above 0"),
        ({"optimizer": {"learning_rate": -1e-4}}, "optimizer.learning_rate = -0.0001: use a number above 0"),
        (
            {"data": {"resolution": 32, "bucket_step": 64}},
            "data.resolution = 32: it must be at least data.bucket_step = 64",
        ),
        (
            {"dataset": [{"folder": "x", "captions": "fixed"}]},
            "dataset.caption = '': captions = 'fixed' needs a caption",
        ),
        (
            {"objective": {"min_timestep": 0.6, "max_timestep": 0.5}},
            "objective.min_timestep = 0.6: use 0 <= min_timestep < max_timestep",
        ),
        ({"network": {"kind": "lokr", "lokr_factor": 0}}, "network.lokr_factor = 0: use -1 (the most even one)"),
        ({"network": {"kind": "lokr", "rslora": True}}, "network.rslora = True: lokr has no rslora"),
        ({"optimizer": {"learning_rate": float("nan")}}, "optimizer.learning_rate = nan: use a finite number"),
        ({"optimizer": {"learning_rate": float("inf")}}, "optimizer.learning_rate = inf: use a finite number"),
        ({"objective": {"logit_mean": float("nan")}}, "objective.logit_mean = nan: use a finite number"),
        (
            {"optimizer": {"options": {"lr": 1.0}}},
            "optimizer.options = {'lr': 1.0}: set optimizer.learning_rate instead",
        ),
        ({"optimizer": {"options": {"weight_decay": 1.0}}}, "set optimizer.weight_decay instead"),
        ({"optimizer": {"max_grad_norm": -1}}, "optimizer.max_grad_norm = -1.0: use 0 (off) or more"),
        ({"optimizer": {"weight_decay": -1}}, "optimizer.weight_decay = -1.0: use 0 or more"),
        ({"memory": {"vae_batch_size": 0}}, "memory.vae_batch_size = 0: use 1 or more"),
        ({"training": {"steps": -1}}, "training.steps = -1: use 0 (by the number of images) or more"),
        ({"training": {"batch_size": 0}}, "training.batch_size = 0: use 1 or more"),
        ({"training": {"gradient_accumulation_steps": 0}}, "training.gradient_accumulation_steps = 0: use 1 or more"),
        ({"training": {"keep_checkpoints": -1}}, "training.keep_checkpoints = -1: use 0 (keep all) or more"),
        ({"validation": {"timesteps": 0}}, "validation.timesteps = 0: use 1 or more"),
        ({"data": {"min_side": 512, "max_side": 256}}, "data.min_side = 512: use 1 to 256"),
        ({"data": {"validation_split": 1.0}}, "data.validation_split = 1.0: use 0 up to below 1"),
        ({"objective": {"shift": 0}}, "objective.shift = 0.0: use a number above 0, auto or resolution"),
        ({"objective": {"shift": "atuo"}}, "objective.shift = 'atuo'"),
        ({"objective": {"logit_std": 0}}, "objective.logit_std = 0.0: use a number above 0"),
        ({"objective": {"beta": [0, 1]}}, "objective.beta = (0.0, 1.0): use two numbers above 0"),
        ({"objective": {"noise_offset": -0.1}}, "objective.noise_offset = -0.1: use 0 (off) or more"),
        ({"dataset": [{"folder": "x", "repeats": 0}]}, "dataset.repeats = 0: use 1 or more"),
        ({"dataset": [{"folder": "x", "weight": 0}]}, "dataset.weight = 0.0: use a number above 0"),
        ({"dataset": [{"folder": "x", "caption_dropout": 1.0}]}, "dataset.caption_dropout = 1.0: use 0 up to below 1"),
        ({"dataset": [{"folder": "x", "tag_dropout": 1.0}]}, "dataset.tag_dropout = 1.0: use 0 up to below 1"),
        ({"dataset": [{"folder": "x", "keep_tokens": -1}]}, "dataset.keep_tokens = -1: use 0 or more"),
        ({"dataset": [{"folder": "x", "tag_separator": ""}]}, "dataset.tag_separator = ''"),
        ({"dataset": [{"folder": "x", "caption_variants": 1}]}, "dataset.caption_variants = 1: use 0"),
        ({"dataset": [{"folder": "x", "resolutions": [8]}]}, "dataset.resolutions = (8,): use at least 16"),
        (
            {"dataset": [{"folder": "x", "megapixels": [1024.0]}]},
            "dataset.megapixels = (1024.0,): use areas in millions",
        ),
        ({"dataset": [{"folder": "x", "aspects": [0.0]}]}, "dataset.aspects = (0.0,): use width / height"),
        ({"dataset": [{"folder": "x", "min_size": 9, "max_size": 8}]}, "dataset.max_size = 8: it must be at least"),
        ({"dataset": [{"folder": "x", "min_side": 9, "max_side": 8}]}, "dataset.max_side = 8: it must be at least"),
        ({"dataset": [{"folder": "x", "downsample": 8}]}, "dataset.downsample = 8: it must be at most max_size = 0"),
        ({"dataset": [{"folder": "x", "crop": "left"}]}, "dataset.0.crop = 'left'"),
        ({"dataset": [{"folder": " "}]}, "dataset.folder = ' ': name the folder"),
        ({"sweep": {"guidance": [{"momentum": 1.0}]}}, "guidance.momentum = 1.0: use a number between -1 and 1"),
        ({"training": {"ema_decay": 1.0}}, "training.ema_decay = 1.0: use 0 (off) up to below 1"),
        ({"name": "../x"}, "name = '../x': use letters"),
        ({"training": {"steps": "x", "seed": "y"}}, "training.seed = 'y'"),
    ],
)
def test_errors_name_place_value_and_remedy(sections, message):
    with pytest.raises(ConfigError) as error:
        made(**sections)
    assert message in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="cannot read .*nothing"):
        load(tmp_path / "nothing.toml")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        load(write(tmp_path, "name = "))


@pytest.mark.parametrize(
    ("override", "section", "field", "value"),
    [
        ("training.steps=7", "training", "steps", 7),
        ("optimizer.learning_rate=3e-4", "optimizer", "learning_rate", 3e-4),
        ("network.target_modules=attention+mlp", "network", "target_modules", "attention+mlp"),
        ('network.target_modules="all"', "network", "target_modules", "all"),
        ("memory.gradient_checkpointing=false", "memory", "gradient_checkpointing", False),
    ],
)
def test_overrides(tmp_path, override, section, field, value):
    assert getattr(getattr(load(write(tmp_path, TOML), [override]), section), field) == value


def test_overrides_reach_into_lists(tmp_path):
    config = load(write(tmp_path, TOML), ["dataset.1.repeats=5", "sweep.prompts=['x', 'y']", "name=other"])
    assert config.dataset[1].repeats == 5
    assert config.sweep.prompts == ("x", "y")
    assert config.name == "other"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.steps", "write section.field=value"),
        ("dataset.9.repeats=1", "'9' is not one of the 2 entries"),
        ("name.x=1", "nothing can be set below"),
    ],
)
def test_overrides_that_make_no_sense(tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        load(write(tmp_path, TOML), [override])


def fixed_of(config, facts):
    return fixed_settings(to_dict(config), facts)


def test_fixed_settings_hold_what_must_not_change():
    base = fixed_of(made(), {"data": "d"})
    for free in ({"training": {"steps": 9}}, {"training": {"save_every": 9}}, {"training": {"keep_checkpoints": 1}}, {"memory": {"vae_batch_size": 4}},
                 {"validation": {"every": 9}}, {"sweep": {"steps": 9}}, {"output": {"dtype": "float16"}}, {"dataset": [{"folder": "elsewhere"}]}):  # fmt: skip
        assert fixed_of(made(**free), {"data": "d"}) == base, free
    for bound in ({"training": {"seed": 9}}, {"training": {"batch_size": 2}}, {"network": {"rank": 9}}, {"schedule": {"kind": "linear"}},
                  {"objective": {"loss": "huber"}}, {"data": {"resolution": 512}}, {"model": {"base": "base", "quantize": "int8"}}):  # fmt: skip
        assert fixed_of(made(**bound), {"data": "d"}) != base, bound
    assert fixed_of(made(), {"data": "e"}) != base


def test_a_run_of_an_earlier_version_may_go_on():
    """Options that came later are at rest in it; asked for otherwise, they are a difference."""
    old = fixed_of(made(), {"data": "d"})
    del old["text"]["prompt_weights"], old["text"]["t5_attention_mask"], old["network"]["rslora"]
    assert changed_settings(old, fixed_of(made(), {"data": "d"})) == []
    asked = fixed_of(made(text={"prompt_weights": True}), {"data": "d"})
    assert changed_settings(old, asked) == ["text.prompt_weights: False -> True"]
    assert changed_settings({**old, "facts": {"data": "e"}}, asked)[0].startswith("facts.data: 'e' -> 'd'")


def test_differences_are_readable():
    old, new = fixed_of(made(), {"data": "1"}), fixed_of(made(network={"rank": 4}), {"data": "2"})
    assert differences(old, new) == ["facts.data: '1' -> '2'", "network.rank: 16 -> 4"]


@given(st.dictionaries(st.text(max_size=3), st.integers(), max_size=5))
def test_digest_ignores_key_order(data):
    assert digest(data) == digest(dict(reversed(data.items())))


@pytest.mark.parametrize("name", ["cat", "my cat", "cat-2", "Katze_ä", "v1.5"])
def test_good_names(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a\\b",
        "C:x",
        "/abs",
        "x\0y",
        "con",
        "NUL.txt",
        "cache",
        "-rf",
        " x",
        "x ",
        "x.",
        "a" * 101,
        "<script>",
    ],
)
def test_names_that_could_leave_or_break(name):
    with pytest.raises(ConfigError, match="use letters, digits"):
        check_name(name)


@pytest.mark.parametrize("cls", [c for c in SECTIONS if c is not TrainConfig], ids=lambda c: c.__name__)
def test_every_field_says_what_it_does(cls):
    """Docs and tooltips are made of these texts. (TrainConfig's own tables speak for themselves.)"""
    told = texts(cls)
    assert [field.name for field in dataclasses.fields(cls) if len(told.get(field.name, "")) < 15] == []


@pytest.mark.parametrize("cls", SECTIONS, ids=lambda c: c.__name__)
def test_sections_are_frozen_and_keyword_only(cls):
    assert cls.__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(cls))
    json.dumps({field.name: str(field.type) for field in dataclasses.fields(cls)})


def test_defaults_alone_are_valid():
    assert DatasetConfig(folder="x").repeats == 1
    assert NetworkConfig().rank == 16


def test_a_field_of_several_kinds_says_all_of_them():
    message = r"dataset\.0\.references = True: use a valid string or a valid array$"
    with pytest.raises(ConfigError, match=message):
        parse({"model": {"base": "x"}, "dataset": [{"folder": "a", "references": True}], "name": "n"}, TrainConfig)


@pytest.mark.parametrize(
    ("text", "section", "field", "meant"),
    [
        ("sweep.seeds=3", "sweep", "seeds", "3"),
        ("sweep.seeds=[0, 1, 2]", "sweep", "seeds", "0,1,2"),
        ("sweep.strengths=0.7", "sweep", "strengths", "0.7"),
        ("sweep.prompts=cat", "sweep", "prompts", ("cat",)),
        ("sweep.prompts=7", "sweep", "prompts", ("7",)),
        ("sweep.prompts=[7, 'cat']", "sweep", "prompts", ("7", "cat")),
        ("validation.prompts=a cat", "validation", "prompts", ("a cat",)),
        ("sweep.references=a.png", "sweep", "references", ("a.png",)),
    ],
)
def test_numbers_and_single_values_are_taken_where_texts_and_lists_are_meant(text, section, field, meant):
    data = {"name": 2024, "model": {"base": "x"}, "dataset": [{"folder": 12, "trigger": 7, "resolutions": 512}]}
    override(data, text)
    config = parse(data, TrainConfig)
    assert getattr(getattr(config, section), field) == meant
    assert (config.name, config.dataset[0].folder, config.dataset[0].trigger) == ("2024", "12", "7")
    assert config.dataset[0].resolutions == (512,)


@pytest.mark.parametrize("wrong", [True, {"a": 1}])
def test_what_is_neither_text_nor_number_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"sweep\.seeds = "):
        parse(
            {"name": "n", "model": {"base": "x"}, "dataset": [{"folder": "x"}], "sweep": {"seeds": wrong}}, TrainConfig
        )
