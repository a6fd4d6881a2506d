"""Runs on base LoRAs, from TOML: what is on when, what the file holds, what is named where, and what is refused."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_loom.trainer.base_model import open_base
from lora_loom.trainer.errors import ConfigError, ModelFileError, RunError
from lora_loom.trainer.lora.targets import resolve_targets
from lora_loom.trainer.runs.headless import train
from lora_loom.trainer.score.run import score_sheet
from lora_loom.trainer.storage.tensor_file import TensorFile
from lora_loom.trainer.sweep.run import sweep
from tests.conftest import SilentHost, make_config

SAMPLES = {"prompts": ["a red thing"], "sample_steps": 2, "sample_every": 2, "width": 64, "height": 64}
SHORT = {
    "training": {"steps": 2, "batch_size": 1, "save_every": 2},
    "validation": SAMPLES,
    "data": {"resolution": 64, "bucket_step": 32, "validation_split": 0.2},
    "sweep": {"prompts": ["a red thing"], "steps": 2, "width": 64, "height": 64},
}


@pytest.fixture(scope="module")
def below(tmp_path_factory):
    """A LoRA of the tiny SD base that changes its feed-forward strongly."""
    path = tmp_path_factory.mktemp("below") / "below.safetensors"
    network = open_base(make_config("sd", path.parent).model).skeleton()
    source, tensors = torch.Generator().manual_seed(0), {}
    for module in resolve_targets(network.module, network.target_presets, "attention+mlp", ""):
        rows, columns = network.module.get_submodule(module).weight.shape[:2]
        key = network.file_key(module)
        down = "lora_down" if key.startswith("lora_") else "lora_A"
        up = "lora_up" if key.startswith("lora_") else "lora_B"
        tensors[f"{key}.{down}.weight"] = torch.randn(2, columns, generator=source) * 0.3
        tensors[f"{key}.{up}.weight"] = torch.randn(rows, 2, generator=source) * 0.3
    save_file(tensors, path)
    return path


def run(root, *base_loras, **sections):
    host = SilentHost()
    config = make_config("sd", root, **{**SHORT, **sections, "model": {"base_lora": list(base_loras)}})
    return config, host, train(config, host)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run without base LoRA."""
    root = tmp_path_factory.mktemp("plain")
    return root, *run(root)


@pytest.fixture(scope="module")
def on_top(tmp_path_factory, below):
    """A run on top of one."""
    root = tmp_path_factory.mktemp("on_top")
    return root, *run(root, {"file": str(below), "strength": 0.5})


def samples(root):
    return {path.name: path.read_bytes() for path in sorted((root / "run/samples").glob("*.png"))}


