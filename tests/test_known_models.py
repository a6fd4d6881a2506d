"""The table of known models: which row a file is for, what must be said before it is trained, and that every number has a source."""

import dataclasses
import json

import pytest
import torch

from lora_loom.trainer import families
from lora_loom.trainer.base_model import Base
from lora_loom.trainer.diffusion.objectives import FlowMatching
from lora_loom.trainer.diffusion.timesteps import NoiseLevels, ResolutionShift, Uniform
from lora_loom.trainer.families.common.source import Source
from lora_loom.trainer.known_models.row import Sourced, tell, warning_of
from lora_loom.trainer.known_models.rows import ROWS
from scripts.image_models import CLASSES, LEFT_OUT, TEXTS
from scripts.write_model_docs import DOCUMENT, RECORD, render, tables
from scripts.write_workflows import api_graph

Z = {"image_model": "lumina2", "z_image_modulation": True}
KLEIN = {"image_model": "flux2", "hidden_size": 3072, "guidance_embed": False}
EDIT_2511 = {"image_model": "qwen_image", "default_ref_method": "index_timestep_zero"}


@pytest.mark.parametrize(
    ("model_class", "config", "file", "name", "by", "distilled"),
    [
        ("Lumina2", Z, "z_image_turbo_bf16", "Z-Image Turbo", "name", "steps"),
        ("Lumina2", Z, "z_image_bf16", "Z-Image", "name", "no"),
        ("Lumina2", Z, "Z-Image-De-Turbo", "Z-Image De-Turbo", "name", "no"),
        ("Lumina2", Z, "my merge", "Z-Image", "nothing", "no"),
        ("Flux2", {**KLEIN, "guidance_embed": True}, "any", "FLUX.2 dev", "weights", "guidance"),
        ("Flux2", KLEIN, "flux-2-klein-base-4b-fp8", "FLUX.2 Klein base", "name", "no"),
        ("Flux2", KLEIN, "flux-2-klein-9b", "FLUX.2 Klein", "name", "steps"),
        ("Krea2", {}, "krea2_turbo_fp8_scaled", "Krea 2 Turbo", "name", "steps"),
        ("Krea2", {}, "krea2_raw", "Krea 2 RAW", "name", "no"),
        ("QwenImage", {}, "qwen_image_2512_fp8_e4m3fn", "Qwen-Image 2512", "name", "no"),
        ("QwenImage", {}, "qwen_image_edit_2509_bf16", "Qwen-Image-Edit 2509", "name", "no"),
        ("QwenImage", EDIT_2511, "qwen_image_edit_2511_bf16", "Qwen-Image-Edit 2511", "name", "no"),
        ("QwenImage", {"use_additional_t_cond": True}, "any", "Qwen-Image-Layered", "weights", "no"),
        ("QwenImage", {}, "Qwen-Image-Lightning-4steps", "Qwen-Image with a few-step LoRA merged", "name", "steps"),
        ("Anima", {}, "anima-base-v1.0", "Anima", "name", "no"),
        ("Chroma", {}, "Chroma1-HD-fp8mixed", "Chroma", "name", "no"),
        ("Chroma", {}, "Chroma1-Flash", "Chroma Flash", "name", "steps"),
        ("HiDream", {}, "hidream_i1_dev_fp8", "HiDream I1 Dev or Fast", "name", "guidance"),
        ("HunyuanImage21", {"meanflow": False}, "any", "HunyuanImage 2.1", "weights", "no"),
        ("HunyuanImage21", {"meanflow": True}, "any", "HunyuanImage 2.1 distilled", "weights", "steps"),
        ("WAN21", {}, "wan2.2_t2v_high_noise_14B_fp8_scaled", "Wan 2.2, high noise", "name", "no"),
        ("WAN21", {}, "wan2.1_t2v_14B_fp16", "Wan 2.1", "name", "no"),
        ("WAN22", {}, "any", "Wan 2.2 5B", "weights", "no"),
        ("SDXL", {}, "sd_xl_base_1.0", "SDXL", "nothing", "no"),
        ("SDXL", {}, "sdxl_lightning_4step", "SDXL with few steps", "name", "steps"),
        ("Lumina2", Z, "ZIT-fp8", "Z-Image Turbo", "name", "steps"),
        ("Lumina2", Z, "merge_ZIT", "Z-Image Turbo", "name", "steps"),
        ("Lumina2", Z, "zib_v4", "Z-Image", "name", "no"),
        ("Flux2", KLEIN, "klein-9b-database", "FLUX.2 Klein", "name", "steps"),
        ("Flux2", KLEIN, "kleinBase_9b", "FLUX.2 Klein base", "name", "no"),
        ("WAN21", {}, "Wan2_2-T2V-A14B-HIGH_fp8_e4m3fn_scaled_KJ", "Wan 2.2, high noise", "name", "no"),
        ("WAN21", {}, "Wan2_2-T2V-A14B-LOW_fp8_e4m3fn_scaled_KJ", "Wan 2.2, low noise", "name", "no"),
        ("WAN21", {}, "wan2.2-highlights", "Wan 2.2, one of its experts", "name", "no"),
        ("SDXL", {}, "hyperrealism_xl", "SDXL", "nothing", "no"),
        ("SDXL", {}, "merge_Hyper8steps", "SDXL with few steps", "name", "steps"),
        ("QwenImage", {}, "qwen_image_mine_2004steps", "Qwen-Image", "name", "no"),
        ("ErnieImage", {}, "ernie-image-turbo", "ErnieImage Turbo", "name", "steps"),
        ("Lumina2", Z, "myZIT", "Z-Image Turbo", "name", "steps"),
        ("Lumina2", Z, "myZITv2", "Z-Image Turbo", "name", "steps"),
        ("Lumina2", Z, "ZImageTurboMix", "Z-Image Turbo", "name", "steps"),
        ("Lumina2", Z, "zitmix", "Z-Image", "nothing", "no"),  # no word of its own
        ("SDXL", {}, "dreamXLLcm", "SDXL with few steps", "name", "steps"),
        ("SDXL", {}, "juggernautXLDMD2", "SDXL with few steps", "name", "steps"),
        ("SDXL", {}, "FilmCalm", "SDXL", "nothing", "no"),
        ("WAN21", {}, "wan2.2_t2v_14B_mine", "Wan 2.2, one of its experts", "name", "no"),
        ("WAN21", {}, "wan22HighNoise", "Wan 2.2, high noise", "name", "no"),
    ],
)  # fmt: skip
def test_a_model_is_told_by_weights_else_by_its_name(model_class, config, file, name, by, distilled):
    told = tell(ROWS, model_class, config, [file])
    assert (told.row.name, told.by, told.row.distilled) == (name, by, distilled)


