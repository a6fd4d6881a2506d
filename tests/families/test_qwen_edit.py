"""Qwen-Image-Edit: the language model sees the reference, the network looks at its latents; headless from folder to strip."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lora_loom.trainer import families
from lora_loom.trainer.data.cache.keys import find_work, prompt_key, views
from lora_loom.trainer.data.order import make_plan
from lora_loom.trainer.errors import ConfigError, DataError
from lora_loom.trainer.families import qwen_image
from lora_loom.trainer.families.common.source import open_source
from lora_loom.trainer.families.common.text import qwen_text
from lora_loom.trainer.families.common.tiny import random_network
from lora_loom.trainer.runs.headless import build_cache, dataset_batches, prepare, train
from lora_loom.trainer.sweep.run import sweep
from scripts import toy_texts
from scripts.host_toys import TOYS, toy_inputs, toy_tensor
from tests.conftest import HOST_FIXTURES, SilentHost, make_config, pictures, tiny_folder

from .test_native_files import load, toy_conditioning

TEXTS = HOST_FIXTURES / "texts.safetensors"


@pytest.fixture
def before(tmp_path):
    """A reference for each of the six pictures."""
    folder = tmp_path / "before"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (90, 60), (40 * number, 90, 200 - 30 * number)).save(folder / f"{number}.png")
    return folder


def edit_config(root, before, **sections):
    dataset = [{"folder": str(pictures()), "references": str(before)}]
    model = {"base": str(tiny_folder("qwen_image")), "variant": "qwen-image-edit-plus"}
    return make_config("qwen_image", root, dataset=dataset, model=model, **sections)


def toy_language_model():
    """HF's class with the weights that ComfyUI's had when the fixture was recorded."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    rope = {"rope_type": "default", "rope_theta": toy_texts.LANGUAGE["rope_theta"], "mrope_section": toy_texts.MROPE}
    config = Qwen2_5_VLConfig(
        text_config={**toy_texts.LANGUAGE, "rope_parameters": rope, "rope_scaling": rope},
        vision_config={**toy_texts.VISION, "hidden_act": "silu"},
        image_token_id=45, vision_start_token_id=44, vision_end_token_id=47, video_token_id=46,
    )  # fmt: skip
    model = random_network(Qwen2_5_VLForConditionalGeneration, config, 0)
    with torch.no_grad():
        for key, tensor in model.model.state_dict().items():
            tensor.copy_(toy_tensor(key.replace("language_model.", "model."), tuple(tensor.shape)))
    return model


class Fixed:
    """A tokenizer that gives the fixture's tokens: template head, what announces a second picture, prompt and tail."""

    def __call__(self, wordings, **_):
        [wording] = wordings
        ids = {qwen_text.EDIT_HEAD: toy_texts.BEFORE[:-1], "p": toy_texts.AFTER[1:-1], "2": toy_texts.BETWEEN[1:-1], "1": [], qwen_text.TEMPLATE_TAIL: toy_texts.AFTER[-1:]}  # fmt: skip
        return {"input_ids": [ids[wording]]}


@pytest.mark.parametrize(
    ("name", "sizes"), [("qwen.hidden", [toy_texts.PICTURE]), ("qwen.two", [toy_texts.PICTURE, toy_texts.SECOND])]
)
def test_the_language_model_says_what_comfyuis_does_with_pictures(name, sizes):
    model = toy_language_model()
    model.config.vision_start_token_id, model.config.vision_end_token_id = toy_texts.BEFORE[-1], toy_texts.AFTER[0]
    text = qwen_text.QwenText(model, Fixed(), max_tokens=99, head_tokens=0, announce="{}")
    [mine] = text.encode_beside(["p"], [[toy_texts.picture(size) for size in sizes]])
    expected = load_file(TEXTS)[name][len(toy_texts.BEFORE) - 1 :]
    assert mine["text"].shape == expected.shape
    assert (mine["text"] - expected).norm() / expected.norm() < 1e-5


