"""`lora-loom demo` teaches the concept, and says so only when it did."""

import pytest
from PIL import Image

from lora_loom.trainer.demo.concept import concept_score
from lora_loom.trainer.demo.demo import HELD_OUT, IMAGES, LOSS_MARGIN, SCENES, SCORE_MARGIN, run_demo, write_data
from lora_loom.trainer.demo.scenes import BACKGROUNDS, random_concept_scene, random_scene
from lora_loom.trainer.errors import RunError
from tests.conftest import SilentHost


def test_the_concept_judge_tells_toadstools_from_scenes():
    import random

    rng = random.Random(5)
    toadstools = [concept_score(random_concept_scene(rng, name).draw()) for name in BACKGROUNDS]
    others = [concept_score(random_scene(rng).draw()) for _ in range(48)]
    assert min(toadstools) > max(others) + 0.1


def test_the_data_is_a_folder_of_captioned_pngs(tmp_path):
    write_data(tmp_path, 0)
    for name, count in {"images": IMAGES, "scenes": SCENES, "held_out": HELD_OUT}.items():
        pictures = sorted((tmp_path / name).glob("*.png"))
        assert len(pictures) == count
        assert all(path.with_suffix(".txt").read_text().strip() for path in pictures)
    assert "toadstool" in next((tmp_path / "images").glob("*.txt")).read_text()


def test_the_demo_learns(tmp_path):
    result = run_demo(tmp_path, SilentHost())
    assert result.values["loss_fall"] >= LOSS_MARGIN
    assert result.values["score_rise"] >= SCORE_MARGIN
    assert list(result.values["scores"]) == ["base", "step 50", "step 100", "step 150", "step 200"]
    for path in result.values["strips"]:
        with Image.open(path) as picture:
            assert picture.width > 5 * 128


def test_a_learning_rate_that_teaches_nothing_fails_the_demo(tmp_path):
    with pytest.raises(RunError, match="did not learn"):
        run_demo(tmp_path, SilentHost(), learning_rate=1e-12)
