"""A cell of the command line carries a graph that ComfyUI opens: every link leads somewhere, the recipe's values are in it."""

import json

import pytest
from PIL import Image

from lora_loom.trainer.base_model import open_base
from lora_loom.trainer.config.run import GuidanceConfig
from lora_loom.trainer.families.common.comfy_loaders import loaders
from lora_loom.trainer.runs.headless import train
from lora_loom.trainer.sweep.cells import plan_cells
from lora_loom.trainer.sweep.run import graphs_of, make_axes, make_renderings, sweep
from tests.conftest import FAMILIES, SilentHost, make_config, pictures, tiny_folder

CASES = [
    *((family, "auto", 0) for family in FAMILIES),
    ("flux", "kontext", 1), ("flux", "kontext", 2),
    ("qwen_image", "qwen-image-edit", 1), ("qwen_image", "qwen-image-edit-plus", 1), ("qwen_image", "qwen-image-edit-plus", 3),
]  # fmt: skip
"""(family, variant, how many reference images are shown together)."""


def graphs(family, variant, shown, root, **sweep_options):
    """(cell, graph) of every cell of a small sweep without LoRAs."""
    options = {"prompts": ["a cat"], "negative": "blurred", "steps": 3, "seeds": "7", **sweep_options}
    if shown:
        options["references"] = [[str(pictures() / f"{number}.png") for number in range(1, shown + 1)]]
    config = make_config(
        family,
        root,
        model={"base": str(tiny_folder(family)), "variant": variant},
        sweep=options,
        output={"directory": str(root)},
    )
    base = open_base(config.model, config.text)
    axes = make_axes(config.sweep, (), 0)
    make = graphs_of(config, base, axes)
    settings = {setting.name: setting for setting in axes.guidance}
    cells = plan_cells(axes, make_renderings(config, base), root)
    return [(cell, json.loads(make(cell, None, settings[cell.guidance])["prompt"])) for cell in cells]


def check_links(graph):
    for name, made in graph.items():
        for value in made["inputs"].values():
            if isinstance(value, list):
                assert value[0] in graph, f"{name} is linked to {value[0]}, which is not there"


def test_text_without_padding_has_its_node(tmp_path):
    config = make_config("sd3", tmp_path, text={"t5_attention_mask": True})
    base = open_base(config.model, config.text)
    nodes, links = loaders(base.source, base.family.comfy, base.reading)
    assert nodes[links["clip"][0]] == {
        "class_type": "T5TokenizerOptions",
        "inputs": {"clip": ["clip", 0], "min_padding": 0, "min_length": 0},
    }
    assert loaders(base.source, base.family.comfy, open_base(config.model).reading)[1]["clip"] == ["clip", 0]


@pytest.mark.parametrize(("family", "variant", "shown"), CASES)
def test_every_family_has_a_graph(family, variant, shown, tmp_path):
    [(cell, graph)] = graphs(family, variant, shown, tmp_path, guidance=[{"method": "apg", "scale": 3.0, "eta": 0.3}])
    check_links(graph)
    sampler = graph["cell_sampler"]["inputs"]
    assert (sampler["seed"], sampler["steps"], sampler["cfg"], sampler["sampler_name"]) == (7, 3, 3.0, "euler")
    assert graph["cell_apg"]["inputs"]["eta"] == 0.3
    assert (graph["cell_latent"]["inputs"]["width"], graph["cell_latent"]["inputs"]["height"]) == (64, 64)
    texts = {value for made in graph.values() for value in made["inputs"].values() if isinstance(value, str)}
    assert any(text.endswith("a cat") for text in texts)
    assert any(text.endswith("blurred") for text in texts)
    names = [made["inputs"]["image"] for made in graph.values() if made["class_type"] == "LoadImage"]
    assert names == [f"{number}.png" for number in range(1, shown + 1)]
    looked_at = [made for made in graph.values() if made["class_type"] == "ReferenceLatent"]
    assert len(looked_at) == 2 * shown, "of the prompt and of the negative prompt"
    assert cell.prompt == "a cat"


def test_clip_skip_and_the_system_prompt_are_in_it(tmp_path):
    config = make_config("sd", tmp_path, text={"clip_skip": 2}, sweep={"prompts": ["a"]})
    base = open_base(config.model, config.text)
    axes = make_axes(config.sweep, (), 0)
    [cell] = plan_cells(axes, make_renderings(config, base), tmp_path)
    graph = json.loads(graphs_of(config, base, axes)(cell, None, GuidanceConfig())["prompt"])
    assert graph["skip"]["inputs"]["stop_at_clip_layer"] == -2
    assert graph["cell_positive"]["inputs"]["clip"] == ["skip", 0]
    [(_, lumina)] = graphs("lumina2", "auto", 0, tmp_path)
    assert "<Prompt Start> a cat" in lumina["cell_positive"]["inputs"]["text"]


def test_parentheses_mean_the_same_there(tmp_path):
    """ComfyUI takes them for weights, the command line only when asked to."""
    for weights, said in ((False, "a \\(red:1.2\\) cat"), (True, "a (red:1.2) cat")):
        config = make_config("sd", tmp_path, text={"prompt_weights": weights}, sweep={"prompts": ["a (red:1.2) cat"]})
        base = open_base(config.model, config.text)
        axes = make_axes(config.sweep, (), 0)
        [cell] = plan_cells(axes, make_renderings(config, base), tmp_path)
        graph = json.loads(graphs_of(config, base, axes)(cell, None, GuidanceConfig())["prompt"])
        assert graph["cell_positive"]["inputs"]["text"] == said


def test_the_pictures_of_a_sweep_carry_it(tmp_path):
    loras = tmp_path / "loras"
    config = make_config(
        "sd3", tmp_path, training={"steps": 2, "save_every": 2}, sweep={"prompts": ["a cat"], "steps": 1, "strengths": "0.7"},
        output={"directory": str(tmp_path), "loras": str(loras)},
    )  # fmt: skip
    train(config, SilentHost())
    base, lora = sweep(config, SilentHost()).cells
    for cell in (base, lora):
        with Image.open(cell.image) as image:
            graph = json.loads(image.info["prompt"])
            assert json.loads(image.info["lora_loom"])["id"] == cell.id
        check_links(graph)
        assert ("cell_lora" in graph) == (cell is lora)
    loader = graph["cell_lora"]["inputs"]
    assert (loader["strength_model"], loader["strength_clip"]) == (0.7, 0.7)
    assert (loras / loader["lora_name"]).is_file()