def test_the_templates_are_diffusers_own():
    """Read as text: importing the pipelines takes many seconds."""
    folder = Path(importlib.util.find_spec("diffusers").origin).parent / "pipelines" / "qwenimage"
    single, several = (
        (folder / f"pipeline_qwenimage_{name}.py").read_text(encoding="utf-8") for name in ("edit", "edit_plus")
    )
    head, tail = (part.replace("\n", "\\n") for part in (qwen_text.EDIT_HEAD, qwen_text.TEMPLATE_TAIL))
    assert f'"{head}<|vision_start|><|image_pad|><|vision_end|>{{}}{tail}"' in single
    assert f'"{head}{{}}{tail}"' in several
    assert "Picture {}: <|vision_start|>" in several


def test_positions_by_hand():
    """Three tokens, a picture of 1 x 2 tokens, two more: the text goes on after the picture's longer side."""
    patches = qwen_text.Patches(pixels_NP=torch.zeros(8, 1), grid_13=torch.tensor([[1, 2, 4]]), tokens=2)
    assert qwen_text.positions([3, patches, 2], 2)[:, 0].tolist() == [
        [0, 1, 2, 3, 3, 5, 6],
        [0, 1, 2, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 5, 6],
    ]


def test_a_folder_or_a_mark_in_the_file_says_that_it_is_an_edit_model(tmp_path):
    shutil.copytree(tiny_folder("qwen_image"), tmp_path / "base")
    for pipeline, variant in (
        ("QwenImagePipeline", "qwen-image"),
        ("QwenImageEditPipeline", "qwen-image-edit"),
        ("QwenImageEditPlusPipeline", "qwen-image-edit-plus"),
    ):
        (tmp_path / "base" / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
        assert families.choose("auto", "auto", open_source(str(tmp_path / "base")))[1] == variant
    shapes = {"txt_norm.weight": (8,), "transformer_blocks.0.img_mod.1.weight": (8, 8)}
    assert families.get("qwen_image").detect({**shapes, qwen_image.CLEAN_CLOCK: (0,)}) == "qwen-image-edit-plus"


def test_references_of_later_models_have_a_clock_of_their_own(tmp_path):
    """The mark in the file reaches the network: both references are told sigma = 0, and ComfyUI's class predicts the same."""
    toy, recorded = TOYS["qwen-edit-2511"], load_file(TEXTS.parent / "qwen-edit-2511.safetensors")
    record = json.loads((TEXTS.parent / "qwen-edit-plus.json").read_text())
    tensors = {key: toy_tensor(key, tuple(shape)) for key, shape in record["keys"].items()}
    errors = []
    for mark in ({qwen_image.CLEAN_CLOCK: torch.zeros(0)}, {}):
        save_file({**tensors, **mark}, tmp_path / "base.safetensors")
        family, denoiser = load(tmp_path / "base.safetensors")
        assert bool(denoiser.module.config.get("zero_cond_t", False)) == bool(mark)
        inputs = toy_inputs(toy)
        predicted = denoiser.predict(recorded["noisy"], inputs["sigma"], toy_conditioning(toy, family, inputs))
        denoised = denoiser.objective.to_denoised(recorded["noisy"], predicted, inputs["sigma"])
        errors.append(
            float((denoised - recorded["denoised"]).norm() / (recorded["noisy"] - recorded["denoised"]).norm())
        )
    assert errors[0] < 1e-5
    assert errors[1] > 1e-3, "without the mark another prediction"


def test_texts_are_kept_per_reference(tmp_path, before):
    config = edit_config(tmp_path, before)
    prepared = prepare(config, SilentHost())
    first, second = prepared.dataset.examples[:2]
    keys = {
        prompt_key(views(example)[0], caption, prepared.identity)
        for example in (first, second)
        for caption in ("", "a")
    }
    assert len(keys) == 4, "the same words beside another picture are another text"
    build_cache(prepared, SilentHost())
    assert build_cache(prepare(config, SilentHost()), SilentHost()).encoded == 0
    Image.new("RGB", (90, 60), "red").save(before / "1.png")
    again = prepare(config, SilentHost())
    work = find_work(again.cache, again.dataset, again.identity)
    assert {prompt.view.example.path.name for prompt in work.prompts.values()} == {"1.png"}
    assert {view.example.path.name for view in work.views.values()} == {"1.png"}
    assert len(work.prompts) == 2, "the caption and the empty prompt"


def test_a_batch_has_the_texts_of_its_references(tmp_path, before):
    prepared = prepare(edit_config(tmp_path, before), SilentHost())
    build_cache(prepared, SilentHost())
    batches = dataset_batches(prepared, prepared.dataset.training)
    made = batches.single(0).conditioning
    alone = prepared.base.load_encoders().text
    [plain] = alone.encode([prepared.dataset.examples[0].captions[0]])
    assert made["text"].shape[1] > len(plain["text"]) + 100, "14 x 14 tokens of the picture, more or less"
    assert made["reference"].shape[:2] == (1, 16)
    assert make_plan(prepared.dataset.training, 2, 0).per_epoch == prepared.plan.per_epoch


def test_training_and_sweeping_look_at_the_reference(tmp_path, before):
    """One run, then a sweep over two references; what the encoders and the network see decides the pictures."""
    references = [str(before / "0.png"), str(before / "5.png")]
    settings = {"prompts": ["a cat"], "references": references, "steps": 2, "guidance": [{"scale": 2.0}]}
    config = edit_config(
        tmp_path, before, sweep=settings, training={"steps": 2, "save_every": 0}, optimizer={"learning_rate": 0.1}
    )
    outcome = train(config, SilentHost())
    assert (outcome.state, outcome.max_relative_error < 5e-3) == ("finished", True)
    sheet = sweep(config, SilentHost(), [outcome.lora])
    assert [(cell.checkpoint, cell.reference) for cell in sheet.cells] == [
        ("base", "0.png"), ("base", "5.png"), ("run", "0.png"), ("run", "5.png"),
    ]  # fmt: skip
    assert len({cell.image.read_bytes() for cell in sheet.cells}) == 4
    assert sweep(config, SilentHost(), [outcome.lora]).rendered == 0
    Image.new("RGB", (90, 60), "red").save(before / "5.png")
    assert sweep(config, SilentHost(), [outcome.lora]).rendered == 2, "another picture under the same name"


def test_kontext_sweeps_with_references_too(tmp_path, before):
    settings = {"prompts": ["a cat"], "references": [str(before / "0.png"), str(before / "5.png")], "steps": 1}
    model = {"base": str(tiny_folder("flux")), "variant": "kontext"}
    config = make_config("flux", tmp_path, model=model, sweep=settings, training={"steps": 1})
    outcome = train(config, SilentHost())
    pixels = [cell.image.read_bytes() for cell in sweep(config, SilentHost(), [outcome.lora]).cells]
    assert len(set(pixels)) == 4


@pytest.mark.parametrize(
    ("family", "names", "error", "match"),
    [
        ("sd", ["0.png"], ConfigError, r"sweep\.references: sd sd1 does not accept reference images"),
        ("edit", ["missing.png"], DataError, r"missing\.png"),
        ("edit", ["0.png", "0.png"], ConfigError, "same file name"),
    ],
)
def test_references_that_cannot_be(tmp_path, before, family, names, error, match):
    settings = {"prompts": ["a"], "references": [str(before / name) for name in names]}
    config = (
        make_config("sd", tmp_path, sweep=settings) if family == "sd" else edit_config(tmp_path, before, sweep=settings)
    )
    with pytest.raises(error, match=match):
        sweep(config, SilentHost(), [tmp_path / "no.safetensors"])