def test_metadata_name_a_file_that_was_renamed():
    assert tell(ROWS, "Lumina2", Z, ["my favourite", "Z-Image-Turbo"]).row.name == "Z-Image Turbo"


def test_relatives_without_a_row_are_not_taken_for_one():
    assert tell(ROWS, "Lumina2", {"image_model": "lumina2"}, ["z_image_turbo"]) is None
    assert tell(ROWS, "NobodysModel", {}, []) is None


def test_a_distilled_model_is_warned_of_with_its_remedy():
    turbo = warning_of(tell(ROWS, "Lumina2", Z, ["z_image_turbo_bf16"]))
    assert "Z-Image Turbo is distilled (steps)" in turbo
    assert "zimage_turbo_training_adapter" in turbo
    assert "use the guided loss" in warning_of(tell(ROWS, "HiDream", {}, ["hidream_i1_dev"]))
    assert not warning_of(tell(ROWS, "Lumina2", Z, ["z_image_bf16"]))
    assert not warning_of(tell(ROWS, "Flux2", {"guidance_embed": True}, [])), "its guidance is fed, and 1 keeps it"


@pytest.mark.parametrize(("variant", "warned"), [("dev", False), ("schnell", True)])
def test_the_command_line_warns_of_distilled_variants(variant, warned, tmp_path):
    source = Source(path=tmp_path, denoiser_files=())
    base = Base(source=source, family=families.get("flux"), variant=variant, device=torch.device("cpu"))
    assert bool(base.warnings()) == warned


def test_what_nothing_tells_is_said_where_it_matters():
    assert "taken for Krea 2 RAW" in warning_of(tell(ROWS, "Krea2", {}, ["mine"]))
    assert not warning_of(tell(ROWS, "SDXL", {}, ["mine"])), "most files of this class are plain"


@pytest.mark.parametrize("row", [row for row in ROWS if row.named], ids=lambda row: f"{row.name}, {row.named}"[:40])
def test_a_file_that_has_a_rows_name_is_told_by_it(row):
    """So that whoever reads "put that into the file's name" can do it."""
    told = tell(ROWS, row.model_class, row.config, [row.name])
    assert (told.row.name, told.by) == (row.name, "name")


