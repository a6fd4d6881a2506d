"""Where do I add an optimizer, a schedule, a sampler …: one entry in trainer/choices.py, and it is everywhere.

Each kind gets an entry while the test runs. It must then be accepted, listed and used, without another edit.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from lora_loom.nodes import NODE_CLASS_MAPPINGS
from lora_loom.nodes.host.sweep.apg import before_cfg_of
from lora_loom.trainer import choices
from lora_loom.trainer.choices import AdapterChoice, Choice, OptimizerChoice, ScheduleChoice
from lora_loom.trainer.cli.main import app
from lora_loom.trainer.config.run import (
    GuidanceConfig,
    NetworkConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ScheduleConfig,
    SweepConfig,
    TrainConfig,
)
from lora_loom.trainer.config.toml import parse
from lora_loom.trainer.config.unused import refuse_unused_options
from lora_loom.trainer.diffusion.guidance import CFG
from lora_loom.trainer.diffusion.loss import element_loss
from lora_loom.trainer.diffusion.objectives import FlowMatching
from lora_loom.trainer.diffusion.sample import SampleSettings, make_guidance, sample
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.lora.adapter import inject
from lora_loom.trainer.lora.metadata import describe
from lora_loom.trainer.lora.state_dict import to_file, to_training
from lora_loom.trainer.training.loss_settings import noise_levels
from lora_loom.trainer.training.optim import make_optimizer
from lora_loom.trainer.training.schedule import lr_factor
from scripts.write_config_docs import page
from tests.test_surface import surface

NEW = "brand_new"
HELP = "a thing that nobody had before"


def backwards(t, config):
    """A schedule that holds, then drops to nothing at half of the steps."""
    return 1.0 if t < config.power / 2 else 0.0


def absolute(prediction, target, delta):
    return (prediction - target).abs()


def plain(network, alpha, pattern):
    import peft

    return peft.LoraConfig(r=network.rank, target_modules=pattern, lora_alpha=alpha)


def ones(objective, steps):
    return [1.0 - i / steps for i in range(steps)]


def one_jump(denoise, noisy, sigmas, progress):
    return denoise(noisy, sigmas[0])


class Always:
    def __init__(self, level):
        self.level = level

    def draw(self, generator):
        return torch.tensor(self.level)


class Sum:
    def __init__(self, scale, eta):
        self.scale, self.eta = scale, eta

    def begin(self):
        return lambda conditional, unconditional, sigma: conditional + self.eta * unconditional


KINDS = {
    "optimizer": ("OPTIMIZERS", OptimizerChoice(help=HELP, make=torch.optim.SGD), OptimizerConfig, "name", ("LoomOptimizer", "name")),
    "schedule": ("LR_SCHEDULES", ScheduleChoice(help=HELP, make=backwards, options=("power",)), ScheduleConfig, "kind", ("LoomOptimizer", "schedule")),
    "timesteps": ("TIMESTEP_SAMPLING", Choice(help=HELP, make=Always, options=("mode_scale",)), ObjectiveConfig, "timestep_sampling",
                  ("LoomObjective", "timesteps")),
    "loss": ("LOSSES", Choice(help=HELP, make=absolute), ObjectiveConfig, "loss", ("LoomObjective", "loss")),
    "adapter": ("ADAPTERS", AdapterChoice(help=HELP, make=plain), NetworkConfig, "kind", ("LoomNetwork", "kind")),
    "sampler": ("SAMPLERS", Choice(help=HELP, make=one_jump), SweepConfig, "sampler", ("LoomSweep", "sampler")),
    "scheduler": ("SCHEDULERS", Choice(help=HELP, make=ones), SweepConfig, "scheduler", ("LoomSweep", "scheduler")),
    "guidance": ("GUIDANCE_METHODS", Choice(help=HELP, make=Sum, options=("scale", "eta")), GuidanceConfig, "method",
                 ("LoomGuidance", "method")),
}  # fmt: skip
EACH = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def added(monkeypatch):
    def add(kind):
        table, entry, section, field, place = KINDS[kind]
        monkeypatch.setitem(getattr(choices, table), NEW, entry)
        return section, field, place

    return add


def choices_of(node, name):
    groups = NODE_CLASS_MAPPINGS[node].INPUT_TYPES()
    return {**groups["required"], **groups.get("optional", {})}[name]


@EACH
def test_a_new_entry_is_accepted_and_an_unknown_name_is_not(added, kind):
    _, _, section, field, _ = KINDS[kind]
    nested = {"guidance": [{field: NEW}]} if kind == "guidance" else {field: NEW}
    toml = {"name": "n", "model": {"base": "b"}, "dataset": [{"folder": "x"}], section.table.split(".")[0]: nested}
    with pytest.raises(ConfigError, match=f"{field} = '{NEW}': use "):
        section(**{field: NEW})
    with pytest.raises(ConfigError, match=f"{field} = '{NEW}': use "):
        parse(toml, TrainConfig)
    added(kind)
    assert getattr(section(**{field: NEW}), field) == NEW
    refuse_unused_options(parse(toml, TrainConfig))
    with pytest.raises(ConfigError, match=f"did you mean '{NEW}'"):
        section(**{field: NEW + "r"})


@EACH
def test_a_new_entry_is_in_help_nodes_docs_and_the_record_of_the_surface(added, kind):
    assert NEW not in CliRunner().invoke(app, ["train", "--help"]).output
    section, field, (node, name) = added(kind)
    assert NEW in CliRunner().invoke(app, ["train", "--help"]).output
    values, options = choices_of(node, name)
    assert NEW in values
    assert HELP in options["tooltip"] or node == "LoomSweep", "the sweep's samplers are ComfyUI's where there is one"
    assert f"- `{NEW}`: {HELP}" in page()
    assert NEW in surface()["config"][section.__name__][field][0]


def leads_to_a_callable(entry):
    try:
        return callable(entry.load())
    except ImportError:
        return bool(getattr(entry, "install", ""))  # a library that is optional, and not here


def test_every_address_leads_somewhere():
    tables = [table for table in vars(choices).values() if isinstance(table, dict) and table]
    entries = [entry for table in tables for entry in table.values() if isinstance(entry, Choice)]
    assert len(entries) > 25
    assert all(leads_to_a_callable(entry) for entry in entries)
    assert all(entry.help for entry in entries)


def test_a_new_optimizer_steps(added):
    added("optimizer")
    weight = nn.Parameter(torch.zeros(1))
    optimizer = make_optimizer([weight], OptimizerConfig(name=NEW, learning_rate=0.5, weight_decay=0.0))
    weight.grad = torch.ones(1)
    optimizer.step()
    assert weight.item() == -0.5


def test_a_new_schedule_is_followed_and_owns_its_options(added):
    added("schedule")
    config = ScheduleConfig(kind=NEW, power=1.0)
    assert [lr_factor(step, 4, config) for step in range(4)] == [1.0, 1.0, 0.0, 0.0]
    tables = {"name": "n", "model": {"base": "b"}, "dataset": [{"folder": "x"}]}
    refuse_unused_options(parse({**tables, "schedule": {"kind": NEW, "power": 2.0}}, TrainConfig))
    with pytest.raises(
        ConfigError, match="cycles = 3 would do nothing: only kind = 'restarts' or 'warm_restarts' or 'sine' reads it"
    ):
        refuse_unused_options(parse({**tables, "schedule": {"kind": NEW, "cycles": 3}}, TrainConfig))


def test_new_timesteps_and_a_new_loss_are_trained(added):
    added("timesteps")
    added("loss")
    levels = noise_levels(ObjectiveConfig(timestep_sampling=NEW, mode_scale=0.25), FlowMatching(), 1.0)
    assert levels.draw(FlowMatching(), 8, 8, torch.Generator()).item() == 0.25
    assert element_loss(torch.tensor([1.0, -2.0]), torch.zeros(2), NEW).tolist() == [1.0, 2.0]


def test_a_new_adapter_trains_and_is_written(added):
    added("adapter")
    network = NetworkConfig(kind=NEW, rank=2)
    root = nn.ModuleDict({"a": nn.Linear(4, 3)})
    adapter = inject(root, ["a"], network, seed=0)
    for parameter in adapter.parameters().values():
        nn.init.ones_(parameter)
    assert root["a"](torch.ones(1, 4)).allclose(root["a"].get_base_layer()(torch.ones(1, 4)) + 8)
    file = to_file(adapter, lambda path: path, torch.float32)
    assert sorted(file) == ["a.alpha", "a.lora_A.weight", "a.lora_B.weight"]
    assert to_training(adapter, lambda path: path, file).keys() == adapter.parameters().keys()
    about = describe(network, title="t", architecture="x", prediction="flow", resolution=64, step=1, trigger="", facts={}, training={})  # fmt: skip
    assert (about["modelspec.architecture"], about["loom.form"]) == (f"x/{NEW}", "as trained")


def test_a_new_sampler_scheduler_and_guidance_make_an_image(added):
    for kind in ("sampler", "scheduler", "guidance"):
        added(kind)
    guidance = make_guidance(GuidanceConfig(method=NEW, scale=3.0, eta=0.5))
    denoiser = SimpleNamespace(objective=FlowMatching(), predict=lambda noisy, sigma, texts: noisy - texts["value"])
    settings = SampleSettings(steps=2, sampler=NEW, scheduler=NEW, guidance=guidance)
    made = sample(
        denoiser, torch.randn(1, 1, 2, 2), {"value": torch.tensor(1.0)}, {"value": torch.tensor(2.0)}, settings
    )
    assert made.allclose(torch.full((1, 1, 2, 2), 1.0 + 0.5 * 2.0), atol=1e-6)


@pytest.mark.parametrize("scale", [3.0, 7.5])
def test_a_new_guidance_method_guides_comfyui_too(added, scale):
    """ComfyUI then computes unconditional + scale * (what the function returns - unconditional)."""
    added("guidance")
    conditional, unconditional = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for guidance in (make_guidance(GuidanceConfig(method=NEW, scale=scale, eta=0.5)), CFG(scale)):
        arguments = {
            "conds_out": [conditional, unconditional],
            "conds": [[], []],
            "cond_scale": scale,
            "sigma": torch.ones(1),
        }
        made, same = before_cfg_of(guidance)(arguments)
        assert same is unconditional
        by_host = unconditional + scale * (made - unconditional)
        assert by_host.allclose(guidance.begin()(conditional, unconditional, 1.0), atol=1e-5)
    assert math.isfinite(by_host.sum().item())
