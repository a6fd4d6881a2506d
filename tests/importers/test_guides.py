"""Every configuration block that five guides print is imported, and so many of its options are taken.

The blocks lie in guides/, with other prompts and folders: 0, 1 and 2 are SimpleTuner's quickstarts of Qwen-Image, Flux and Lumina2, 3 is
a guide to sd-scripts, 4 a tutorial on SD3.5 Large with SimpleTuner.
"""

from collections import Counter
from pathlib import Path

import pytest

from lora_loom.trainer.config.toml import load
from lora_loom.trainer.importers.read import import_file

FOLDER = Path(__file__).parent / "guides"
COUNTS = {
    "0_config.json": (30, 4, 8, 0),
    "0_library_option.json": (1, 0, 0, 0),
    "0_multidatabackend.json": (25, 0, 14, 0),
    "0_preview.json": (0, 0, 2, 0),
    "0_prompts_1.json": (0, 0, 0, 0),
    "0_prompts_2.json": (0, 0, 0, 0),
    "1_library_option.json": (1, 0, 0, 0),
    "1_low_memory.json": (2, 1, 3, 0),
    "1_multidatabackend.json": (36, 0, 17, 0),
    "1_other_network.json": (2, 3, 0, 0),
    "1_preview.json": (0, 0, 2, 0),
    "1_prompts_1.json": (0, 0, 0, 0),
    "1_prompts_2.json": (0, 0, 0, 0),
    "1_tread.json": (1, 0, 0, 0),
    "2_config.json": (30, 4, 5, 1),
    "2_library_option.json": (1, 0, 0, 0),
    "2_multidatabackend.json": (11, 0, 10, 0),
    "2_prompts_1.json": (0, 0, 0, 0),
    "3_adamw8bit.txt": (2, 0, 0, 0),
    "3_dadapt.txt": (2, 0, 0, 0),
    "3_easy.toml": (42, 2, 6, 0),
    "3_locon.txt": (4, 0, 0, 0),
    "3_lokr.txt": (4, 0, 0, 1),
    "3_lycoris.txt": (5, 0, 2, 0),
    "3_prodigy.txt": (2, 0, 0, 0),
    "3_restarts.txt": (3, 0, 0, 0),
    "3_scheduler.txt": (2, 1, 0, 0),
    "3_script.ps1": (36, 2, 6, 0),
    "4_above.env": (3, 1, 2, 0),
    "4_above_folder.env": (3, 1, 2, 0),
    "4_base.yaml": (1, 0, 15, 0),
    "4_changed.json": (4, 1, 0, 0),
    "4_configure.json": (27, 3, 7, 0),
    "4_configure_medium.json": (27, 3, 7, 0),
    "4_custom.json": (33, 5, 13, 1),
    "4_deepspeed.yaml": (3, 1, 18, 0),
    "4_example.json": (26, 6, 6, 2),
    "4_full.env": (30, 7, 18, 1),
    "4_full.json": (30, 5, 13, 1),
    "4_lora.env": (33, 7, 18, 1),
    "4_multidatabackend.json": (13, 0, 11, 0),
    "4_paths.env": (2, 0, 0, 0),
}  # fmt: skip
"""{block: options taken exactly, with a difference, not needed, without a counterpart}."""
GUIDES = {"0": (56, 4, 24, 0), "1": (42, 4, 22, 0), "2": (42, 4, 15, 1), "3": (102, 5, 14, 1), "4": (235, 40, 130, 6)}
"""{guide: the same of all its blocks}."""


def test_all_blocks_are_counted():
    assert set(COUNTS) == {path.name for path in FOLDER.iterdir()}
    sums: dict[str, Counter[int]] = {guide: Counter() for guide in GUIDES}
    for name, counts in COUNTS.items():
        sums[name[0]].update(dict(enumerate(counts)))
    assert {guide: tuple(one[at] for at in range(4)) for guide, one in sums.items()} == GUIDES


@pytest.mark.parametrize("name", COUNTS)
def test_a_block_is_imported(name, tmp_path):
    done = import_file(FOLDER / name)
    assert tuple(done.counts().values()) == COUNTS[name]
    path = tmp_path / "run.toml"
    path.write_text(done.toml, encoding="utf-8")
    assert load(path) == done.config


