"""How samples are scored while training, by a CLIP, and the curve of image similarity that a run keeps."""

import json

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lora_loom.trainer.data.clip import ClipFiles, cosines, unit_rows
from lora_loom.trainer.data.intervals import mean_interval
from lora_loom.trainer.data.sample_scores import SampleScores, evenly, recorded_likeness, scalars_of, scores_text
from lora_loom.trainer.errors import ModelFileError
from lora_loom.trainer.runs.headless import prepare, run_folder, train
from lora_loom.trainer.runs.run_folder import LIKENESS_FILE
from lora_loom.trainer.score.curve import likeness_curve
from lora_loom.trainer.score.image_statistics import StatisticsEncoder
from lora_loom.trainer.score.run import score_sheet
from lora_loom.trainer.storage.fingerprint import tensors_digest
from lora_loom.trainer.storage.tensor_file import read_lora
from lora_loom.trainer.sweep.run import sweep
from lora_loom.trainer.training.early_stopping import recommended
from tests.conftest import SilentHost, make_config


class MeanColour:
    """An encoder whose embedding is the mean colour."""

    name = "mean colour"

    def __init__(self):
        self.seen = []

    def images(self, paths):
        self.seen += paths
        return unit_rows([np.asarray(Image.open(path).convert("RGB"), float).mean((0, 1)) + 1e-6 for path in paths])

    def texts(self, prompts):
        return []

    def compare(self, first, second):
        return cosines(first, second)


def picture(path, colour, weights="current"):
    texts = PngInfo()
    texts.add_itxt("weights", weights)
    Image.new("RGB", (8, 8), colour).save(path, pnginfo=texts)
    return path


RED, GREEN = (255, 0, 0), (0, 255, 0)


def test_likeness_is_the_mean_similarity_to_the_training_images_with_the_interval_of_its_mean(tmp_path):
    training = [picture(tmp_path / "a.png", RED), picture(tmp_path / "b.png", GREEN)]
    samples = [picture(tmp_path / f"s{n}.png", (255, 60 * n, 0)) for n in range(4)]
    encoder = MeanColour()
    scores = SampleScores("", encoder, [*training, training[0], tmp_path / "gone.png"])
    found = scores.of(samples)
    values = [(255 + 60 * n) / np.hypot(255, 60 * n) / 2 for n in range(4)]
    assert found["likeness"] == pytest.approx(np.mean(values), abs=1e-6)
    assert (found["likeness_low"], found["likeness_high"]) == pytest.approx(mean_interval(values), abs=1e-6)
    assert found["likeness_low"] < found["likeness"] < found["likeness_high"]
    assert found["likeness_by"] == "mean colour"
    assert scores_text(found) == f"likeness {found['likeness']:.4f}"
    assert set(scalars_of(found)) == {"likeness", "likeness_low", "likeness_high"}
    assert scores.of(samples) == found
    assert encoder.seen.count(training[0]) == 1, "training images are embedded once"


def test_samples_of_the_average_have_a_likeness_of_their_own_and_the_file_is_what_counts(tmp_path):
    samples = [picture(tmp_path / "s.png", RED), picture(tmp_path / "e.png", GREEN, "ema")]
    found = SampleScores("", MeanColour(), [picture(tmp_path / "t.png", RED)]).of(samples)
    assert (found["likeness"], found["likeness_ema"]) == pytest.approx((1, 0), abs=1e-5)
    assert "likeness_low" not in found, "one sample has no interval"
    [point] = recorded_likeness([{"step": 5, **found}, {"step": 6, "loss": 1.0}])
    assert point == {"step": 5, "likeness": found["likeness_ema"], "low": None, "high": None, "by": "mean colour"}


def test_nothing_is_scored_without_an_encoder_or_without_training_images(tmp_path):
    samples = [picture(tmp_path / "s.png", RED)]
    assert SampleScores("", None, samples).of(samples) == {}
    assert SampleScores("", MeanColour()).of(samples) == {}
    assert SampleScores("", MeanColour(), samples).of([]) == {}


def test_training_images_are_chosen_evenly():
    assert evenly(range(10), 3) == [0, 3, 6]
    assert evenly([1, 1, 2], 5) == [1, 2]
    assert evenly([], 5) == []


LINES = [{"step": step, "held_out": loss} for step, loss in ((0, 0.5), (10, 0.4), (20, 0.3))]
ALIKE = {"likeness": 0.712, "likeness_low": 0.65, "likeness_high": 0.77, "likeness_by": "CLIP"}


