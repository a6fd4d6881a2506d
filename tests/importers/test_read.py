"""Files are recognised by their keys, relatives are looked for where people keep them, and nothing secret is written."""

import json

import pytest

from lora_loom.trainer.data.sets.checks import Surroundings
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.importers import read as read_module
from lora_loom.trainer.importers.kohya import shell
from lora_loom.trainer.importers.read import import_file, import_text, recognise
from tests.importers.samples import FACTS, S1

TITLES = {
    "S1": "a configuration of SimpleTuner", "S2": "a configuration of SimpleTuner", "K1": "a command of kohya's sd-scripts",
    "K2": "a configuration of LoRA_Easy_Training_Scripts", "A1": "a job of ai-toolkit", "A2": "a job of ai-toolkit",
    "O1": "a configuration of OneTrainer", "O2": "a configuration of OneTrainer", "M1": "a command of musubi-tuner",
    "M2": "datasets of kohya's sd-scripts or musubi-tuner", "D1": "a configuration of diffusion-pipe", "D2": "datasets of diffusion-pipe",
}  # fmt: skip


@pytest.mark.parametrize("sample", FACTS)
def test_a_file_is_recognised_by_its_keys(sample, tmp_path):
    path = tmp_path / "whatever.txt"
    path.write_text(FACTS[sample][0], encoding="utf-8")
    assert recognise(path).title == TITLES[sample]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "name = 'x'\n[model]\nbase = 'b'\n[[dataset]]\nfolder = 'f'\n",
        "[1, 2]",
        "echo hello",
        "a: 1",
        '{"a": 1}',
        "[model]\ntype = 'sd3'\n[dataset]\n",
    ],
)
def test_other_files_are_not(text, tmp_path):
    path = tmp_path / "file.toml"
    path.write_text(text, encoding="utf-8")
    assert recognise(path) is None
    with pytest.raises(ConfigError, match=r"none of the files|read neither as"):
        import_text(text, Surroundings(tmp_path), "it")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*gone\.json"):
        import_file(tmp_path / "gone.json")
    assert recognise(tmp_path / "gone.json") is None


def test_the_dataset_list_lies_where_the_guides_put_it(tmp_path):
    """config/config.json and config/multidatabackend.json, whose paths start from the folder above."""
    (tmp_path / "config").mkdir()
    (tmp_path / "datasets" / "cat").mkdir(parents=True)
    entry = {
        "id": "cat",
        "type": "local",
        "instance_data_dir": "datasets/cat",
        "caption_strategy": "textfile",
        "repeats": 4,
    }
    caches = {"id": "texts", "type": "local", "dataset_type": "text_embeds", "cache_dir": "cache"}
    (tmp_path / "config" / "multidatabackend.json").write_text(json.dumps([entry, caches]), encoding="utf-8")
    path = tmp_path / "config" / "config.json"
    path.write_text(
        S1.replace('"--seed":42', '"--seed":42, "--resolution": 768, "--caption_dropout_probability": 0.1'),
        encoding="utf-8",
    )
    (one,) = import_file(path).config.dataset
    assert (one.folder, one.repeats, one.resolutions, one.caption_dropout) == (
        str(tmp_path / "datasets" / "cat"),
        5,
        (768,),
        0.1,
    )


def test_secrets_are_neither_written_nor_printed(tmp_path):
    text = S1.replace('"--seed":42', '"--seed":42, "--hub_token": "hf_abc123", "--webhook_config": "https://abc123"')
    done = import_text(text, Surroundings(tmp_path), "it")
    assert "abc123" not in done.toml + done.text() + repr(done.taken)


def test_a_value_that_cannot_work_is_named_with_its_file(tmp_path):
    with pytest.raises(ConfigError, match=r"my\.json: lora_rank = 'many': use a number"):
        import_text('{"model_family": "sd3", "lora_rank": "many"}', Surroundings(tmp_path), "my.json")
    with pytest.raises(ConfigError, match=r"network\.rank = -3"):
        import_text('{"model_family": "sd3", "model_type": "lora", "lora_rank": -3}', Surroundings(tmp_path), "my.json")


def test_what_would_do_nothing_is_left_out_and_said(tmp_path):
    text = '{"model_family": "sd3", "base_model_precision": "int8-quanto", "base_model_default_dtype": "bf16"}'
    done = import_text(text, Surroundings(tmp_path), "it")
    assert (done.config.model.quantize, done.config.model.dtype) == ("int8", "auto")
    said = {one.option: one for one in done.taken}
    assert said["base_model_default_dtype"].became == "needless"
    assert "model.dtype would do nothing" in said["base_model_default_dtype"].note


