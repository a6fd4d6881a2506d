"""The plan of a run against what the run then held, counted over all live storages, and what follows from it."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from lora_loom.trainer.base_model import open_base
from lora_loom.trainer.cli.main import app
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.lora.targets import resolve_targets
from lora_loom.trainer.runs.headless import build_cache, plan_memory, prepare, train
from tests.conftest import FAMILIES, SilentHost, make_config, pictures
from tests.memory_plan.holding import alike, compared
from tests.runs.test_streamed_runs import written

DEFAULT = ("sd", "lumina2")
SAMPLES = {"prompts": ["a red thing"], "sample_steps": 1, "width": 64, "height": 64}


def check(tmp_path, family, **changes):
    plan, held = compared(tmp_path, family, **changes)
    assert abs(plan.parts.total / held - 1) <= 0.1, (plan.parts, held)
    return plan


WAYS = {
    "plain": {},
    "checkpointing": {"memory": {"gradient_checkpointing": True}},
    "accumulation": {"training": {"batch_size": 1, "gradient_accumulation_steps": 2}, "memory": {"gradient_checkpointing": True}},
    "streamed": {"memory": {"gradient_checkpointing": True, "base": "stream"}},
    "bfloat16": {"training": {"precision": "bfloat16"}, "model": {"dtype": "bfloat16"}, "network": {"rank": 16}},
}  # fmt: skip


@pytest.mark.parametrize("family", DEFAULT)
def test_a_step_holds_what_was_predicted(tmp_path, family):
    check(tmp_path, family, **WAYS["checkpointing"])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_on_a_base_in_nf4_holds_what_was_predicted(tmp_path, precision):
    pytest.importorskip("bitsandbytes")
    sections = {"training": {"precision": precision}, "memory": {"gradient_checkpointing": True}}
    plain, packed = (
        check(
            tmp_path,
            "lumina2",
            **sections,
            model={"base": make_config("lumina2", tmp_path).model.base, "quantize": kind},
        )
        for kind in ("none", "nf4")
    )
    assert packed.parts.base < 0.5 * plain.parts.base


@pytest.mark.parametrize(
    ("kind", "precision"), [("dora", "float32"), ("dora", "bfloat16"), ("loha", "bfloat16"), ("oft", "bfloat16")]
)
def test_a_step_of_every_kind_of_adapter_holds_what_was_predicted(tmp_path, kind, precision):
    sections = {
        "training": {"precision": precision},
        "memory": {"checkpoint": "every 2", "gradient_checkpointing": True},
    }
    check(tmp_path, "sd3", network={"kind": kind, "rank": 8}, **sections)


@pytest.mark.parametrize(("kind", "base"), [("int8", "resident"), ("fp8", "stream")])
def test_products_in_8_bits_hold_what_was_predicted(tmp_path, kind, base):
    """Their intermediate results are in 32 bits, larger than what they take and give."""
    sections = {"training": {"precision": "bfloat16"}, "memory": {"base": base, "gradient_checkpointing": True}}
    plan, held = compared(
        tmp_path, "sd3", model={"matmul": kind}, data={"resolution": 128, "bucket_step": 32}, **sections
    )
    assert abs(plan.parts.total / held - 1) <= 0.05


def test_what_is_too_large_while_encoding_is_refused_with_what_takes_less_and_not_where_all_is_encoded(tmp_path, card):
    cache = {"output": {"directory": str(tmp_path), "cache": str(tmp_path / "cache")}, "network": {"rank": 1}}
    plan = planned(tmp_path, "sd3", **cache)
    assert plan.caching > plan.parts.total
    card(plan.caching - 1000)
    with pytest.raises(ConfigError, match=r'Encoding images and captions needs .*; it fits with .*text\.quantize = "int8" \(') as refused:  # fmt: skip
        planned(tmp_path, "sd3", **cache)
    assert "Nearest" not in str(refused.value)
    assert planned(tmp_path, "sd3", **cache, text={"quantize": "int8"}).caching < plan.caching
    card(500_000)
    with pytest.raises(ConfigError, match="encode on the CPU before the run, with text.dtype set: `lora-loom cache`"):
        planned(tmp_path, "sd3", **cache)
    build_cache(prepare(make_config("sd3", tmp_path, **cache), SilentHost()), SilentHost())
    card(plan.parts.total + 1000)
    assert planned(tmp_path, "sd3", **cache).caching == 0


def test_a_gradient_through_a_mask_is_predicted(tmp_path):
    """Targets `all` train what reads the text, of which a mask chooses the tokens."""
    check(tmp_path, "qwen_image21", network={"kind": "loha", "target_modules": "all"}, training={"batch_size": 1})


@pytest.mark.parametrize("use", ["always", "training"])
def test_base_loras_and_another_model_for_samples_are_part_of_it(tmp_path, use):
    file = tmp_path / "below.safetensors"
    network = open_base(make_config("sd3", tmp_path).model).skeleton()
    paths = resolve_targets(network.module, network.target_presets, "attention", "")
    shapes = {network.file_key(path): network.module.get_submodule(path).weight.shape for path in paths}
    down = {f"{key}.lora_A.weight": torch.randn(64, columns) for key, (_, columns) in shapes.items()}
    up = {f"{key}.lora_B.weight": torch.randn(rows, 64) for key, (rows, _) in shapes.items()}
    save_file({**down, **up}, file)
    model = {"base_lora": [{"file": str(file), "use": use}]}
    plain, below = check(tmp_path, "sd3"), check(tmp_path, "sd3", model=model)
    size = sum(tensor.numel() * 4 for tensor in [*down.values(), *up.values()])
    assert below.parts.base_loras == size > 0.1 * below.parts.base
    assert plain.parts.base_loras == 0
    assert f"base LoRAs {size / 1e6:.3g} MB" in below.text()
    both = {**SAMPLES, "model": make_config("sd3", tmp_path).model.base}
    own, other = (check(tmp_path, "sd3", validation=samples) for samples in (SAMPLES, both))
    assert other.parts.encoders - own.parts.encoders == plain.parts.base
    config = make_config("sd3", tmp_path, model=model, validation=both, dataset=alike(tmp_path / "alike"))
    with_lora = plan_memory(prepare(config, SilentHost())).parts.encoders  # a device has a copy of it for each network
    assert with_lora - other.parts.encoders == (size if use == "always" else 0)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_holds_what_was_predicted_in_every_family(tmp_path, family, way):
    check(tmp_path, family, **WAYS[way])


@pytest.fixture
def card(monkeypatch):
    """Simulates a card of so many bytes, and has runs planned."""

    def simulate(size):
        monkeypatch.setenv("LORA_LOOM_PLAN", "1")
        monkeypatch.setenv("LORA_LOOM_VRAM_GB", f"{size / 1e9:.12f}")

    return simulate


def planned(tmp_path, family="sd", **changes):
    return plan_memory(prepare(make_config(family, tmp_path, **changes), SilentHost()))


def test_auto_streams_what_does_not_fit_and_the_lora_stays_the_same(tmp_path, card):
    whole = planned(tmp_path)
    train(make_config("sd", tmp_path / "whole"), SilentHost())
    card(whole.parts.total - 500_000)
    host = SilentHost()
    train(make_config("sd", tmp_path / "small"), host)
    record = json.loads((tmp_path / "small/run/run.json").read_text())["memory_plan"]
    assert record["base"]["mode"] == "stream"
    assert 0 < record["base"]["streamed_blocks"] <= record["base"]["blocks"]
    assert record["phases"]["training"] == sum(record["parts"].values()) <= record["available"]
    assert "are more than" in record["base"]["why"]
    assert any(text.startswith("predicted peak on a simulated card") for text in host.text)
    assert any(text.startswith("streamed base:") for text in host.text)
    assert written(tmp_path / "whole") == written(tmp_path / "small")


def test_what_fits_stays_on_the_device(tmp_path, card):
    card(planned(tmp_path, "sd3").peak)
    plan = planned(tmp_path, "sd3")
    assert plan.stream is None
    assert "all of it fits" in plan.why


def test_what_cannot_fit_is_refused_before_anything_is_written(tmp_path, card):
    changes = {"training": {"batch_size": 4}, "memory": {"gradient_checkpointing": False}}
    best = planned(tmp_path, memory={"gradient_checkpointing": True, "base": "stream"}, training={"batch_size": 4})
    card(best.parts.total)
    with pytest.raises(ConfigError, match=r"Nearest that fits: memory\.gradient_checkpointing = true \("):
        train(make_config("sd", tmp_path, **changes), SilentHost())
    assert not (tmp_path / "run").exists()
    card(1000)
    with pytest.raises(ConfigError, match=r"it would still need .*: use a lower data\.resolution"):
        planned(tmp_path, "sd3")


def test_a_refusal_names_every_lever_of_checkpointing_and_a_compiled_base_is_not_streamed(tmp_path, card):
    card(1000)
    with pytest.raises(ConfigError) as refused:
        planned(tmp_path, "sd3", memory={"gradient_checkpointing": False, "compile": True})
    assert "With memory.gradient_checkpointing = true, memory.checkpoint_offload = true, " in str(refused.value)
    assert 'model.quantize = "nf4"' in str(refused.value)


@pytest.mark.parametrize(
    "memory",
    [
        {"vram_gb": 0.02, "gradient_checkpointing": False},
        {"base": "stream", "checkpoint": "every 2", "gradient_checkpointing": True},
    ],
    ids=str,
)
def test_what_a_refusal_names_does_fit(tmp_path, card, memory):
    training = {"batch_size": 3}
    build_cache(prepare(make_config("sd3", tmp_path, training=training), SilentHost()), SilentHost())
    whole = planned(tmp_path, "sd3", memory=memory, training=training).parts.total
    card(round(0.6 * whole))
    with pytest.raises(ConfigError, match="Nearest that fits: ") as refused:
        planned(tmp_path, "sd3", memory=memory, training=training)
    named = re.search(r"Nearest that fits: (.*) \(", str(refused.value))[1]
    assert named.startswith('memory.base = "auto"')
    sections = {"memory": memory, "training": training}
    for section, option, value in re.findall(r"(\w+)\.(\w+) = (\"[^\"]*\"|\w+)", named):
        sections[section] = {**sections.get(section, {}), option: json.loads(value)}
    if count := re.search(r"gradient_accumulation_steps = (\d+)", named):
        sections["training"] = {**sections["training"], "gradient_accumulation_steps": int(count[1])}
    planned(tmp_path, "sd3", **sections)


def test_levers_save_what_they_say(tmp_path):
    tables = {"training": {"batch_size": 2}, "data": {"resolution": 128}, "network": {"rank": 1}}

    def of(**sections):
        return planned(tmp_path, "lumina2", **{**tables, **sections})

    plan = of()
    found = {lever.setting: lever for lever in plan.levers}
    assert len(found) == 3
    recomputing = found['memory.gradient_checkpointing = true and memory.checkpoint = "all"']
    assert recomputing.same_result
    less = of(memory={"gradient_checkpointing": True, "checkpoint": "all"})
    assert recomputing.saves == plan.parts.total - less.parts.total
    single = found["training.batch_size = 1 with gradient_accumulation_steps = 2"]
    assert (
        single.saves == plan.parts.total - of(training={"batch_size": 1, "gradient_accumulation_steps": 2}).parts.total
    )


def test_the_command_prints_the_plan_of_every_size(tmp_path, card):
    from tests.conftest import tiny_folder

    card(1_000_000_000)
    file = tmp_path / "run.toml"
    file.write_text(
        f'name = "x"\n[model]\nbase = "{tiny_folder("sd3").as_posix()}"\n[[dataset]]\nfolder = "{pictures().as_posix()}"\n'
        f'[data]\nresolution = 128\n[output]\ndirectory = "{tmp_path.as_posix()}"\n'
    )
    made = CliRunner().invoke(app, ["plan", str(file), "--json", "--set", 'validation.prompts=["a"]'])
    assert made.exit_code == 0, made.output
    plan = json.loads(made.stdout.splitlines()[-1])["memory_plan"]
    sizes = {tuple(bucket["size"]): bucket for bucket in plan["buckets"]}
    assert len(sizes) == 2
    assert sum(bucket["images"] for bucket in sizes.values()) == 6
    assert plan["available"] == 1_000_000_000
    assert plan["phases"]["caching"] > 0 < plan["phases"]["samples"]
    assert plan["seconds_per_step"][0] < plan["seconds_per_step"][1]
    assert plan["cache"] > 0
    assert not (tmp_path / "x").exists()


def test_a_card_without_a_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_LOOM_VRAM_GB", "large")
    with pytest.raises(ConfigError, match="LORA_LOOM_VRAM_GB = 'large': give the size of a card in GB"):
        planned(tmp_path)
