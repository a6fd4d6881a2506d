"""Edit models: reference images go from their folder through the cache into the batch, and the network looks at them."""

import json
import shutil

import pytest
import torch
from PIL import Image

from lora_loom.trainer import families
from lora_loom.trainer.data.cache.keys import reference_geometries, views
from lora_loom.trainer.data.cache.store import latent_key
from lora_loom.trainer.data.images.load import file_digest
from lora_loom.trainer.data.order import make_plan
from lora_loom.trainer.errors import ConfigError, DataError
from lora_loom.trainer.families.common.source import open_source
from lora_loom.trainer.runs.headless import build_cache, dataset_batches, prepare, train
from lora_loom.trainer.sweep.run import sweep
from tests.conftest import SilentHost, make_config, pictures, tiny_folder


@pytest.fixture
def before(tmp_path):
    """A reference for each of the six pictures, in two shapes."""
    folder = tmp_path / "before"
    folder.mkdir()
    for number in range(6):
        colour = (40 * number, 90, 200 - 30 * number)
        Image.new("RGB", (160, 80) if number % 3 == 0 else (90, 90), colour).save(folder / f"{number}.png")
    return folder


def edit_config(tmp_path, before, **sections):
    dataset = [{"folder": str(pictures()), "references": str(before), "flip": True}]
    model = {"base": str(tiny_folder("flux")), "variant": "kontext"}
    return make_config("flux", tmp_path, dataset=dataset, model=model, data={"bucket_step": 16}, **sections)


def test_batches_carry_references_of_one_size(tmp_path, before):
    prepared = prepare(edit_config(tmp_path, before), SilentHost())
    build_cache(prepared, SilentHost())
    batches = dataset_batches(prepared, prepared.dataset.training)
    seen = set()
    for position in range(prepared.plan.per_epoch):
        batch = batches.at(position)
        reference = batch.conditioning["reference"]
        assert reference.shape[:2] == (batch.size, 16)
        seen.add((tuple(batch.latents_BCHW.shape[2:]), tuple(reference.shape[2:])))
    assert len(seen) == 4, "two shapes of pictures times two shapes of references, never mixed"


def test_the_mirrored_picture_has_a_mirrored_reference(tmp_path, before):
    prepared = prepare(edit_config(tmp_path, before), SilentHost())
    upright, mirrored = views(prepared.dataset.training[0])
    [straight], [turned] = reference_geometries(upright), reference_geometries(mirrored)
    assert (straight.flip, turned.flip) == (False, True)
    assert straight.target == turned.target


def test_another_reference_is_encoded_again(tmp_path, before):
    config = edit_config(tmp_path, before)
    build_cache(prepare(config, SilentHost()), SilentHost())
    assert build_cache(prepare(config, SilentHost()), SilentHost()).encoded == 0
    Image.new("RGB", (90, 90), "red").save(before / "1.png")
    assert build_cache(prepare(config, SilentHost()), SilentHost()).encoded == 2, "upright and mirrored"


def test_training_looks_at_the_reference(tmp_path, before):
    train(edit_config(tmp_path / "a", before), first := SilentHost())
    for path in before.glob("*.png"):
        with Image.open(path) as image:
            Image.new("RGB", image.size, "black").save(path)
    train(edit_config(tmp_path / "b", before), second := SilentHost())
    assert len(first.steps) == len(second.steps) == 6
    assert first.steps[0].loss != second.steps[0].loss


def test_without_references_plans_are_as_before(tmp_path):
    prepared = prepare(make_config("flux", tmp_path, data={"bucket_step": 16}), SilentHost())
    plan = make_plan(prepared.dataset.training, 2, 0)
    assert len(plan.buckets) == 2
    assert [len(bucket) for bucket in plan.buckets] == [3, 3]


def test_a_model_that_takes_none(tmp_path, before):
    dataset = [{"folder": str(pictures()), "references": str(before)}]
    with pytest.raises(
        ConfigError, match=r"flux dev does not accept reference images; .* set model\.variant = 'kontext'"
    ):
        prepare(make_config("flux", tmp_path, dataset=dataset), SilentHost())
    with pytest.raises(ConfigError, match=r"sd sd1 does not accept reference images; .* use an edit model"):
        prepare(make_config("sd", tmp_path, dataset=dataset), SilentHost())


def test_the_reference_changes_the_prediction_and_the_answer_keeps_the_pictures_size():
    tiny = families.get("flux").tiny()
    cond = dict(families.get("flux").condition(tiny.encoders.text.encode(["cat"]), [], 1.0))
    noisy = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = tiny.denoiser.predict(noisy, torch.tensor([0.5]), cond)
    cond["reference"] = torch.randn(1, 16, 4, 12, generator=torch.Generator().manual_seed(1))
    shown = tiny.denoiser.predict(noisy, torch.tensor([0.5]), cond)
    assert shown.shape == plain.shape
    assert not torch.allclose(shown, plain, atol=1e-3)


def test_a_folder_says_that_it_is_kontext(tmp_path):
    shutil.copytree(tiny_folder("flux"), tmp_path / "base")
    (tmp_path / "base" / "model_index.json").write_text(json.dumps({"_class_name": "FluxKontextPipeline"}))
    assert families.choose("auto", "auto", open_source(str(tmp_path / "base")))[1] == "kontext"
    assert families.choose("auto", "dev", open_source(str(tmp_path / "base")))[1] == "dev"