def test_what_the_tutorial_trains():
    """Cosine with a period of 2400 steps in a run of 24000: ten cosines; the values that a line with LR_WARMUP_STEPS means."""
    for name in ("4_custom.json", "4_lora.env"):
        config = import_file(FOLDER / name).config
        assert (config.network.rank, config.network.alpha, config.training.steps, config.training.batch_size) == (
            768,
            768,
            24000,
            6,
        )
        assert (config.schedule.kind, config.schedule.cycles, config.schedule.warmup) == ("restarts", 10, 0)
        assert (config.data.resolution, config.data.buckets, config.training.save_every) == (1024, "pixel", 400)
        assert config.dataset_files == ("/data/art/datasets/multidatabackend.json",)


def test_the_tutorials_other_run_is_a_full_fine_tune():
    for name in ("4_full.json", "4_full.env"):
        config = import_file(FOLDER / name).config
        assert (config.network.kind, config.network.target_modules, config.model.dtype) == (
            "full",
            "default",
            "bfloat16",
        )
        assert config.optimizer.learning_rate == 5e-5


@pytest.mark.parametrize(
    ("command", "dtype"),
    [
        ("accelerate launch sdxl_train.py --pretrained_model_name_or_path=x.safetensors --full_bf16 --learning_rate=1e-5 --optimizer_type=adafactor", "bfloat16"),
        ("python sd3_train.py --pretrained_model_name_or_path x.safetensors --learning_rate 1e-5 --network_dim 8", "float32"),
    ],
)  # fmt: skip
def test_kohyas_scripts_for_whole_models(command, dtype, tmp_path):
    path = tmp_path / "run.sh"
    path.write_text(command, encoding="utf-8")
    config = import_file(path).config
    assert (config.network.kind, config.network.rank, config.model.dtype) == ("full", 16, dtype)
    assert config.text.learning_rate == 0
    assert config.optimizer.learning_rate == 1e-5


def test_onetrainers_and_diffusion_pipes_whole_models(tmp_path):
    import json

    one, pipe = tmp_path / "config.json", tmp_path / "pipe.toml"
    one.write_text(
        json.dumps(
            {
                "training_method": "FINE_TUNE",
                "model_type": "STABLE_DIFFUSION_XL_10_BASE",
                "base_model_name": "x.safetensors",
                "lora_rank": 8,
            }
        )
    )
    pipe.write_text(
        "micro_batch_size_per_gpu = 1\nepochs = 2\ndataset = 'dataset.toml'\n[model]\ntype = 'flux'\ndiffusers_path = 'x'\n[optimizer]\ntype = 'adamw'\nlr = 1e-5\n"
    )
    for path in (one, pipe):
        assert import_file(path).config.network.kind == "full", path


def test_what_the_script_of_the_kohya_guide_trains():
    config = import_file(FOLDER / "3_script.ps1").config
    (one,) = config.dataset
    assert (one.folder, one.layout, one.shuffle_tags, one.keep_tokens, one.max_side) == (
        r"C:\pictures\my-cat",
        "kohya",
        True,
        1,
        1536,
    )
    assert one.resolutions == (768,)
    assert (config.optimizer.learning_rate, config.text.learning_rate) == (1e-4, pytest.approx(1e-4 / 3))
    assert (config.schedule.kind, config.schedule.cycles) == ("restarts", 4)
    assert (config.network.rank, config.network.target_modules, config.text.clip_tokens, config.text.clip_skip) == (
        64,
        "full",
        225,
        2,
    )


def test_the_favourite_schedule_of_the_kohya_guide():
    schedule = import_file(FOLDER / "3_scheduler.txt").config.schedule
    assert (schedule.kind, schedule.cycles, schedule.warmup) == ("warm_restarts", 4, 80)
    assert (schedule.cycle_warmup, schedule.cycle_decay) == (40, 0.5)


def test_a_file_above_leads_to_the_configuration_below(tmp_path):
    """config/config.env names the folder and the kind of the configuration that is meant."""
    (tmp_path / "art_lora").mkdir()
    text = (FOLDER / "4_custom.json").read_text(encoding="utf-8")
    (tmp_path / "art_lora" / "config.json").write_text(text, encoding="utf-8")
    above = tmp_path / "config.env"
    above.write_text((FOLDER / "4_above_folder.env").read_text(encoding="utf-8"), encoding="utf-8")
    assert import_file(above).config.network.rank == 768


def test_a_fragment_with_a_trailing_comma_and_one_without_braces():
    model = import_file(FOLDER / "1_other_network.json").config.model
    assert (model.base, model.encoders) == ("models/Flux-Dev2Pro", "models/FLUX.1-dev")
    model = import_file(FOLDER / "1_low_memory.json").config.model
    assert model.quantize == "int8"