def test_the_recommendation_names_the_likeness_of_its_samples_and_of_the_runner_ups():
    plain = recommended(LINES, {10, 20})
    assert plain["likeness"] is None
    assert "similarity" not in plain["reason"]
    both = [*LINES, {"step": 20, **ALIKE}, {"step": 10, **ALIKE, "likeness": 0.7}]
    found = recommended(both, {10, 20})
    assert found["likeness"] == {"step": 20, "likeness": 0.712, "low": 0.65, "high": 0.77, "by": "CLIP"}
    assert "of step 20 to the training images: 0.712 (95% interval 0.650 to 0.770), those of step 10 0.700" in found["reason"]  # fmt: skip
    assert {name: found[name] for name in ("step", "lowest", "runner_up")} == {name: plain[name] for name in ("step", "lowest", "runner_up")}, "it decides nothing"  # fmt: skip


def test_samples_are_scored_by_their_prompts_while_training(tiny_clip, tmp_path):
    """CLIP-T of each sample, as the sweep's score calculates it; the run itself is the same."""
    how = {"prompts": ["a cat", "a dog"], "sample_steps": 2, "sample_every": 3}
    plain = train(make_config("sd", tmp_path / "plain", validation=how), SilentHost())
    config = make_config("sd", tmp_path / "scored", validation={**how, "clip_score": str(tiny_clip)})
    host = SilentHost()
    scored = train(config, host)
    lines = [line for line in run_folder(config).read_metrics() if "clip_score" in line]
    assert [line["step"] for line in lines] == [0, 3, 6]
    clip = ClipFiles(tiny_clip)
    files = sorted((run_folder(config).path / "samples").glob("step-000006-*.png"))
    cosines = [
        float(clip.images([file])[0] @ clip.texts([prompt])[0])
        for file, prompt in zip(files, how["prompts"], strict=True)
    ]
    assert lines[-1]["clip_score"] == pytest.approx(sum(cosines) / 2, abs=1e-5)
    assert "step 6: clip_score" in "\n".join(host.text)
    training = clip.images(prepare(config, SilentHost()).dataset.learnt_files)
    alike = clip.compare(clip.images(files), training).mean(axis=1)
    assert lines[-1]["likeness"] == pytest.approx(alike.mean(), abs=1e-5)
    assert (lines[-1]["likeness_low"], lines[-1]["likeness_high"]) == pytest.approx(
        mean_interval(list(alike)), abs=1e-5
    )
    curve = likeness_curve(run_folder(config))
    assert [(point["step"], point["source"]) for point in curve] == [(0, "samples"), (3, "samples"), (6, "samples")]
    assert tensors_digest(read_lora(str(plain.lora))) == tensors_digest(read_lora(str(scored.lora)))
    with pytest.raises(ModelFileError, match=r"validation.clip_score = .* holds no config.json"):
        train(make_config("sd", tmp_path / "wrong", validation={**how, "clip_score": str(tmp_path)}), SilentHost())


def test_a_sweep_that_an_encoder_scored_gives_the_run_a_curve(tiny_clip, tmp_path):
    shown = {"prompts": ["a circle"], "seeds": "0,1,2", "steps": 1, "strengths": "1, 0.5"}
    config = make_config(
        "sd",
        tmp_path,
        sweep=shown,
        training={"steps": 4, "save_every": 2},
        data={"resolution": 64, "validation_split": 0.34},
    )
    train(config, SilentHost())
    sweep(config, SilentHost())
    run = run_folder(config)
    score_sheet(run.path / "strips", SilentHost())
    assert likeness_curve(run) == [], "statistics make no curve"
    done = score_sheet(run.path / "strips", SilentHost(), encoder=str(tiny_clip))
    curve = likeness_curve(run)
    assert [(point["step"], point["source"], point["by"]) for point in curve] == [(step, "sweep", f"CLIP ({tiny_clip.name})") for step in (0, 2, 4)]  # fmt: skip
    rows = {row.label: row.values["training_likeness"] for row in done.score.rows}
    for point, label in zip(curve, ("base", "step 2, strength 1", "step 4, strength 1"), strict=True):
        assert point["likeness"] == pytest.approx(rows[label].mean)
        assert (point["low"], point["high"]) == pytest.approx((rows[label].low, rows[label].high))
    assert f"Image similarity: {done.score.recommendation.leading} " in done.score.recommendation.text
    (run.path / LIKENESS_FILE).write_text(json.dumps({"points": [{"step": 1}]}))
    assert likeness_curve(run) == [], "a file that somebody has edited is no curve"


def test_statistics_have_the_measure_of_an_encoder(tmp_path):
    same = [picture(tmp_path / "s.png", RED), picture(tmp_path / "t.png", RED)]
    found = SampleScores("", StatisticsEncoder(), same[1:]).of(same[:1])
    assert found["likeness"] == pytest.approx(1)
