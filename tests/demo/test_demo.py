"""`lora-loom demo` teaches the concept, and says so only when it did."""

import hashlib

import pytest
from PIL import Image

from lora_loom.trainer.demo import demo
from lora_loom.trainer.demo.concept import concept_score
from lora_loom.trainer.demo.demo import (
    HELD_OUT,
    IMAGES,
    LOSS_MARGIN,
    SCENES,
    SCORE_MARGIN,
    Lesson,
    run_demo,
    write_data,
)
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
    trained, measured = (
        {path.read_text() for path in (tmp_path / name).glob("*.txt")} for name in ("images", "held_out")
    )
    assert not trained & measured, "no background is both trained on and measured"


def test_the_images_of_version_0_1_are_those_that_the_figures_of_bench_compare_with(tmp_path):
    write_data(tmp_path, 0, wide=True)
    pixels = hashlib.sha256()
    for path in sorted(tmp_path.glob("*/*.png")):
        with Image.open(path) as image:
            pixels.update(path.name.encode() + image.tobytes())
    assert pixels.hexdigest()[:16] == "b9d4f9849775808e"


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A whole demo, and where it lies."""
    folder = tmp_path_factory.mktemp("demo")
    return run_demo(folder, SilentHost()), folder


def test_the_demo_learns(taught):
    result, _ = taught
    assert result.values["loss_fall"] >= LOSS_MARGIN
    assert result.values["score_rise"] >= SCORE_MARGIN
    assert list(result.values["scores"]) == ["base", "step 50", "step 100", "step 150", "step 200"]
    for path in result.values["strips"]:
        with Image.open(path) as picture:
            assert picture.width > 5 * 128


def test_a_demo_that_learned_too_little_fails(taught, monkeypatch):
    """The same lesson, measured from what lies there, against a bar that it does not reach."""
    monkeypatch.setattr(demo, "SCORE_MARGIN", 0.99)
    with pytest.raises(RunError, match=r"(?s)loss fell by 8\d.*needed.*did not learn the toadstool"):
        run_demo(taught[1], SilentHost())


def test_another_learning_rate_reaches_the_run(taught):
    with pytest.raises(RunError, match=r"optimizer\.learning_rate: 0\.002 -> 1e-12"):
        run_demo(taught[1], SilentHost(), learning_rate=1e-12)


@pytest.mark.slow
def test_a_learning_rate_that_teaches_nothing_fails_the_demo(tmp_path):
    with pytest.raises(RunError, match="did not learn"):
        run_demo(tmp_path, SilentHost(), learning_rate=1e-12)


@pytest.mark.parametrize(("loss", "score", "learned"), [(0.3, 0.95, True), (0.6, 0.95, False), (0.3, 0.6, False)])
def test_both_numbers_must_reach_their_bar(loss, score, learned):
    lesson = Lesson(
        losses={0: 1.0, 100: 0.9, 200: loss},
        scores={"base": 0.1, "step 100": 0.2, "step 200": score},
        strips=(),
        verdict="",
    )
    assert lesson.learned == learned
    assert lesson.values()["held_out_final"] == loss


def test_the_run_of_an_earlier_version_is_moved_aside_and_one_of_this_version_stays(tmp_path):
    run, host = tmp_path / "runs" / "demo", SilentHost()
    run.mkdir(parents=True)
    (run / "run.json").write_text("earlier")
    demo._make_way(tmp_path, host)
    assert (tmp_path / "runs" / "demo-1" / "run.json").read_text() == "earlier"
    assert not run.exists()
    run.mkdir()
    demo._make_way(tmp_path, host)
    assert run.exists(), "it is this version's own: it is continued"
    (tmp_path / demo.MADE_WITH).write_text("{damaged")
    demo._make_way(tmp_path, host)
    assert (tmp_path / "runs" / "demo-2").is_dir()
    assert (tmp_path / "runs" / "demo-1" / "run.json").read_text() == "earlier", "nothing is deleted"