@pytest.fixture
def style(tmp_path):
    """A second reference for each of the six pictures."""
    folder = tmp_path / "style"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (70, 100), (200, 30 * number, 80)).save(folder / f"{number}.png")
    return folder


def paired(tmp_path, folders, variant="kontext", family="flux", **sections):
    dataset = [{"folder": str(pictures()), "references": [str(folder) for folder in folders]}]
    model = {"base": str(tiny_folder(family)), "variant": variant}
    return make_config(family, tmp_path, dataset=dataset, model=model, **sections)


@pytest.mark.parametrize(("family", "variant"), [("flux", "kontext"), ("qwen_image", "qwen-image-edit-plus")])
def test_two_references_are_shown_together(tmp_path, before, style, family, variant):
    """Their order counts, a changed one is encoded again, and a run and its pictures look at both."""
    references = [[str(before / "0.png"), str(style / "0.png")], str(before / "0.png")]
    pictures_of = {"prompts": ["a cat"], "references": references, "sample_steps": 1, "sample_every": 2}
    settings = {"prompts": ["a cat"], "references": references, "steps": 1}
    config = paired(
        tmp_path, [before, style], variant, family,
        validation=pictures_of, sweep=settings, training={"steps": 2, "save_every": 0},
    )  # fmt: skip
    prepared = prepare(config, SilentHost())
    build_cache(prepared, SilentHost())
    batch = dataset_batches(prepared, prepared.dataset.training).single(0)
    first, second = (batch.conditioning[name] for name in ("reference", "reference_2"))
    assert first.shape[:2] == second.shape[:2] == (1, 16)
    swapped = prepare(paired(tmp_path, [style, before], variant, family), SilentHost())
    build_cache(swapped, SilentHost())
    other = dataset_batches(swapped, swapped.dataset.training).single(0)
    assert torch.equal(other.conditioning["reference"], second)
    assert torch.equal(other.conditioning["reference_2"], first)
    assert other.conditioning["text"].shape == batch.conditioning["text"].shape
    assert torch.equal(other.conditioning["text"], batch.conditioning["text"]) == (family == "flux")
    Image.new("RGB", (70, 100), "blue").save(style / "3.png")
    assert build_cache(prepare(config, SilentHost()), SilentHost()).encoded == (1 if family == "flux" else 3)

    outcome = train(config, SilentHost())
    assert (outcome.state, outcome.max_relative_error < 5e-3) == ("finished", True)
    assert len({path.read_bytes() for path in prepared.folder.path.glob("samples/step-000002-?.png")}) == 2
    sheet = sweep(config, SilentHost(), [outcome.lora])
    assert [cell.reference for cell in sheet.cells] == ["0.png + 0.png", "0.png"] * 2
    assert len({cell.image.read_bytes() for cell in sheet.cells}) == 4


def test_more_references_than_the_model_looks_at(tmp_path, before, style):
    edit = {"variant": "qwen-image-edit", "family": "qwen_image"}
    message = r"dataset\.references uses 2 images together, and qwen_image qwen-image-edit accepts 1 at most: set model\.variant = 'qwen-image-edit-plus'"
    with pytest.raises(ConfigError, match=message):
        prepare(paired(tmp_path, [before, style], **edit), SilentHost())
    shown = [[str(before / "0.png"), str(style / "0.png")]]
    with pytest.raises(ConfigError, match=r"validation\.references uses 2 images together"):
        prepare(paired(tmp_path, [before], **edit, validation={"prompts": ["a"], "references": shown}), SilentHost())
    with pytest.raises(ConfigError, match=r"sweep\.references uses 2 images together"):
        sweep(paired(tmp_path, [before], **edit, sweep={"prompts": ["a"], "references": shown}), SilentHost())
    with pytest.raises(ConfigError, match=r"validation\.references\[0\] is empty"):
        prepare(paired(tmp_path, [before], **edit, validation={"prompts": ["a"], "references": [[]]}), SilentHost())
    (style / "4.png").unlink()
    with pytest.raises(DataError, match=r"has no counterpart for dataset\.references"):
        prepare(paired(tmp_path, [before, style]), SilentHost())


def test_one_reference_keeps_its_key(tmp_path, before):
    """Caches of before several could be shown go on being found."""
    [view, _] = views(prepare(edit_config(tmp_path, before), SilentHost()).dataset.examples[0])
    shown = file_digest(before / "0.png")
    assert view.key("v") == latent_key(view.example.digest, view.geometry, "white", ["", shown], "v")


def test_an_edit_model_that_is_shown_nothing_says_so(tmp_path, before):
    """It can be trained and rendered so, but hardly anybody means it."""
    model = {"base": str(tiny_folder("flux")), "variant": "kontext"}
    config = make_config("flux", tmp_path, model=model, sweep={"prompts": ["a"], "steps": 1}, training={"steps": 1})
    outcome = train(config, host := SilentHost())
    assert any("flux kontext is an edit model and dataset.references names no images" in line for line in host.text)
    sweep(config, host := SilentHost(), [outcome.lora])
    assert any("sweep.references names no images" in line for line in host.text)
    with pytest.raises(DataError, match=r"data\.strict: flux kontext is an edit model"):
        prepare(make_config("flux", tmp_path, model=model, data={"strict": True}), SilentHost())
    prepare(edit_config(tmp_path, before), host := SilentHost())
    assert not any("is an edit model" in line for line in host.text)
