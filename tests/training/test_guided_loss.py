"""Guided losses: the two forms by a worked example, what takes part in them, and that they keep what the plain loss loses."""

import json
import shutil

import pytest
import torch

from lora_loom.trainer.config.run import ObjectiveConfig
from lora_loom.trainer.diffusion.guided_loss import guided_pair
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.known_models.row import tell, warning_of
from lora_loom.trainer.known_models.rows import ROWS
from lora_loom.trainer.runs.headless import train
from lora_loom.trainer.seeding import StepKey
from lora_loom.trainer.training.held_out import HeldOut, held_out_losses
from lora_loom.trainer.training.step import LossSettings, train_step
from lora_loom.trainer.types import Batch
from tests.conftest import SilentHost, make_config, pictures
from tests.training.test_loop import LOSS, ToyBatches, ToyDenoiser, training

PLACE = StepKey(seed=0, step=0, micro_batch=0)


def guided(form, scale=4.0):
    return LossSettings(noise_levels=LOSS.noise_levels, guided=form, guided_scale=scale)


def batch(flags=(True, True), **changes):
    plain = ToyBatches().at(0)
    made = {**plain.__dict__, "unconditional": {"text": torch.zeros(2)}, "guided_B": torch.tensor(flags), **changes}
    return Batch(**made)


def test_the_forms_by_a_worked_example():
    """p = 2, v = 3, u = 1 and s = 4: t = 1 + 4 (3 - 1) = 9, r = (2 + 3 * 1) / 4 = 1.25."""
    p, v, u = (torch.tensor([value]) for value in (2.0, 3.0, 1.0))
    assert [one.item() for one in guided_pair("target", 4.0, p, v, u)] == [2.0, 9.0]
    assert [one.item() for one in guided_pair("output", 4.0, p, v, u)] == [1.25, 3.0]
    assert [one.item() for one in guided_pair("off", 4.0, p, v, u)] == [2.0, 3.0]
    with pytest.raises(ValueError, match="known are off, target, output"):
        guided_pair("other", 4.0, p, v, u)


@pytest.mark.parametrize("scale", [2.0, 4.0])
def test_the_output_form_is_the_target_form_over_the_square_of_the_scale(scale):
    made = {}
    for form in ("target", "output"):
        denoiser = ToyDenoiser()
        state = training(denoiser)
        for parameter in state.adapter.parameters().values():
            parameter.data += 0.1
        loss = train_step(denoiser, batch(), guided(form, scale), PLACE)
        loss.sum().backward()
        made[form] = [loss.detach(), *(p.grad for p in state.adapter.parameters().values())]
    for of_target, of_output in zip(*made.values(), strict=True):
        assert of_target.norm() > 0
        assert torch.allclose(of_target, of_output * scale**2, rtol=1e-4)


def test_a_model_that_predicts_what_guidance_makes_of_the_target_has_no_loss():
    """The optimum p = u + s (v - u) of both forms; the plain loss has another."""
    v, u = torch.randn(2, 1, 4, generator=torch.Generator().manual_seed(0)).unbind()
    best = u + 4 * (v - u)
    for form in ("target", "output"):
        one, other = guided_pair(form, 4.0, best, v, u)
        assert torch.allclose(one, other, atol=1e-6)
    assert not torch.allclose(best, v, atol=0.1)


@pytest.mark.parametrize("form", ["target", "output"])
def test_samples_with_a_dropped_caption_keep_the_plain_loss(form):
    denoiser = ToyDenoiser()
    plain = train_step(denoiser, ToyBatches().at(0), LOSS, PLACE)
    mixed = train_step(denoiser, batch((True, False)), guided(form), PLACE)
    assert mixed[1] == plain[1]
    assert mixed[0] != plain[0]
    calls = denoiser.calls
    nothing = Batch(**{**batch().__dict__, "unconditional": None, "guided_B": None})
    assert torch.equal(train_step(denoiser, nothing, guided(form), PLACE), plain)
    assert denoiser.calls == calls + 1, "and no second pass is taken for a batch without a caption"


