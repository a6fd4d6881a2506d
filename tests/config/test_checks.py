"""Values check themselves: a section made from Python refuses what TOML, `--set` and a node's input refuse, in the same words."""

import pytest

from lora_loom.nodes import NODE_CLASS_MAPPINGS
from lora_loom.trainer.choices import NOT_HERE, OPTIMIZERS
from lora_loom.trainer.config.checks import known_values
from lora_loom.trainer.config.run import (
    DatasetConfig,
    ModelConfig,
    NetworkConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ScheduleConfig,
    SweepConfig,
    TextConfig,
    TrainConfig,
    TrainingConfig,
    ValidationConfig,
)
from lora_loom.trainer.config.toml import load, parse
from lora_loom.trainer.errors import ConfigError

WRONG = [
    (ScheduleConfig, "kind", "wds", "use 'constant', 'linear', 'cosine', 'restarts', 'polynomial', 'warm_restarts', 'inverse_sqrt', 'wsd', 'rex' or 'sine' (did you mean 'wsd'?), or the path of a class"),
    (SweepConfig, "sampler", "lms", "use 'euler', 'heun', 'dpmpp_2m' or 'ddim'"),
    (SweepConfig, "scheduler", "karas", "use 'normal', 'simple', 'karras', 'sgm_uniform' or 'ddim_uniform' (did you mean 'karras'?)"),
    (NetworkConfig, "kind", "lohaa", "use 'lora', 'dora', 'loha', 'lokr', 'glora', 'oft', 'boft', 'diff', 'ia3' or 'full' (did you mean 'loha' or 'lora' or 'glora'?)"),
    (OptimizerConfig, "name", "adamv", known_values("adamv", list(OPTIMIZERS)) + ", or the path of a class"),
    (ObjectiveConfig, "timestep_sampling", "unifrom", "use 'auto', 'uniform', 'logit_normal', 'mode', 'beta' or 'list' (did you mean 'uniform'?)"),
    (ModelConfig, "quantize", "in8", "use 'none', 'int8', 'int4', 'int2', 'float8' or 'nf4' (did you mean 'int8'?)"),
    *((NetworkConfig, "kind", word, NOT_HERE["network.kind"]["tlora"]) for word in ("tlora", "T-LoRA")),
    (NetworkConfig, "kind", "locon", NOT_HERE["network.kind"]["locon"]),
    *((ModelConfig, "attention", word, NOT_HERE["model.attention"]["sage"]) for word in ("sage", "sage_attention", "SageAttention")),
    (TextConfig, "clip_tokens", 100, "use 75, 150 or 225"),
    (TrainingConfig, "steps", "10", "use a valid integer"),
    (TrainingConfig, "steps", True, "use a valid integer"),
    (TrainingConfig, "steps", 1.5, "use a valid integer"),
    (OptimizerConfig, "learning_rate", "1e-4", "use a valid number or 'auto' or 'find'"),
    (OptimizerConfig, "learning_rate", True, "use a valid number or 'auto' or 'find'"),
    (NetworkConfig, "rslora", 1, "use a valid boolean"),
    (NetworkConfig, "target_modules", True, "use a valid string"),
    (ObjectiveConfig, "shift", "atuo", "use a valid number or 'auto' or 'resolution' (did you mean 'auto'?)"),
]  # fmt: skip
MINIMAL = {"name": "n", "model": {"base": "b"}, "dataset": [{"folder": "x"}]}
CASES = pytest.mark.parametrize(("section", "name", "value", "remedy"), WRONG)


def needed(section):
    return {"base": "b"} if section is ModelConfig else {}


@CASES
def test_python_toml_and_set_say_the_same(section, name, value, remedy, tmp_path):
    message = f"{section.table}.{name} = {value!r}: {remedy}"
    with pytest.raises(ConfigError) as python:
        section(**needed(section), **{name: value})
    assert str(python.value) == message
    with pytest.raises(ConfigError) as toml:
        parse({**MINIMAL, section.table: {**needed(section), name: value}}, TrainConfig)
    assert str(toml.value) == message
    path = tmp_path / "run.toml"
    path.write_text('name = "n"\nmodel.base = "b"\ndataset = [{folder = "x"}]\n')
    written = repr(value).lower() if isinstance(value, bool) else repr(value)
    with pytest.raises(ConfigError) as override:
        load(path, [f"{section.table}.{name}={written}"])
    assert str(override.value) == message


@pytest.mark.parametrize(
    ("node", "inputs", "message"),
    [
        ("LoomNetwork", {"alpha": 0.0, "kind": "lohaa", "targets": "default"}, "kind = lohaa in Loom Network: use 'lora'"),
        ("LoomOptimizer", {"name": "adamw", "schedule": "wds", "warmup": 0.0}, "schedule = wds in Loom Optimizer: use 'constant'"),
        ("LoomOptimizer", {"name": "adamw", "schedule": "constant", "warmup": 0.0, "schedule_class": "os.path"}, "schedule_class = 'os.path': a workflow may name classes of torch"),
        ("LoomOptimizer", {"name": "adamw", "schedule": "constant", "warmup": 0.0, "schedule_options": "T_max 5"}, "schedule_options = 'T_max 5': write one option = value"),
        ("LoomObjective", {"timesteps": "normal", "shift": "auto"}, "timestep_sampling = normal in Loom Objective: use 'auto'"),
        ("LoomGuidance", {"label": "", "method": "pag", "cfg": 3.0}, "sweep.guidance.method = 'pag': use 'cfg' or 'apg'"),
    ],
)  # fmt: skip
def test_nodes_say_the_same(node, inputs, message):
    cls = NODE_CLASS_MAPPINGS[node]
    with pytest.raises(ConfigError) as error:
        cls().run(**inputs)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_are_finite(value):
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate = (nan|inf): use a finite number"):
        OptimizerConfig(learning_rate=value)


def test_every_problem_is_named():
    with pytest.raises(ConfigError, match=r"training\.steps = 'x': .*; training\.seed = 'y': "):
        TrainingConfig(steps="x", seed="y")


def test_what_python_writes_naturally_is_taken():
    assert OptimizerConfig(learning_rate=1, options={"betas": [0.9, 0.99]}).options == {"betas": [0.9, 0.99]}
    assert DatasetConfig(folder="x", resolutions=[512, 768]).resolutions == (512, 768)
    assert ValidationConfig(references=["a", ["b", "c"]]).references == ("a", ("b", "c"))
    assert hash(ValidationConfig(references=["a", ["b", "c"]]))
    whole = TrainConfig(name="n", model=ModelConfig(base="b"), dataset=[DatasetConfig(folder="x")])
    assert whole == parse(MINIMAL, TrainConfig)


def test_a_section_of_another_kind_is_refused():
    with pytest.raises(ConfigError, match=r"^model = NetworkConfig\(.*use an instance of ModelConfig$"):
        TrainConfig(name="n", model=NetworkConfig(), dataset=(DatasetConfig(folder="x"),))