def test_what_cannot_be_known_is_said_with_what_to_set():
    asked = warning_of(tell(ROWS, "Lumina2", Z, ["zitmix"]))
    assert "taken for Z-Image. If it is Z-Image De-Turbo or Z-Image Turbo, put that into the file's name" in asked
    expert = warning_of(tell(ROWS, "WAN21", {}, ["wan2.2_t2v_14B"]))
    assert "min_timestep = 0.7 for the one of high noise" in expert
    assert "max_timestep = 0.7 for the one of low noise" in expert
    assert not warning_of(tell(ROWS, "WAN21", {}, ["wan2.2_t2v_high_noise_14B"]))


FAST = ["dreamshaperXL_lightning", "sdxl-hyper-8step", "my_lcm_v2", "RealVisDMD2", "sd_xl_turbo_1.0"]


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize(("family", "variant"), [("sdxl", "sdxl"), ("sd", "sd1"), ("sd3", "sd3"), ("flux", "dev"), ("qwen_image", "qwen-image")])  # fmt: skip
def test_a_name_that_says_few_steps_is_warned_of_on_both_front_ends(tmp_path, family, variant, name):
    """Whether or not the model has a row: what the graph says of a MODEL the command line says of the file."""
    source = Source(path=tmp_path / f"{name}.safetensors", denoiser_files=())
    base = Base(source=source, family=families.get(family), variant=variant, device=torch.device("cpu"))
    [said] = base.warnings()
    assert "is distilled (steps), and plain training undoes that" in said
    assert base.warnings(adapter=True) == []
    [model_class, *_] = base.family.comfy.model_classes
    config = {"guidance_embed": base.settings.guidance_embedding}
    graph = warning_of(tell(ROWS, model_class, config, [name]), [name], f"{family} {variant}")
    assert said == f"warning: {graph}"


def test_settings_and_folders_are_believed_before_names(tmp_path):
    def said(family, variant, name, **stated):
        source = Source(path=tmp_path / f"{name}.safetensors", denoiser_files=())
        base = Base(source=source, family=families.get(family), variant=variant, device=torch.device("cpu"), **stated)
        return " ".join(base.warnings())

    assert "taken for Z-Image" in said("z_image", "z-image", "mine")
    assert "or set model.variant: z-image, z-image-turbo" in said("z_image", "z-image", "mine")
    assert not said("z_image", "z-image", "mine", is_stated=True)
    assert not said("z_image", "z-image", "z_image_turbo", is_stated=True), "somebody knows better"
    assert "distilled (steps)" in said("z_image", "z-image-turbo", "mine", is_stated=True)
    assert "distilled (steps)" in said("sdxl", "sdxl-v", "x_lightning", is_stated=True), (
        "no variant of it says the steps"
    )
    assert not said("z_image", "z-image", "z_image_de_turbo")


def test_every_number_has_a_source():
    facts = [
        (row.name, field.name, value)
        for row in ROWS
        for field in dataclasses.fields(row)
        if isinstance(value := getattr(row, field.name), Sourced)
    ]
    assert len(facts) > 200
    assert not [(name, field) for name, field, fact in facts if not fact.source.strip()]


def test_shift_laws_count_a_networks_own_tokens():
    """exp(mu) at 1024 x 1024: FLUX.2 has latents of 1/16, one token each, Krea 2 latents of 1/8 in patches of 2 x 2."""
    shift = {row.name: row.shift.value for row in ROWS if row.shift}
    assert shift["FLUX.2 Klein base"].at(64, 64) == pytest.approx(3.158, abs=1e-3)
    assert shift["ErnieImage"].at(32, 32) == pytest.approx(1.878, abs=1e-3)
    assert shift["Krea 2 RAW"].at(128, 128) == pytest.approx(2.475, abs=1e-3)
    assert shift["Krea 2 RAW"].at(32, 32) == pytest.approx(1.649, abs=1e-3)
    assert shift["Krea 2 Turbo"] == pytest.approx(3.158, abs=1e-3)
    assert ResolutionShift(max_tokens=8192, max_shift=0.9, patch=1).at(64, 64) == pytest.approx(2.0, abs=2e-2)