def losses(root):
    lines = map(json.loads, (root / "run/metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def test_one_for_training_is_off_in_samples_and_in_the_file(tmp_path, below, plain):
    _, host, done = run(tmp_path, {"file": str(below), "use": "training"})
    none, mine = samples(plain[0]), samples(tmp_path)
    assert mine["step-000000-0.png"] == none["step-000000-0.png"], "the sample of the base is without it"
    assert losses(tmp_path)[0] != losses(plain[0])[0], "training is with it"
    assert load_file(done.lora).keys() == load_file(plain[3].lora).keys()
    assert any("below.safetensors at 1 while training only" in text for text in host.text)
    assert any("warning: sd sd1 is not known to be distilled: a training adapter" in text for text in host.text)


def test_one_of_the_base_is_on_everywhere_and_is_named_everywhere(on_top, plain):
    root, _, host, done = on_top
    assert samples(root)["step-000000-0.png"] != samples(plain[0])["step-000000-0.png"]
    assert load_file(done.lora).keys() == load_file(plain[3].lora).keys(), "the file holds the new LoRA alone"
    [named] = json.loads(TensorFile(done.lora).metadata["loom.base_loras"])
    record = json.loads((root / "run/run.json").read_text())
    assert record["base_loras"] == [named]
    assert (named["file"], named["strength"], named["use"]) == ("below.safetensors", 0.5, "always")
    assert any("base LoRA below.safetensors at 0.5: load it" in text for text in host.text)
    assert record["fixed"]["facts"]["base_loras"] == [f"{named['digest']} at 0.5 (always)"]


def test_strength_0_trains_bit_for_bit_what_none_trains(tmp_path, below, plain):
    _, _, done = run(tmp_path, {"file": str(below), "strength": 0})
    mine, none = load_file(done.lora), load_file(plain[3].lora)
    assert all(torch.equal(mine[key], tensor) for key, tensor in none.items())
    assert samples(tmp_path) == samples(plain[0])


def test_without_one_the_facts_and_the_metadata_are_as_before(plain):
    root, _, _, done = plain
    record = json.loads((root / "run/run.json").read_text())
    assert set(record["fixed"]["facts"]) == {"model", "encoders", "data", "init"}
    assert "base_lora" not in record["fixed"]["model"]
    assert "loom.base_loras" not in TensorFile(done.lora).metadata


def test_a_run_is_continued_on_the_same_base_loras_only(tmp_path, below, on_top):
    root = on_top[0]
    with pytest.raises(RunError, match=r"facts\.base_loras: .* at 0\.5 \(always\).* -> .* at 1 \(always\)"):
        run(root, {"file": str(below)})
    with pytest.raises(RunError, match=r"facts\.base_loras: .* -> None"):
        run(root)
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(below.read_bytes())
    run(root, {"file": str(moved), "strength": 0.5})


def test_sweeps_have_it_in_every_cell_and_scores_measure_with_it(on_top, plain):
    root, config, _, _ = on_top
    host, again = SilentHost(), SilentHost()
    none, without = sweep(plain[1], SilentHost()), sweep(make_config("sd", root, **SHORT), again)
    lacking = r"was trained on top of \w+\.safetensors at 0\.5, which these cells are without"  # a test before may have moved it
    assert any(re.search(lacking, text) for text in again.text)
    mine = sweep(config, host)
    assert any("all cells, those of the base too, are made with base LoRA below" in text for text in host.text)
    for one, other in zip(mine.cells, none.cells, strict=True):
        assert one.id != other.id
        assert one.image.read_bytes() != other.image.read_bytes()
    assert without.cells[0].image.read_bytes() == none.cells[0].image.read_bytes()
    lines = [json.loads(line) for line in (root / "run/metrics.jsonl").read_text().splitlines()]
    recorded = next(line["held_out"] for line in lines if line["step"] == 0 and "held_out" in line)
    scored = score_sheet(mine.folder, SilentHost(), config=config)
    [base] = [row for row in scored.score.rows if row.label == "base"]
    assert base.values["held_out"].mean == pytest.approx(recorded, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {f"other.{k}": v for k, v in t.items()}, "base LoRA broken.safetensors: .* not in this sd model"),
        (lambda t: {k: torch.cat([v, v], -1) if k.endswith(("lora_down.weight", "lora_A.weight")) else v for k, v in t.items()},
         r"base LoRA broken.safetensors: .* has the shape .*: it was made for a model of another size"),
        (lambda t: {**t, "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 4),
                    "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(4, 2)}, "changes the text encoder too.*merge-base"),
        (lambda t: {**t, next(iter(t)): next(iter(t.values())) * float("nan")}, "NaN"),
        (lambda t: {**t, f"{next(iter(t)).rpartition('.lora')[0]}.reshape_weight": torch.ones(2)}, r"not read here \(reshape_weight\)"),
        (lambda t: {k: v for k, v in t.items() if k != next(iter(t))}, r"base LoRA broken.safetensors: .*: an adapter of .* is incomplete"),
        (lambda t: {"x": torch.ones(1)}, "base LoRA broken.safetensors: .* holds no LoRA tensors; it begins with x"),
    ],
    ids=["another model", "another shape", "text encoder", "nan", "another kind", "half a pair", "no LoRA"],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_refused_by_name(tmp_path, below, change, message):
    path = tmp_path / "broken.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in change(load_file(below)).items()}, path)
    with pytest.raises((ConfigError, ModelFileError), match=message):
        run(tmp_path, {"file": str(path)})
    assert not (tmp_path / "run/run.json").exists()


def test_a_file_of_8_bit_floats_is_one(tmp_path, below):
    path = tmp_path / "small.safetensors"
    save_file({key: tensor.to(torch.float8_e4m3fn) for key, tensor in load_file(below).items()}, path)
    _, _, done = run(tmp_path, {"file": str(path)})
    assert json.loads(TensorFile(done.lora).metadata["loom.base_loras"])[0]["file"] == "small.safetensors"
    broken = {key: (tensor * float("nan")).to(torch.float8_e4m3fn) for key, tensor in load_file(below).items()}
    save_file(broken, path)
    with pytest.raises(ModelFileError, match="NaN"):
        run(tmp_path / "nan", {"file": str(path)})


def test_of_two_that_claim_a_layer_the_one_with_another_shape_is_refused(tmp_path, below):
    tensors = load_file(below)
    key = next(k for k in tensors if k.endswith(("lora_down.weight", "lora_A.weight")))
    stem = key.rpartition(".lora")[0]
    wide = {k: torch.cat([v, v], -1) if k == key else v for k, v in tensors.items() if k.startswith(f"{stem}.")}
    save_file({k: v.contiguous() for k, v in wide.items()}, tmp_path / "wide.safetensors")
    with pytest.raises(ModelFileError, match=r"base LoRA wide.safetensors: .* has the shape .*, this model's layer"):
        run(tmp_path, {"file": str(below)}, {"file": str(tmp_path / "wide.safetensors")})
    assert not (tmp_path / "run/run.json").exists()


def test_two_of_different_ranks_on_a_layer_add_up(tmp_path, below, on_top):
    """A quarter of it, and another quarter in twice as many ranks of which half are empty, are the half of it."""
    wide = {k: torch.cat([v, torch.zeros_like(v)], 0 if "lora_down" in k or "lora_A" in k else 1) for k, v in load_file(below).items()}  # fmt: skip
    save_file({k: v.contiguous() for k, v in wide.items()}, tmp_path / "wide.safetensors")
    run(
        tmp_path, {"file": str(below), "strength": 0.25}, {"file": str(tmp_path / "wide.safetensors"), "strength": 0.25}
    )
    assert losses(tmp_path) == pytest.approx(losses(on_top[0]), rel=1e-5)
    [first, second] = json.loads((tmp_path / "run/run.json").read_text())["base_loras"]
    assert first["digest"] != second["digest"]


def test_settings_that_do_not_go_with_it_are_refused(tmp_path, below):
    with pytest.raises(ConfigError, match="'dora' does not go with a base LoRA for training only"):
        run(tmp_path, {"file": str(below), "use": "training"}, network={"kind": "dora"})
    with pytest.raises(ModelFileError, match="cannot read the LoRA"):
        run(tmp_path, {"file": str(tmp_path / "none.safetensors")})
    with pytest.raises(ConfigError, match=r"base_lora.*use = 'sometimes'"):
        run(tmp_path, {"file": str(below), "use": "sometimes"})
    with pytest.raises(ConfigError, match="file"):
        run(tmp_path, {"file": " "})
