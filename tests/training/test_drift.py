"""Drift while training: how far the base's predictions for prompts without the trigger have moved."""

from dataclasses import replace

import pytest
import torch

from lora_loom.trainer.diffusion.loss import draw_noise
from lora_loom.trainer.runs.headless import dataset_batches, prepare, run_folder, train
from lora_loom.trainer.training.held_out import MOST_OF_DRIFT, HeldOut, drift_from_base
from tests.conftest import SilentHost, make_config
from tests.training.test_loop import LOSS, ToyBatches, ToyDenoiser
from tests.training.test_preservation import moved, preserving


def single(number):
    batch = ToyBatches().at(2)
    other = batch.latents_BCHW + 0.1 * number
    return replace(preserving(slots=(0,), batch=batch), latents_BCHW=other, names=(f"{number}.png",))


def test_drift_is_the_mean_squared_change_of_the_bases_predictions():
    """By hand, for two images at three levels; the base is asked once for each, then remembered."""
    denoiser = ToyDenoiser()
    state, kept = moved(denoiser), {}
    held = HeldOut(batches=[single(0), single(1)], timesteps=3, levels=LOSS.noise_levels)
    expected = []
    for number, batch in enumerate(held.batches):
        for index, position in enumerate(held.positions()):
            sigma = held.levels.sigma(denoiser.objective, 3, 3, torch.tensor([position]))
            noise = draw_noise(tuple(batch.latents_BCHW.shape[1:]), held.noise_source(batch, number, index))
            noisy = denoiser.objective.add_noise(batch.latents_BCHW, noise[None], sigma)
            with torch.no_grad():
                with_adapter = denoiser.predict(noisy, sigma, batch.preserved.conditioning)
                with state.adapter.disabled():
                    base = denoiser.predict(noisy, sigma, batch.preserved.conditioning)
            expected.append((with_adapter - base).square().mean().item())
    first = drift_from_base(denoiser, held, kept, state.adapter.disabled)
    assert first == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    calls = denoiser.calls
    assert drift_from_base(denoiser, held, kept, state.adapter.disabled) == first
    assert denoiser.calls - calls == 6, "the base's predictions are kept"
    for parameter in state.adapter.parameters().values():
        parameter.data.zero_()
    assert drift_from_base(denoiser, held, kept, state.adapter.disabled) == 0
    many = replace(held, batches=[single(n) for n in range(MOST_OF_DRIFT + 3)])
    calls = denoiser.calls
    drift_from_base(denoiser, many, {}, state.adapter.disabled)
    assert denoiser.calls - calls == 2 * 3 * MOST_OF_DRIFT, "no more images than that"


def drifts(output, **options):
    config = make_config(
        "sd",
        output,
        data={"validation_split": 0.34},
        training={"steps": 12, "save_every": 6, "batch_size": 2},
        optimizer={"learning_rate": 3e-3},
    )
    config = replace(config, dataset=(replace(config.dataset[0], trigger="sks", class_prompt="a class", **options),))
    host = SilentHost()
    train(config, host)
    folder = run_folder(config)
    recorded = {line["step"]: line["drift"] for line in folder.read_metrics() if "drift" in line}
    assert {step: values["drift"] for step, values in host.measures.items()} == recorded
    assert folder.read()["drift"] == recorded[12]
    return recorded


def test_a_run_records_its_drift_and_the_base_as_teacher_holds_it_down(tmp_path):
    free, held = drifts(tmp_path / "free"), drifts(tmp_path / "held", teacher="base")
    assert list(free) == [0, 6, 12]
    assert free[0] == held[0] == 0
    assert 0 < held[12] < 0.7 * free[12]


def test_class_prompts_of_held_out_images_change_nothing_that_was_fixed(tmp_path):
    """The words are encoded for held-out images alone, and a run that was begun without them goes on."""
    config = make_config("sd", tmp_path, data={"validation_split": 0.34})
    named = replace(config, dataset=(replace(config.dataset[0], trigger="sks", class_prompt="a class"),))
    plain = replace(config, dataset=(replace(config.dataset[0], trigger="sks"),))
    first, second = (prepare(one, SilentHost()).dataset for one in (plain, named))
    assert first.digest == second.digest
    assert set(second.captions) - set(first.captions) <= {
        caption.replace("sks", "a class") for caption in first.captions
    } | {"a class"}
    train(plain, SilentHost())
    assert train(named, SilentHost()).state == "finished"
    prepared = prepare(named, SilentHost())
    assert dataset_batches(prepared, prepared.dataset.held_out).single(0).preserved is not None
    assert dataset_batches(prepared, prepared.dataset.training).single(0).preserved is None
