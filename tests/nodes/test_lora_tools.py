"""The nodes on LoRA files and checkpoints over a folder of LoRAs, without ComfyUI."""

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lora_loom.nodes import NODE_CLASS_MAPPINGS
from lora_loom.trainer.errors import ConfigError, ModelFileError
from lora_loom.trainer.lora.host_formula import group_by_module, weight_change
from tests.lora_tools.test_with_base import base_file

KEY = "transformer.transformer_blocks.0.attn.to_q"
PLAIN = {"rank": 0, "method": "rank", "amount": 0.0, "dtype": "auto"}


class Bar:
    def update(self, done, total):
        pass


@pytest.fixture
def loras(host, monkeypatch):
    module = host("lora_files")
    monkeypatch.setattr(module, "Bar", Bar)
    return module


def lora(host, name, seed=0, rank=4, key=KEY, width=16):
    source = torch.Generator().manual_seed(seed)
    path = host.base / "models" / "loras" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"{key}.lora_A.weight": torch.randn(rank, width, generator=source), f"{key}.lora_B.weight": torch.randn(8, rank, generator=source)}  # fmt: skip
    save_file({**tensors, f"{key}.alpha": torch.tensor(float(rank))}, path)
    return name


def change(host, name):
    parts = group_by_module(load_file(host.base / "models" / "loras" / name))[0][KEY]
    return weight_change(parts, torch.zeros(8, 16))


def test_the_lists_are_loraloaders(host, loras):
    lora(host, "a.safetensors")
    lora(host, "sub/b.safetensors")
    for kind, name in (("LoomLoraInspect", "lora_name"), ("LoomLoraResize", "lora_name"), ("LoomLoraMerge", "lora_2")):
        offered, _ = NODE_CLASS_MAPPINGS[kind].INPUT_TYPES()["required"][name]
        assert offered == ["a.safetensors", "sub/b.safetensors"]


def test_inspect(host, loras):
    lora(host, "a.safetensors")
    [report] = NODE_CLASS_MAPPINGS["LoomLoraInspect"]().run("a.safetensors")["result"]
    assert report.startswith("a.safetensors: lora (1) modules, rank 4 (1)")
    assert "ComfyUI matches 1 of 1 modules" in report


def test_resize_gives_a_name_for_loraloader(host, loras):
    lora(host, "a.safetensors")
    done = NODE_CLASS_MAPPINGS["LoomLoraResize"]().run(lora_name="a.safetensors", save_as="small", **{**PLAIN, "rank": 2})  # fmt: skip
    name, report = done["result"]
    assert name == "lora_loom/small.safetensors"
    assert done["ui"]["text"] == [report]
    values = torch.linalg.svdvals(change(host, "a.safetensors"))
    assert torch.allclose((change(host, name) - change(host, "a.safetensors")).norm(), values[2:].norm(), atol=1e-4)
    assert "of the change's energy is kept" in report


def test_merge_is_the_weighted_sum_and_can_be_chained(host, loras):
    a, b = lora(host, "a.safetensors", 1), lora(host, "b.safetensors", 2)
    node = NODE_CLASS_MAPPINGS["LoomLoraMerge"]()
    name, _ = node.run(lora_1=a, weight_1=0.5, lora_2=b, weight_2=-1.0, save_as="sum", **PLAIN)["result"]
    expected = 0.5 * change(host, a) - change(host, b)
    assert torch.allclose(change(host, name), expected, atol=1e-5)
    again, _ = node.run(lora_1=name, weight_1=1.0, lora_2=b, weight_2=1.0, save_as="sum2", **PLAIN)["result"]
    assert torch.allclose(change(host, again), 0.5 * change(host, a), atol=1e-5)