def test_the_second_pass_is_the_models_own_with_the_lora_and_without_gradient():
    denoiser = ToyDenoiser()
    state = training(denoiser)
    for parameter in state.adapter.parameters().values():
        parameter.data += 0.1
    with_grad = []
    plain = denoiser.predict

    def predict(noisy, sigma, conditioning):
        out = plain(noisy, sigma, conditioning)
        with_grad.append((conditioning["text"].abs().sum().item() > 0, out.requires_grad))
        return out

    denoiser.predict = predict
    on = train_step(denoiser, batch(), guided("target"), PLACE)
    assert with_grad == [(False, False), (True, True)]
    with state.adapter.disabled():
        off = train_step(denoiser, batch(), guided("target"), PLACE)
    assert not torch.equal(on.detach(), off.detach())


def test_a_validation_loss_is_that_of_the_guided_prediction_whatever_the_form():
    single = batch(latents_BCHW=ToyBatches().at(0).latents_BCHW[:1], conditioning={"text": torch.ones(1)},
                   unconditional={"text": torch.zeros(1)}, weight_B=torch.ones(1), names=("a",), guided_B=torch.tensor([True]))  # fmt: skip
    denoiser = ToyDenoiser()
    measured = HeldOut(batches=[single], timesteps=2, levels=LOSS.noise_levels, guided_scale=4.0)
    plain = HeldOut(batches=[single], timesteps=2, levels=LOSS.noise_levels)
    assert held_out_losses(denoiser, measured) != held_out_losses(denoiser, plain)


RUN = {"training": {"steps": 2, "batch_size": 2, "save_every": 2}, "data": {"validation_split": 0.2}}


def go(root, **objective):
    host = SilentHost()
    config = make_config("sd3", root, **RUN, objective=objective)
    train(config, host)
    record = json.loads((root / "run/run.json").read_text())
    return host, record


def test_a_run_says_what_it_costs_and_keeps_its_scale(tmp_path):
    host, record = go(tmp_path, guided_loss="output")
    assert any("guided loss (output form, scale 4): each forward pass takes another one" in text for text in host.text)
    assert any("sd3 sd3 is not known to be distilled: a guided loss" in text for text in host.text)
    assert record["fixed"]["objective"]["guided_scale"] == 4.0
    plain, _ = go(tmp_path / "plain")
    assert [s.loss for s in host.steps] != [s.loss for s in plain.steps]
    assert host.measures[0]["held_out"] != plain.measures[0]["held_out"]


def test_images_without_a_caption_have_no_second_pass(tmp_path):
    """With no caption at all, the run is the plain one bit for bit."""
    folder = tmp_path / "pictures"
    shutil.copytree(pictures(), folder)
    for text in folder.glob("*.txt"):
        text.write_text("")
    made = []
    for form in ("off", "target"):
        host = SilentHost()
        dataset = [{"folder": str(folder), "empty_captions": True}]
        train(make_config("sd3", tmp_path / form, **RUN, dataset=dataset, objective={"guided_loss": form}), host)
        made.append([step.loss for step in host.steps])
    assert made[0] == made[1]


def test_settings_that_do_nothing_or_cannot_work_are_refused(tmp_path):
    with pytest.raises(
        ConfigError, match=r"guided_scale = 3\.0 would do nothing: only guided_loss = 'target' or 'output'"
    ):
        go(tmp_path, guided_scale=3.0)
    with pytest.raises(ConfigError, match=r"objective\.guided_scale = 1\.0: use a number above 1"):
        ObjectiveConfig(guided_loss="target", guided_scale=1.0)
    with pytest.raises(ConfigError, match=r"guided_loss = 'guided'"):
        ObjectiveConfig(guided_loss="guided")


def test_it_is_said_which_models_a_guided_loss_suits():
    hidream = tell(ROWS, "HiDream", {}, ["hidream_i1_dev"])
    turbo = tell(ROWS, "Lumina2", {"z_image_modulation": True}, ["z_image_turbo"])
    dev = tell(ROWS, "Flux", {"guidance_embed": True}, [])
    assert "use the guided loss" in warning_of(hidream)
    assert not warning_of(hidream, guided=True)
    assert "distilled to few steps, which a guided loss does not keep: use a training adapter" in warning_of(
        turbo, guided=True
    )
    assert "two remedies for the same" in warning_of(turbo, guided=True, adapter=True)
    assert "takes its guidance as an input" in warning_of(dev, guided=True)
    assert hidream.row.guided.value == 5.0