def test_a_hub_id_becomes_a_folder_and_a_command(tmp_path):
    text = '{"model_family": "sd3", "pretrained_model_name_or_path": "stabilityai/stable-diffusion-3.5-large"}'
    done = import_text(text, Surroundings(tmp_path), "it")
    assert done.config.model.base == "models/stable-diffusion-3.5-large"
    assert any("hf download stabilityai/stable-diffusion-3.5-large --local-dir models/" in note for note in done.notes)


DEEP = {
    "stage 3": ("--deepspeed --zero_stage 3", {"shard": True, "base": "auto"}),
    "stage 2": ("--deepspeed --zero_stage 2 --offload_optimizer_device cpu", {"shard": False, "base": "auto"}),
    "weights in RAM": ("--deepspeed --offload_param_device cpu", {"shard": False, "base": "stream"}),
}


@pytest.mark.parametrize(("words", "expected"), DEEP.values(), ids=DEEP)
def test_deepspeed_becomes_what_takes_its_place(words, expected, tmp_path):
    done = import_text(f"python train_network.py --network_module=networks.lora {words}", Surroundings(tmp_path), "it")
    assert {name: getattr(done.config.memory, name) for name in expected} == expected
    assert not [one for one in done.taken if one.became == "none"]


def test_deepspeed_settings_and_precision_of_encoders_in_simpletuners_file(tmp_path):
    stage = {"zero_optimization": {"stage": 3}}
    text = json.dumps(
        {
            "model_family": "sd3",
            "model_type": "lora",
            "deepspeed_config": stage,
            "text_encoder_1_precision": "bf16",
            "text_encoder_2_precision": "int8-quanto",
        }
    )
    done = import_text(text, Surroundings(tmp_path), "it")
    assert (done.config.memory.shard, done.config.text.dtype) == (True, "bfloat16")
    text = text.replace(json.dumps(stage), '"config/ds.json"')
    (one,) = [one for one in import_text(text, Surroundings(tmp_path), "it").taken if one.option == "deepspeed_config"]
    assert (one.became, "memory.shard" in one.note) == ("none", True)


@pytest.mark.parametrize(
    ("family", "word", "ours", "became"),
    [
        ("flux", "flash-attn-3-hub", "flash3", "exact"),
        ("flux", "diffusers", "auto", "needless"),
        ("sd3", "xformers", "auto", "needless"),
        ("flux", "sageattention", "auto", "none"),
    ],
)
def test_simpletuners_kernel_of_attention(family, word, ours, became, tmp_path):
    text = json.dumps({"model_family": family, "model_type": "lora", "attention_mechanism": word})
    done = import_text(text, Surroundings(tmp_path), "it")
    (one,) = [one for one in done.taken if one.option == "attention_mechanism"]
    assert (done.config.model.attention, one.became) == (ours, became)


SHELLS = {
    "bash": 'LR=1e-4\naccelerate launch --num_cpu_threads_per_process 2 train_network.py \\\n  --network_module=networks.lora --unet_lr=$LR \\\n  --network_args "conv_dim=8" "conv_alpha=4" --shuffle_caption\n',
    "cmd": 'set LR=1e-4\nrem a comment\naccelerate launch train_network.py ^\n --network_module=networks.lora --unet_lr=%LR% ^\n --network_args "conv_dim=8" "conv_alpha=4" --shuffle_caption\n',
    "powershell": '$LR = 1e-4 # the rate\naccelerate launch train_network.py `\n --network_module=networks.lora --unet_lr=$LR `\n --network_args "conv_dim=8" "conv_alpha=4" --shuffle_caption\n',
}


@pytest.mark.parametrize("kind", SHELLS)
def test_command_lines_of_all_shells_are_read(kind):
    script, options = shell.options(shell.command(SHELLS[kind]), ("network_args",))
    assert script == "train_network.py"
    assert options == {
        "network_module": "networks.lora", "unet_lr": "1e-4", "network_args": ["conv_dim=8", "conv_alpha=4"], "shuffle_caption": True,
    }  # fmt: skip


def test_folders_of_windows_keep_their_backslashes():
    _, options = shell.options(
        shell.command(r'train_network.py --train_data_dir="C:\my pictures\cat" --output_dir=D:\loras\new')
    )
    assert options == {"train_data_dir": r"C:\my pictures\cat", "output_dir": r"D:\loras\new"}


def test_digits_in_yaml_are_the_text_that_was_written():
    """YAML 1.1 reads 007 as the octal 7 and 12:30 as 750; here they are names and times of day."""
    found = read_module._yaml("name: 007\ntrigger: 010\nat: 12:30\nsteps: 2000\nrate: 1e-4\nnegative: -3\n")
    assert found == {"name": "007", "trigger": "010", "at": "12:30", "steps": 2000, "rate": "1e-4", "negative": -3}