def test_a_file_that_is_not_ours_is_never_replaced(host, loras):
    a = lora(host, "a.safetensors", 1)
    lora(host, "lora_loom/mine.safetensors", 2)
    before = change(host, "lora_loom/mine.safetensors")
    options = {"lora_name": a, **PLAIN, "rank": 2}
    with pytest.raises(ConfigError, match="exists and was not made by this node"):
        loras.resized(dict(save_as="mine", **options))
    assert torch.equal(change(host, "lora_loom/mine.safetensors"), before)
    for _ in range(2):  # queued again: the same file anew
        assert loras.resized(dict(save_as="ours", **options))[0] == "lora_loom/ours.safetensors"
    with pytest.raises(ConfigError, match="is one of the source files"):
        loras.resized(dict(save_as="ours", **{**options, "lora_name": "lora_loom/ours.safetensors"}))


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "/etc/x", "a\0b", "con"])
def test_names_cannot_leave_the_folder(host, loras, name):
    a = lora(host, "a.safetensors")
    with pytest.raises(ConfigError, match="name"):
        loras.resized(dict(lora_name=a, save_as=name, **{**PLAIN, "rank": 2}))


def test_a_linked_folder_is_followed_before_it_is_judged(host, loras):
    a = lora(host, "a.safetensors")
    (host.base / "elsewhere").mkdir()
    (host.base / "models" / "loras" / "lora_loom").symlink_to(host.base / "elsewhere")
    with pytest.raises(ConfigError, match="is outside"):
        loras.resized(dict(lora_name=a, save_as="x", **{**PLAIN, "rank": 2}))
    assert not list((host.base / "elsewhere").iterdir())


def test_what_cannot_work_is_told_before_anything_is_written(host, loras):
    a = lora(host, "a.safetensors", width=3072)
    other = lora(host, "sd.safetensors", key="lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", width=768)  # fmt: skip
    with pytest.raises(ModelFileError, match=r"a.safetensors is made for .*flux.*, .*sd.safetensors for sd"):
        loras.merged(dict(lora_1=a, weight_1=1.0, lora_2=other, weight_2=1.0, save_as="m", **PLAIN))
    with pytest.raises(ConfigError, match="needs a method"):
        loras.resized(dict(lora_name=a, save_as="m", **{**PLAIN, "amount": 0.9}))
    with pytest.raises(ConfigError, match="no LoRA 'gone.safetensors'"):
        loras.inspected("gone.safetensors")
    assert not (host.base / "models" / "loras" / "lora_loom").exists()


def test_a_changed_file_changes_the_node(host, loras):
    lora(host, "a.safetensors")
    node = NODE_CLASS_MAPPINGS["LoomLoraResize"]
    before = node.IS_CHANGED(lora_name="a.safetensors", rank=2)
    assert node.IS_CHANGED(lora_name="a.safetensors", rank=2) == before
    lora(host, "a.safetensors", rank=5)
    assert node.IS_CHANGED(lora_name="a.safetensors", rank=2) != before
    assert node.IS_CHANGED(lora_name=None) == "None"


def test_convert(host, loras):
    key = "transformer.transformer_blocks.0.attn.to_out.0"
    lora(host, "a.safetensors", key=key)
    node = NODE_CLASS_MAPPINGS["LoomLoraConvert"]()
    with pytest.raises(ModelFileError, match="fits chroma or flux .* or qwen_image .* by its keys"):
        node.run(lora_name="a.safetensors", format="kohya", dtype="auto", save_as="k")
    name, report = node.run(lora_name="a.safetensors", format="kohya", dtype="auto", save_as="k", family="flux")[
        "result"
    ]
    assert name == "lora_loom/k.safetensors"
    assert "kohya: 1 modules became 1" in report
    keys = load_file(host.base / "models" / "loras" / name).keys()
    assert all(key.startswith("lora_unet_") for key in keys)
    node.run(lora_name=name, format="native", dtype="float32", save_as="back")
    old, new = (load_file(host.base / "models" / "loras" / file) for file in ("a.safetensors", "lora_loom/back.safetensors"))  # fmt: skip
    old, new = (weight_change(group_by_module(one)[0][key], torch.zeros(8, 16)) for one in (old, new))
    assert torch.allclose(old, new, atol=1e-5)
    lora(host, "odd.safetensors")
    with pytest.raises(ModelFileError, match="a LoRA of 8 rows for .*, in which its module has 16"):
        node.run(lora_name="odd.safetensors", format="kohya", dtype="auto", save_as="k", family="flux")


