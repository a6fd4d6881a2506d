"""Edit models: reference images go from their folder through the cache into the batch, and the network looks at them."""

import json
import shutil

import pytest
import torch
from PIL import Image

from lora_loom.trainer import families
from lora_loom.trainer.data.batches import make_plan
from lora_loom.trainer.data.encode import reference_geometry, views
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.families.source import open_source
from lora_loom.trainer.run import build_cache, dataset_batches, prepare, train
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
    assert not reference_geometry(upright).flip
    assert reference_geometry(mirrored).flip
    assert reference_geometry(upright).target == reference_geometry(mirrored).target


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
    with pytest.raises(ConfigError, match=r"flux dev takes no reference images; .* set model\.variant = 'kontext'"):
        prepare(make_config("flux", tmp_path, dataset=dataset), SilentHost())
    with pytest.raises(ConfigError, match=r"sd sd1 takes no reference images; .* use an edit model"):
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