def test_a_training_adapter_answers_the_warning_and_is_warned_of_where_nothing_is_distilled():
    turbo, base = tell(ROWS, "Lumina2", Z, ["z_image_turbo_bf16"]), tell(ROWS, "Lumina2", Z, ["z_image_bf16"])
    assert warning_of(turbo)
    assert not warning_of(turbo, adapter=True)
    assert "Z-Image is not known to be distilled: a training adapter" in warning_of(base, adapter=True)


RECORDED = json.loads(RECORD.read_text(encoding="utf-8"))
# {class: (attention, mlp, modulation)}, counted apart from this code: by which layers run with the image's and the text's tokens
COUNTED = {
    "Flux": (152, 76, 76), "Flux2": (60, 20, 0), "Chroma": (152, 76, 0), "Lumina2": (52, 78, 26), "ZImage": (60, 90, 30),
    "Krea2": (140, 84, 0), "QwenImage": (480, 240, 120), "Anima": (224, 56, 168), "HiDream": (256, 768, 48), "WAN21_T2V": (320, 80, 0),
    "Omnigen2": (128, 96, 32), "AuraFlow": (160, 120, 40), "SDXL": (560, 140, 0),
}  # fmt: skip
# {class: layers in the blocks without modulation}, counted likewise
IN_BLOCKS = {
    "ChromaRadiance": 228, "MageFlow": 144, "HiDreamO1": 252, "HunyuanImage21": 240, "WAN22_T2V": 300, "Kandinsky5Image": 500, "ErnieImage": 252,
    "Boogu": 376, "Ideogram4": 170, "Lens": 480, "JoyImage": 160, "SD3": 215, "SD15": 160, "CosmosT2IPredict2": 280,
}  # fmt: skip


def test_every_class_that_makes_images_is_described_or_left_out_with_a_reason():
    listed = set(RECORDED["listed"])
    assert listed == CLASSES.keys() | LEFT_OUT.keys()
    assert not CLASSES.keys() & LEFT_OUT.keys()
    assert CLASSES.keys() == TEXTS.keys() == RECORDED["classes"].keys()
    assert all(one.source for one in CLASSES.values())
    assert all(LEFT_OUT.values())


@pytest.mark.parametrize("name", COUNTED)
def test_roles_of_the_layers_of_todays_networks(name):
    roles = RECORDED["classes"][name]["roles"]
    assert tuple(roles.get(role, 0) for role in ("attention", "mlp", "modulation")) == COUNTED[name]


@pytest.mark.parametrize("name", IN_BLOCKS)
def test_what_runs_in_the_blocks_trains(name):
    roles = RECORDED["classes"][name]["roles"]
    assert roles["attention"] + roles["mlp"] == IN_BLOCKS[name]


def test_the_tables_of_the_document_are_those_of_the_record():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert render(text, tables()) == text, "run python -m scripts.write_model_docs"


def test_the_template_of_wan_22_parts_the_noise_levels_where_its_experts_do():
    """Sigma 0.875, without a gap and without levels that both train."""
    objectives = [node["inputs"] for node in api_graph("train_wan22").values() if node["class_type"] == "LoomObjective"]
    edges = []
    for one in objectives:
        low, high = one.get("min_timestep", 0.0), one.get("max_timestep", 1.0)
        levels = NoiseLevels(law=Uniform(), shift=float(one["shift"]), low=low, high=high)
        ends = [levels.at(FlowMatching(), 8, 8, share).item() for share in (0.0, 1.0)]
        edges.append(pytest.approx(ends, abs=1e-6))
    assert edges == [[0.875, 1.0], [0.0, 0.875]]


@pytest.mark.parametrize(
    ("name", "family", "variant", "warned"),
    [
        ("noobai-vpred", "sdxl", "sdxl", "model.variant = 'sdxl-v'"),
        ("noobai-vpred", "sdxl", "sdxl-v", ""),
        ("noobai-eps", "sdxl", "sdxl", ""),
        ("merge_v_prediction", "sd", "sd1", "model.variant = 'sd1-v'"),
    ],
)
def test_a_file_that_only_its_name_says_predicts_v_is_warned_of(tmp_path, name, family, variant, warned):
    source = Source(path=tmp_path / f"{name}.safetensors", denoiser_files=())
    base = Base(source=source, family=families.get(family), variant=variant, device=torch.device("cpu"))
    said = " ".join(base.warnings())
    assert (warned in said) if warned else not said
