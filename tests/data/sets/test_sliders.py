"""Strengths of sliders in the dataset files of other trainers."""

from lora_loom.trainer.data.sets.dataset_file import gather_sets


def test_strengths_of_sd_scripts_and_simpletuner_are_taken(tmp_path):
    (tmp_path / "young").mkdir()
    kohya, simple = tmp_path / "kohya.toml", tmp_path / "backend.json"
    kohya.write_text(
        '[[datasets]]\nnetwork_multiplier = -1.0\n[[datasets.subsets]]\nimage_dir = "young"\n[[datasets]]\n[[datasets.subsets]]\nimage_dir = "young"\n'
    )
    simple.write_text(
        '[{"id": "a", "type": "local", "instance_data_dir": "young", "slider_strength": -0.5, "crop": false, "resolution": 512}]'
    )
    assert [one.strength for one in gather_sets([], [str(kohya)]).sets] == [-1.0, 1.0]
    assert [one.strength for one in gather_sets([], [str(simple)]).sets] == [-0.5]