@pytest.fixture
def checkpoint(host, loras, monkeypatch):
    monkeypatch.setattr(host("base_files"), "Bar", Bar)
    folder = host.base / "models" / "checkpoints"
    folder.mkdir()
    return base_file("sd3", folder / "base.safetensors")


def test_a_lora_merged_into_a_base_can_be_extracted(host, checkpoint):
    width = load_file(checkpoint)["joint_blocks.0.x_block.attn.proj.weight"].shape[1]
    key = "transformer.transformer_blocks.0.attn.to_out.0"
    source = torch.Generator().manual_seed(1)
    tensors = {f"{key}.lora_A.weight": torch.randn(2, width, generator=source), f"{key}.lora_B.weight": torch.randn(width, 2, generator=source)}  # fmt: skip
    save_file(tensors, host.base / "models" / "loras" / "a.safetensors")
    merge, extract = (NODE_CLASS_MAPPINGS[name] for name in ("LoomLoraMergeBase", "LoomLoraExtract"))
    assert merge.INPUT_TYPES()["required"]["base"][0] == ["checkpoints/base.safetensors"]
    settings = {"base": "checkpoints/base.safetensors", "lora_name": "a.safetensors", "strength": 0.5, "skip_missing": False}  # fmt: skip
    name, report = merge().run(**settings, save_as="tuned")["result"]
    assert (name, report.split(" as")[0]) == ("lora_loom/tuned.safetensors", "1 tensors changed")
    merge().run(**settings, save_as="tuned")  # over its own file
    before = merge.IS_CHANGED(**settings)
    made, report = extract().run(base="checkpoints/base.safetensors", tuned=f"checkpoints/{name}", save_as="out", **{**PLAIN, "rank": 2, "dtype": "float32"})["result"]  # fmt: skip
    parts = group_by_module(load_file(host.base / "models" / "loras" / made))[0]
    assert list(parts) == [key]
    zero = torch.zeros(width, width)
    wanted = weight_change(group_by_module(tensors)[0][key], zero, 0.5)
    assert (weight_change(parts[key], zero) - wanted).norm() / wanted.norm() < 1e-4
    checkpoint.touch()
    assert merge.IS_CHANGED(**settings) != before
    save_file({"x": torch.ones(1)}, host.base / "models" / "checkpoints" / "lora_loom" / "mine.safetensors")
    with pytest.raises(ConfigError, match="exists and was not made by this node"):
        merge().run(**settings, save_as="mine")
    with pytest.raises(ConfigError, match="no base model 'loras/a.safetensors': choose one of the list"):
        merge().run(**{**settings, "base": "loras/a.safetensors"}, save_as="x")


def test_a_strip_of_any_images(host):
    module = host("image_strip")
    images = torch.rand(3, 8, 12, 3)
    shown, strip = module.drawn_images(images, "", "a\nb\nc", 2, "three")
    assert strip.shape[0] == 1
    assert (host.base / "temp" / "lora_loom" / shown["filename"]).is_file()
    folder = host.base / "input" / "fetched"
    folder.mkdir()
    for number in (2, 10):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"p-{number}.png")
    node = NODE_CLASS_MAPPINGS["LoomImageStrip"]
    before = node.IS_CHANGED(folder="fetched")
    assert before.index("p-2.png") < before.index("p-10.png")
    node().run("", 0, "", folder="fetched")
    with pytest.raises(ConfigError, match="labels are 1 for 2 images"):
        node().run("a", 0, "", folder="fetched")
    with pytest.raises(ConfigError, match="exactly one of them"):
        node().run("", 0, "")
