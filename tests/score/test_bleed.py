"""Bleed: whether prompts with one trigger show another concept's images."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lora_loom.trainer.data.intervals import mean_interval
from lora_loom.trainer.score.bleed import are_several, bleed, concept_of
from lora_loom.trainer.score.image_statistics import StatisticsEncoder
from lora_loom.trainer.score.report import to_text
from lora_loom.trainer.score.run import gather
from lora_loom.trainer.score.score import score
from tests.conftest import SilentHost
from tests.score.test_score import cells, losses

CAPTIONS = ["zib, a pot", "zib on a table", "zab, a pot"]
WORDS = ["zib", "zab"]


def test_a_text_belongs_to_the_only_trigger_in_it():
    assert [concept_of(text, WORDS) for text in ("a Zib", "zab", "zib and zab", "zibs", "")] == [
        "zib",
        "zab",
        "",
        "",
        "",
    ]
    assert are_several(CAPTIONS, WORDS)
    assert not are_several(CAPTIONS[:2], WORDS)
    assert not are_several(CAPTIONS, ["zib"])


def test_bleed_is_the_similarity_to_the_other_concept_beyond_that_of_the_own_images():
    """By hand: the images of zib have a similarity of 0.2 and 0.4 to that of zab, 0.3 in the mean."""
    among = np.array([[1.0, 0.9, 0.2], [0.9, 1.0, 0.4], [0.2, 0.4, 1.0]])
    likeness = np.array([[0.8, 0.8, 0.3], [0.5, 0.5, 0.7], [0.9, 0.5, 0.1], [0.0, 0.0, 0.0]])
    prompts = ["a zib", "a zib at night", "a zab", "a pot"]
    found = bleed(prompts, CAPTIONS, WORDS, likeness, among)
    assert found[:3] == [pytest.approx(0.0), pytest.approx(0.4), pytest.approx(0.7 - 0.3)]
    assert found[3] is None


def test_a_lora_that_mixes_its_concepts_is_told_by_its_bleed(tmp_path):
    training = []
    for number, colour in enumerate([(220, 20, 20), (200, 30, 30), (20, 20, 220), (30, 30, 200)]):
        training.append(tmp_path / f"t{number}.png")
        Image.new("RGB", (16, 16), colour).save(training[-1])
    red, blue, grey = (210, 25, 25), (25, 25, 210), (90, 90, 90)
    prompts = ("a zib", "a zab", "a pot")
    colours = {
        (lora, prompt): colour
        for lora, three in {
            0: (grey, grey, grey),
            1: (red, blue, grey),
            2: (blue, red, blue),
            3: (red, blue, grey),
        }.items()
        for prompt, colour in zip(prompts, three, strict=True)
    }
    made = cells(tmp_path, colours, prompts, seeds=(0, 1, 2))
    captions = ["zib", "zib", "zab", "zab"]
    found = gather(made, StatisticsEncoder(), training, None, WORDS, {}, [], SilentHost(), captions)
    done = score(made, replace(found, losses=losses(0.2)))
    rows = {row.label: row.values for row in done.rows}
    assert rows["step 20"]["bleed"].low > 0
    assert rows["step 10"]["bleed"].mean < 0.02
    assert rows["step 20"]["bleed"].mean > rows["step 10"]["bleed"].mean + 0.1
    assert rows["step 20"]["drift"].low > rows["step 10"]["drift"].high, "the class prompt became the concept"
    assert any(text.startswith("step 20: with one trigger") for text in done.recommendation.cautions)
    assert not any(text.startswith("step 10: with one trigger") for text in done.recommendation.cautions)
    assert "bleed between triggers" in to_text(done)
    one = score(made, replace(found, triggers=["zib"]))
    assert all("bleed" not in row.values for row in one.rows), "one concept alone cannot bleed"
    plain = [cell for cell in made if cell.prompt == "a pot"]
    assert any("bleed not measured" in note for note in score(plain, found).notes)


def test_the_interval_of_a_mean_holds_it_and_narrows_with_more_values():
    source = np.random.default_rng(1)
    few, many = source.normal(0.5, 0.1, 6).tolist(), source.normal(0.5, 0.1, 200).tolist()
    for values in (few, many):
        low, high = mean_interval(values)
        assert low < np.mean(values) < high
    assert np.diff(mean_interval(many))[0] < 0.5 * np.diff(mean_interval(few))[0]
