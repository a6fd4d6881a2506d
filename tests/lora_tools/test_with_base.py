"""LoRAs and whole checkpoints, on the recorded key lists of ComfyUI's toys: merged, compared, extracted, recognised."""

import json
import re
import shutil
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from lora_loom.trainer import families
from lora_loom.trainer.base_model import open_base
from lora_loom.trainer.cli.main import app
from lora_loom.trainer.config.run import ModelConfig
from lora_loom.trainer.errors import ModelFileError, RunError
from lora_loom.trainer.families.common.lora_names import owners, spell, unmatched
from lora_loom.trainer.lora.host_formula import bias_change, group_by_module, weight_change
from lora_loom.trainer.lora_tools import merge_base
from lora_loom.trainer.lora_tools.base_keys import (
    base_slices,
    check_one_family,
    native_slices,
    recognise,
    written_slices,
)
from lora_loom.trainer.lora_tools.convert import convert
from lora_loom.trainer.lora_tools.layouts import Formats
from lora_loom.trainer.lora_tools.merge_base import BLOCK, Patch, WeightSlice, compare, merge_file, patched, plan
from lora_loom.trainer.lora_tools.resize import Keep
from lora_loom.trainer.lora_tools.with_base import extract_lora, merge_into_base
from lora_loom.trainer.storage.tensor_file import TensorFile
from tests.conftest import HOST_FIXTURES, tiny_folder

HOST = HOST_FIXTURES
TOYS = sorted(path.stem for path in HOST.glob("*.json") if "accepted" in json.loads(path.read_text()))


def quiet(done, total):
    pass


def recorded(toy):
    return json.loads((HOST / f"{toy}.json").read_text())


def base_file(toy, path, dtype=torch.float32, prefix="", seed=0):
    """Random weights under the toy's original names, beside a tensor that is none of the network's."""
    source = torch.Generator().manual_seed(seed)
    keys = recorded(toy)["keys"]
    tensors = {prefix + key: torch.randn(shape, generator=source).to(dtype) for key, shape in keys.items()}
    save_file({**tensors, **({"vae.x": torch.ones(3)} if prefix else {})}, path, {"made": "here"})
    return path


def opened(path):
    return open_base(ModelConfig(base=str(path), device="cpu"))


def matrices_of(base):
    """The module keys that a base model takes for its matrices."""
    return [key for key, (first, *_) in base_slices(base).items() if len(base.source.shapes[first.key]) > 1]


def lora_for(base, path, keys, rank=2, seed=1):
    """A LoRA on the given module keys of a base, random and strong enough to see."""
    source, tensors, known = torch.Generator().manual_seed(seed), {}, base_slices(base)
    for key in keys:
        shape = list(base.source.shapes[known[key][0].key])
        shape[0] = sum(len(place.of(torch.empty(base.source.shapes[place.key][0]))) for place in known[key])
        tensors[f"{key}.lora_down.weight"] = torch.randn(rank, *shape[1:], generator=source) * 0.3
        tensors[f"{key}.lora_up.weight"] = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=source)
        tensors[f"{key}.alpha"] = torch.tensor(1.0)
    save_file(tensors, path)
    return path


NOT_READ = (
    r"(pos_embed|pad_token|last\.modulation\.lin)$",  # no weights of a layer
)
NOT_OF_LUMINA = r"attention[._]to_[qkv]$"
"""Z-Image's names, which ComfyUI's list leads to rows that a Lumina 2 has otherwise: its keys and values are narrower."""


@pytest.mark.parametrize("toy", TOYS)
def test_every_place_is_where_comfyui_looks(toy, tmp_path):
    """Every name that ComfyUI takes for a matrix, against the recorded list: same tensor, same rows; and the families' patterns say the same."""
    base = opened(base_file(toy, tmp_path / "base.safetensors"))
    shapes, accepted = base.source.shapes, recorded(toy)["accepted"]
    found = base_slices(base)
    names = base.family.lora_names
    unread = "|".join([*NOT_READ, *([NOT_OF_LUMINA] if base.family.name == "lumina2" else [])])
    wanted = {key: at for key, at in accepted.items() if len(shapes.get(at[0], ())) > 1 and not re.search(unread, key)}
    assert sorted(wanted.keys() - found.keys()) == []
    assert unmatched(names, wanted) == []
    for key, at in wanted.items():
        first, *more = found[key]
        if at[-1] == "other":  # shift and scale change places
            [second] = more
            half = shapes[at[0]][0] // 2
            assert (first.key, first.rows, second.rows) == (at[0], (half, 2 * half), (0, half))
        else:
            assert [first.key, *(first.rows or ())] == at
    assert sorted(key for key in matrices_of(base) if key not in accepted) == []
    assert all(key in accepted for key in _variations(wanted) if names.matches(key))


def _variations(keys):
    """Names like the accepted ones that some other program might write."""
    return [old + key.split(".", 1)[-1] for key in keys for old in ("unet.", "transformer_", "lora_") if "." in key]


def test_sizes_tell_families_of_the_same_names_apart():
    names = {name: family.lora_names for name, family in families.all_families().items()}
    clip = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    assert owners(names, {clip: 768}) == ["sd"]
    assert owners(names, {clip: 2048}) == ["sdxl"]
    assert owners(names, {clip: 99}) == ["sd", "sdxl"], "toys of no real size"
    joint = "transformer.transformer_blocks.0.attn.to_q"
    assert owners(names, {joint: 3072}) == ["chroma", "flux", "flux2", "qwen_image"], "the same name at the same width"
    assert owners(names, {joint: 3072, "transformer.single_transformer_blocks.0.attn.to_q": 3072}) == ["chroma", "flux"]
    assert owners(names, {joint: 3072, "transformer.transformer_blocks.0.norm1.linear": 3072}) == ["flux"]
    assert owners(names, {joint: 3072, "transformer.transformer_blocks.0.img_mlp.net.2": 12288}) == ["qwen_image"]
    assert owners(names, {joint: 2432}) == ["sd3"]
    assert owners(names, {"blocks.0.self_attn.q": 64}) == []
    assert owners(names, {"lora_te1_text_model_encoder_layers_0_mlp_fc1": 768, clip: 2048}) == ["sdxl"]


@pytest.mark.parametrize(("toy", "prefix", "dtype"), [("sd1", "model.diffusion_model.", torch.float16), ("flux-dev", "", torch.bfloat16), ("sd3", "", torch.float32)])  # fmt: skip
def test_a_merged_file_is_what_the_host_would_compute(tmp_path, toy, prefix, dtype):
    base = opened(base_file(toy, tmp_path / "base.safetensors", dtype, prefix))
    known = base_slices(base)
    every = [key for key in sorted(matrices_of(base)) if len(known[key]) == 1]
    keys = every[:: max(1, len(every) // 40)]
    first = lora_for(base, tmp_path / "1.safetensors", keys)
    second = lora_for(base, tmp_path / "2.safetensors", keys[::2], seed=2)
    report = merge_into_base(base, [(first, 0.8), (second, -0.5)], tmp_path / "new.safetensors", quiet)
    old, new = load_file(base.source.path), load_file(tmp_path / "new.safetensors")
    expected = {key: tensor.float() for key, tensor in old.items()}  # fp32 until the end, as the host
    for tensors, strength in ((load_file(first), 0.8), (load_file(second), -0.5)):
        for key, parts in group_by_module(tensors)[0].items():
            [place] = known[key]
            rows = place.of(expected[prefix + place.key])
            rows += weight_change(parts, rows, strength)
    changed = {prefix + known[key][0].key for key in keys}
    assert report.changed == len(changed)
    assert report.same == len(old) - len(changed)
    for key, tensor in new.items():
        assert tensor.dtype == old[key].dtype
        if key in changed:
            assert torch.equal(tensor, expected[key].to(dtype))
        else:
            assert torch.equal(tensor, old[key])
    assert report.rounding < {torch.float32: 1e-6, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
    assert TensorFile(tmp_path / "new.safetensors").metadata["made"] == "here"
    assert opened(tmp_path / "new.safetensors").family.name == base.family.name


def test_every_kind_of_adapter_is_merged(tmp_path):
    """Norms, biases, whole differences, rotations and GLoRA, each as ComfyUI computes it."""
    base = opened(base_file("sd1", tmp_path / "base.safetensors", prefix="model.diffusion_model."))
    block = "diffusion_model.input_blocks.1.1.transformer_blocks.0"
    shapes = {name: base.source.shapes[f"{block.removeprefix('diffusion_model.')}.{name}.weight"] for name in ("norm1", "attn1.to_q", "attn2.to_k", "ff.net.2")}  # fmt: skip
    source = torch.Generator().manual_seed(5)

    def made(*shape):
        return torch.randn(*shape, generator=source) * 0.1

    (rows, _), (out, text), width = shapes["attn1.to_q"], shapes["attn2.to_k"], shapes["norm1"][0]
    parts = {
        "norm1": {"w_norm": made(width), "b_norm": made(width)},
        "attn1.to_q": {"oft_blocks": made(rows // 4, 4, 4), "alpha": torch.tensor(0.0)},
        "attn2.to_k": {"a1.weight": made(text, 2), "a2.weight": made(2, text), "b1.weight": made(out, 2), "b2.weight": made(2, text)},
        "ff.net.2": {"diff": made(*shapes["ff.net.2"]), "diff_b": made(shapes["ff.net.2"][0])},
    }  # fmt: skip
    save_file({f"{block}.{module}.{name}": t for module, own in parts.items() for name, t in own.items()}, tmp_path / "l.safetensors")  # fmt: skip
    report = merge_into_base(base, [(tmp_path / "l.safetensors", 0.7)], tmp_path / "new.safetensors", quiet)
    assert report.changed == 6
    old, new = load_file(base.source.path), load_file(tmp_path / "new.safetensors")
    for module, own in parts.items():
        key = f"model.{block}.{module}"
        assert torch.allclose(new[f"{key}.weight"] - old[f"{key}.weight"], weight_change(own, old[f"{key}.weight"], 0.7), atol=1e-6)  # fmt: skip
        change = bias_change(own, 0.7)
        if change is not None:
            assert torch.allclose(new[f"{key}.bias"] - old[f"{key}.bias"], change, atol=1e-6)


def test_a_diffusers_folder_becomes_a_folder(tmp_path):
    base = opened(tiny_folder("sd3"))
    key = "transformer.transformer_blocks.0.attn.to_q"
    lora = lora_for(base, tmp_path / "1.safetensors", [key])
    report = merge_into_base(base, [(lora, 1.0)], tmp_path / "new", quiet)
    assert report.changed == 1
    new = opened(tmp_path / "new")
    assert new.encoder_identity() == base.encoder_identity()
    assert new.identity() != base.identity()
    [place] = base_slices(base)[key]
    change = new.source.tensors()[place.key] - base.source.tensors()[place.key]
    parts = group_by_module(load_file(lora))[0][key]
    assert torch.allclose(change, weight_change(parts, change), atol=1e-5)


@pytest.mark.parametrize("toy", ["sd1", "flux-dev", "lumina2"])
def test_what_was_merged_can_be_extracted(tmp_path, toy):
    """merge, then extract at the same rank: the same change in every module."""
    base = opened(base_file(toy, tmp_path / "base.safetensors"))
    keys = sorted(written_slices(base))[::3]
    lora = lora_for(base, tmp_path / "1.safetensors", keys)
    merge_into_base(base, [(lora, 1.0)], tmp_path / "tuned.safetensors", quiet)
    report = extract_lora(base, opened(tmp_path / "tuned.safetensors"), tmp_path / "out.safetensors", Keep(rank=2), "float32", quiet)  # fmt: skip
    assert (report.modules, report.ranks) == (len(keys), (2, 2))
    assert report.kept > 1 - 1e-6
    assert report.outside == 0
    before, after = (group_by_module(load_file(tmp_path / f"{name}.safetensors"))[0] for name in ("1", "out"))
    assert before.keys() == after.keys()
    for key in keys:
        [place] = base_slices(base)[key]
        rows = place.of(base.source.tensors()[place.key])
        wanted, got = weight_change(before[key], rows), weight_change(after[key], rows)
        assert (got - wanted).norm() / wanted.norm() < 1e-4
    assert recognise(tmp_path / "out.safetensors", base).unmatched == ()


def test_extraction_says_what_it_could_not_keep(tmp_path):
    base = opened(base_file("sd3", tmp_path / "base.safetensors"))
    tensors = load_file(base.source.path)
    source = torch.Generator().manual_seed(3)
    for key in ("joint_blocks.0.x_block.attn.proj.weight", "joint_blocks.0.x_block.attn.proj.bias"):
        tensors[key] = tensors[key] + torch.randn(tensors[key].shape, generator=source)
    save_file(tensors, tmp_path / "tuned.safetensors")
    tuned = opened(tmp_path / "tuned.safetensors")
    report = extract_lora(base, tuned, tmp_path / "out.safetensors", Keep(rank=4), "float32", quiet)
    delta = tensors["joint_blocks.0.x_block.attn.proj.weight"] - load_file(base.source.path)["joint_blocks.0.x_block.attn.proj.weight"]  # fmt: skip
    values = torch.linalg.svdvals(delta.double()).square()
    assert report.kept == pytest.approx((values[:4].sum() / values.sum()).item(), abs=1e-6)
    assert 0 < report.outside < 0.1
    assert "is kept, least in transformer.transformer_blocks.0.attn.to_out.0" in report.text()
    with pytest.raises(ModelFileError, match="are equal in all"):
        extract_lora(base, base, tmp_path / "no.safetensors", Keep(rank=4), "float32", quiet)
    other = opened(base_file("sd1", tmp_path / "other.safetensors"))
    with pytest.raises(ModelFileError, match="two checkpoints of the same model"):
        extract_lora(base, other, tmp_path / "no.safetensors", Keep(rank=4), "float32", quiet)


def test_what_does_not_fit_is_named_and_nothing_is_written(tmp_path):
    base = opened(base_file("sd1", tmp_path / "base.safetensors"))
    good = sorted(matrices_of(base))[0]
    tensors = load_file(lora_for(base, tmp_path / "1.safetensors", [good]))
    tensors |= {"lora_unet_nothing.lora_down.weight": torch.ones(1, 2), "lora_unet_nothing.lora_up.weight": torch.ones(2, 1)}  # fmt: skip
    save_file(tensors, tmp_path / "1.safetensors")
    target, loras = tmp_path / "new.safetensors", [(tmp_path / "1.safetensors", 1.0)]
    with pytest.raises(
        ModelFileError, match=r"1 modules of .*\.safetensors are not in this base model, first lora_unet_nothing"
    ):
        merge_into_base(base, loras, target, quiet)
    report = merge_into_base(base, loras, target, quiet, partly=True)
    assert report.left_out == ("lora_unet_nothing",)
    target.unlink()
    tensors = {key: torch.ones(len(tensor), 7) if "down" in key else tensor for key, tensor in tensors.items()}
    save_file({k: t for k, t in tensors.items() if "nothing" not in k}, tmp_path / "1.safetensors")
    with pytest.raises(ModelFileError, match="does not fit a weight of"):
        merge_into_base(base, loras, target, quiet)
    assert not target.exists()


def test_scaled_weights_are_refused(tmp_path):
    weights = {"a.weight": torch.ones(4, 4).to(torch.float8_e4m3fn), "a.scale_weight": torch.ones(1)}
    save_file(weights, tmp_path / "base.safetensors")
    save_file(
        {"a.lora_down.weight": torch.ones(1, 4), "a.lora_up.weight": torch.ones(4, 1)}, tmp_path / "l.safetensors"
    )
    patches, _ = plan([(tmp_path / "l.safetensors", 1.0)], {"a": (WeightSlice("a.weight"),)})
    with pytest.raises(ModelFileError, match="a.weight is stored with a scale"):
        list(merge_file(tmp_path / "base.safetensors", tmp_path / "new.safetensors", "", patches, {}))


def test_the_comparison_sees_a_single_wrong_number(tmp_path):
    save_file(
        {"a.lora_down.weight": torch.ones(1, 4), "a.lora_up.weight": torch.ones(4, 1)}, tmp_path / "l.safetensors"
    )
    patch = Patch(module="a", target=WeightSlice("w"), file=TensorFile(tmp_path / "l.safetensors"),
                  parts={"lora_down.weight": "a.lora_down.weight", "lora_up.weight": "a.lora_up.weight"}, strength=1.0)  # fmt: skip
    before = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    after = before + 1
    assert compare(before, after, [patch], "w") < 1e-6
    after[2, 2] += 0.01
    with pytest.raises(RunError, match="differs from the computed weight"):
        compare(before, after, [patch], "w")
    with pytest.raises(RunError, match="should be unchanged"):
        compare(before, after, [], "w")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_merging_holds_two_tensors_at_once(tmp_path, dtype):
    """Weights of 9 million numbers each: private memory grows by two of them and by blocks of rows in fp32, written and compared. Files are
    read and not mapped, so that both of those that are compared are private memory; more than two would be a third."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs /proc")
    side, count = 3072, 2
    save_file({f"{n}.weight": torch.ones(side, side, dtype=dtype) for n in range(count)}, tmp_path / "base.safetensors")
    lora = {f"{n}.{part}.weight": torch.ones(shape) for n in range(count) for part, shape in (("lora_up", (side, 1)), ("lora_down", (1, side)))}  # fmt: skip
    save_file(lora, tmp_path / "l.safetensors")

    def private():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("RssAnon")) * 1024  # fmt: skip

    patches, _ = plan(
        [(tmp_path / "l.safetensors", 1.0)], {str(n): (WeightSlice(f"{n}.weight"),) for n in range(count)}
    )
    patches.pop("1.weight")  # one stays as it is

    def merge():
        list(merge_file(tmp_path / "base.safetensors", tmp_path / "new.safetensors", "", patches, {}))

    merge()  # what libraries allocate once
    peak, stop, before = [0], threading.Event(), private()

    def watch():
        while not stop.is_set():
            peak[0] = max(peak[0], private())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    merge()
    stop.set()
    watcher.join()
    assert peak[0] > before, "something was measured"
    assert peak[0] - before < 2 * side * side * dtype.itemsize + 8 * BLOCK * torch.float32.itemsize


def adapter(kind, out, inner, source, dora=""):
    """The tensors of a module of some kind."""
    draw = lambda *shape: torch.randn(*shape, generator=source)  # noqa: E731
    parts = {
        "lora": {"lora_up.weight": draw(out, 2), "lora_down.weight": draw(2, inner)},
        "loha": {"hada_w1_a": draw(out, 2), "hada_w1_b": draw(2, inner), "hada_w2_a": draw(out, 2), "hada_w2_b": draw(2, inner)},
        "lokr": {"lokr_w1": draw(4, 2), "lokr_w2": draw(out // 4, inner // 2)},
        "lokr low rank": {"lokr_w1_a": draw(4, 1), "lokr_w1_b": draw(1, 2), "lokr_w2_a": draw(out // 4, 2), "lokr_w2_b": draw(2, inner // 2)},
    }[kind]  # fmt: skip
    scales = {"": {}, "rows": {"dora_scale": draw(out, 1).abs()}, "columns": {"dora_scale": draw(1, inner).abs()}}[dora]
    return {**parts, "alpha": torch.tensor(1.5), **scales}


@pytest.mark.parametrize("dora", ["", "rows", "columns"])
@pytest.mark.parametrize("kind", ["lora", "loha", "lokr", "lokr low rank"])
def test_a_few_rows_at_a_time_are_the_whole_at_once(kind, dora, tmp_path, monkeypatch):
    """For every kind of adapter, in a fused tensor whose rows it is only a part of, with blocks that cut across it."""
    source = torch.Generator().manual_seed(0)
    parts, weight = adapter(kind, 24, 8, source, dora), torch.randn(40, 8, generator=source)
    save_file({f"m.{name}": tensor for name, tensor in parts.items()}, tmp_path / "l.safetensors")
    patches, _ = plan([(tmp_path / "l.safetensors", 0.7)], {"m": (WeightSlice("w", (7, 31)),)})
    expected = weight.clone()
    expected[7:31] += weight_change(parts, expected[7:31], 0.7)
    monkeypatch.setattr(merge_base, "BLOCK", 8 * 5)
    assert torch.allclose(patched(weight, patches["w"]), expected, atol=1e-5)
    if dora != "columns":
        for first, last in ((0, 5), (5, 24), (11, 13)):
            rows = weight_change(parts, weight[7:31][first:last], 0.7, (first, 24))
            assert torch.allclose(rows, (expected - weight)[7:31][first:last], atol=1e-5)


@pytest.mark.parametrize("family", ["flux", "lumina2", "sd3", "qwen_image"])
def test_a_lora_of_original_names_fits_a_diffusers_folder(tmp_path, family):
    """The same change of every tensor as if it was first converted to diffusers' names: two ways that share no code."""
    base = opened(tiny_folder(family))
    keys = [key for key in sorted(native_slices(base)) if families.get(family).lora_names.matches(f"diffusion_model.{key}")]  # fmt: skip
    lora = lora_for(base, tmp_path / "native.safetensors", [f"diffusion_model.{key}" for key in keys])
    convert(lora, tmp_path / "apart.safetensors", "diffusers", family)
    fused = [key for key in keys if len(base_slices(base)[f"diffusion_model.{key}"]) > 1]
    assert bool(fused) == (family != "qwen_image")
    report = merge_into_base(base, [(lora, 1.0)], tmp_path / "new", quiet)
    old, new = base.source.tensors(), opened(tmp_path / "new").source.tensors()
    changes = group_by_module(load_file(tmp_path / "apart.safetensors"))[0]
    assert report.changed == len(changes)
    for key, parts in changes.items():
        name = key.removeprefix("transformer.") + ".weight"
        assert torch.allclose(new[name] - old[name], weight_change(parts, old[name]), atol=1e-4), name
    assert not recognise(lora, base).unmatched


def test_sd_scripts_sdxl_names_fit_a_diffusers_folder(tmp_path):
    """input_blocks and the like: the same change as under the names of the folder's own network."""
    base = opened(tiny_folder("sdxl"))
    keys = [key for key in sorted(native_slices(base)) if families.get("sdxl").lora_names.matches(f"lora_unet_{key.replace('.', '_')}")]  # fmt: skip
    assert {key.split(".")[0] for key in keys} >= {"input_blocks", "middle_block", "output_blocks"}
    lora = lora_for(base, tmp_path / "kohya.safetensors", [f"lora_unet_{key.replace('.', '_')}" for key in keys])
    report = merge_into_base(base, [(lora, 1.0)], tmp_path / "new", quiet)
    assert report.changed == len(keys)
    own = Formats(family=base.family, denoiser=base.skeleton()).native(load_file(lora))
    old, new = base.source.tensors(), opened(tmp_path / "new").source.tensors()
    changes = {spell("lora_unet_", key.removesuffix(".weight")): key for key in old}
    for key, parts in group_by_module(own)[0].items():
        name = changes[key]
        assert torch.allclose(new[name] - old[name], weight_change(parts, old[name]), atol=1e-4), name
    assert not recognise(lora, base).unmatched


def test_a_lora_of_original_names_is_extracted_from_diffusers_folders(tmp_path):
    base = opened(tiny_folder("lumina2"))
    keys = [key for key in sorted(written_slices(base)) if "qkv" in key][:2]
    lora = lora_for(base, tmp_path / "1.safetensors", keys)
    merge_into_base(base, [(lora, 1.0)], tmp_path / "tuned", quiet)
    extract_lora(base, opened(tmp_path / "tuned"), tmp_path / "out.safetensors", Keep(rank=2), "float32", quiet)
    before, after = (group_by_module(load_file(tmp_path / f"{name}.safetensors"))[0] for name in ("1", "out"))
    assert before.keys() == after.keys()
    for key, parts in before.items():
        whole = torch.zeros(parts["lora_up.weight"].shape[0], parts["lora_down.weight"].shape[1])
        assert torch.allclose(weight_change(after[key], whole), weight_change(parts, whole), atol=1e-3)


def text_tensors(kind, width=8, feed=16):
    """(tensors of one layer of an encoder as a checkpoint keeps it, {transformers' path: its weight})."""
    source = torch.Generator().manual_seed(7)
    draw = lambda *shape: torch.randn(*shape, generator=source)  # noqa: E731
    weights = {f"self_attn.{x}_proj": draw(width, width) for x in ("q", "k", "v", "out")} | {"mlp.fc1": draw(feed, width), "mlp.fc2": draw(width, feed)}  # fmt: skip
    if kind == "plain":
        stored = {f"text_model.encoder.layers.0.{name}.weight": weight for name, weight in weights.items()}
    else:
        fused = torch.cat([weights[f"self_attn.{x}_proj"] for x in "qkv"])
        names = {"self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
        stored = {"resblocks.0.attn.in_proj_weight": fused, **{f"resblocks.0.{new}.weight": weights[old] for old, new in names.items()}}  # fmt: skip
    return stored, weights


@pytest.mark.parametrize(
    ("toy", "stems"),
    [
        ("sd1", {"cond_stage_model.transformer.": ("plain", "lora_te_")}),
        ("sd2", {"cond_stage_model.model.transformer.": ("open_clip", "lora_te_")}),
        ("sdxl", {"conditioner.embedders.0.transformer.": ("plain", "lora_te1_"), "conditioner.embedders.1.model.transformer.": ("open_clip", "lora_te2_")}),
    ],
)  # fmt: skip
def test_text_encoders_are_merged_and_extracted_with_the_network(tmp_path, toy, stems):
    path = base_file(toy, tmp_path / "base.safetensors", prefix="model.diffusion_model.")
    tensors, weights = load_file(path), {}
    for stem, (kind, prefix) in stems.items():
        stored, found = text_tensors(kind)
        tensors |= {stem + key: value for key, value in stored.items()}
        weights |= {f"{prefix}text_model_encoder_layers_0_{name.replace('.', '_')}": w for name, w in found.items()}
    save_file(tensors, path)
    base, source, lora = opened(path), torch.Generator().manual_seed(3), {}
    network = sorted(written_slices(base))[0]
    lora_for(base, tmp_path / "n.safetensors", [network])
    for key, weight in weights.items():
        lora[f"{key}.lora_down.weight"] = torch.randn(2, weight.shape[1], generator=source) * 0.3
        lora[f"{key}.lora_up.weight"] = torch.randn(weight.shape[0], 2, generator=source)
    save_file({**lora, **load_file(tmp_path / "n.safetensors")}, tmp_path / "l.safetensors")
    assert not recognise(tmp_path / "l.safetensors", base).unmatched
    merge_into_base(base, [(tmp_path / "l.safetensors", 0.5)], tmp_path / "tuned.safetensors", quiet)
    new, modules = load_file(tmp_path / "tuned.safetensors"), group_by_module(lora)[0]
    for stem, (kind, prefix) in stems.items():
        wanted = {name: w + weight_change(modules[f"{prefix}text_model_encoder_layers_0_{name.replace('.', '_')}"], w, 0.5) for name, w in text_tensors(kind)[1].items()}  # fmt: skip
        if kind == "open_clip":
            fused = torch.cat([wanted[f"self_attn.{x}_proj"] for x in "qkv"])
            assert torch.allclose(new[f"{stem}resblocks.0.attn.in_proj_weight"], fused, atol=1e-5)
            assert torch.allclose(new[f"{stem}resblocks.0.mlp.c_proj.weight"], wanted["mlp.fc2"], atol=1e-5)
        else:
            assert torch.allclose(new[f"{stem}text_model.encoder.layers.0.self_attn.k_proj.weight"], wanted["self_attn.k_proj"], atol=1e-5)  # fmt: skip
    report = extract_lora(base, opened(tmp_path / "tuned.safetensors"), tmp_path / "out.safetensors", Keep(rank=2), "float32", quiet)  # fmt: skip
    assert (report.modules, report.text_encoder) == (len(weights) + 1, len(weights))
    again = group_by_module(load_file(tmp_path / "out.safetensors"))[0]
    assert again.keys() == {*weights, network}
    for key, weight in weights.items():
        assert torch.allclose(weight_change(again[key], weight), weight_change(modules[key], weight, 0.5), atol=1e-4)


@pytest.mark.parametrize(
    "key",
    ["lora_te3_encoder_block_0_layer_0_SelfAttention_q", "text_encoder_3.encoder.block.0.layer.1.DenseReluDense.wo"],
)
def test_a_lora_of_t5_is_refused_by_name_and_the_rest_can_be_merged(tmp_path, key):
    base = opened(base_file("sd3", tmp_path / "base.safetensors"))
    lora_for(base, tmp_path / "n.safetensors", [sorted(written_slices(base))[0]])
    t5 = {f"{key}.lora_down.weight": torch.ones(2, 4), f"{key}.lora_up.weight": torch.ones(4, 2)}
    save_file({**load_file(tmp_path / "n.safetensors"), **t5}, tmp_path / "l.safetensors")
    merge = partial(merge_into_base, base, [(tmp_path / "l.safetensors", 1.0)], tmp_path / "out.safetensors", quiet)
    with pytest.raises(
        ModelFileError,
        match=r"1 modules of .*\.safetensors belong to a T5 text encoder, first .*--skip-missing merges the rest",
    ):
        merge()
    assert not (tmp_path / "out.safetensors").exists()
    report = merge(partly=True)
    assert report.changed == 1
    assert len(report.left_out) == 1


def test_two_text_encoders_with_keys_of_one_name_are_counted_apart(tmp_path):
    """transformers 4 wrote both encoders of SDXL with the same names, as the folders that people have are."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_folder("sdxl"), folder)
    shapes = []
    for name in ("text_encoder", "text_encoder_2"):
        file = folder / name / "model.safetensors"
        tensors = {key if key.startswith("text_") else f"text_model.{key}": tensor.clone() for key, tensor in load_file(file).items()}  # fmt: skip
        file.unlink()
        save_file(tensors, file)
        shapes.append(tensors["text_model.encoder.layers.0.self_attn.q_proj.weight"].shape)
    lora = {}
    for te, (rows, columns) in zip(("lora_te1_", "lora_te2_"), shapes, strict=True):
        lora[f"{te}text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight"] = torch.ones(1, columns)
        lora[f"{te}text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight"] = torch.ones(rows, 1)
    save_file(lora, tmp_path / "l.safetensors")
    report = merge_into_base(opened(folder), [(tmp_path / "l.safetensors", 1.0)], tmp_path / "new", quiet)
    assert report.changed == 2


def test_text_encoders_of_a_diffusers_folder(tmp_path):
    base = opened(tiny_folder("sdxl"))
    lora = {f"{te}text_model_encoder_layers_0_self_attn_q_proj.lora_{part}.weight": torch.full(shape, value)
            for te, value in (("lora_te1_", 0.1), ("lora_te2_", 0.2)) for part, shape in (("down", (1, 32)), ("up", (32, 1)))}  # fmt: skip
    first, second = (load_file(tiny_folder("sdxl") / name / "model.safetensors") for name in ("text_encoder", "text_encoder_2"))  # fmt: skip
    widths = [next(t.shape[0] for key, t in tensors.items() if key.endswith("layers.0.self_attn.q_proj.weight")) for tensors in (first, second)]  # fmt: skip
    lora = {key: tensor.new_full([widths["te2" in key] if n > 1 else 1 for n in tensor.shape], tensor.flatten()[0]) for key, tensor in lora.items()}  # fmt: skip
    save_file(lora, tmp_path / "l.safetensors")
    report = merge_into_base(base, [(tmp_path / "l.safetensors", 1.0)], tmp_path / "new", quiet)
    assert report.changed == 2
    for name, old, value in (("text_encoder", first, 0.1), ("text_encoder_2", second, 0.2)):
        new = load_file(tmp_path / "new" / name / "model.safetensors")
        for key, tensor in new.items():
            if key.endswith("layers.0.self_attn.q_proj.weight"):
                assert torch.allclose(tensor - old[key], torch.full_like(tensor, value**2), atol=1e-5)
            else:
                assert torch.equal(tensor, old[key])
    tuned = opened(tmp_path / "new")
    assert tuned.identity() == base.identity()
    report = extract_lora(base, tuned, tmp_path / "out.safetensors", Keep(rank=1), "float32", quiet)
    assert (report.modules, report.text_encoder, report.outside) == (2, 2, 0)


def test_only_loras_of_one_family_in_one_layout_are_merged(tmp_path):
    def lora(name, *keys, width=64):
        tensors = {f"{key}.lora_{part}.weight": torch.ones(shape) for key in keys for part, shape in (("down", (1, width)), ("up", (8, 1)))}  # fmt: skip
        save_file(tensors, tmp_path / name)
        return tmp_path / name

    flux = lora("flux.safetensors", "transformer.single_transformer_blocks.0.attn.to_q", width=3072)
    other = lora("sd.safetensors", "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", width=768)
    xl = lora("xl.safetensors", "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", width=2048)
    native = lora("native.safetensors", "diffusion_model.single_blocks.0.linear1", width=3072)
    text = lora("text.safetensors", "lora_te1_text_model_encoder_layers_0_mlp_fc1", width=768)
    strange = lora("strange.safetensors", "blocks.0.self_attn.q")
    check_one_family([flux, flux, text])
    check_one_family([text, strange, strange])
    for pair, message in (
        ((flux, other), r"flux.safetensors is made for chroma or flux, .*sd.safetensors for sd: only LoRAs of one family"),
        ((other, xl), r"is made for sd, .*xl.safetensors for sdxl"),
        ((flux, strange), r"is made for chroma or flux, .*strange.safetensors for no known family"),
        ((flux, native), r"has keys transformer.…, .*native.safetensors has diffusion_model.… \(original names\): convert them to one key format first \(lora-loom convert\)"),
    ):  # fmt: skip
        with pytest.raises(ModelFileError, match=message):
            check_one_family(pair)
    done = CliRunner().invoke(app, ["merge", str(flux), str(other), "-o", str(tmp_path / "m.safetensors")])
    assert done.exit_code == 4
    assert "made for chroma or flux" in done.output
    assert not (tmp_path / "m.safetensors").exists()


def test_the_commands(tmp_path):
    def run(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    base = base_file("sd1", tmp_path / "base.safetensors")
    lora = lora_for(opened(base), tmp_path / "l.safetensors", sorted(matrices_of(opened(base)))[:3])
    new, out = tmp_path / "new.safetensors", tmp_path / "out.safetensors"
    done = run("merge-base", base, lora, "-o", new, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output.splitlines()[-1])["changed"] >= 1
    done = run("extract", base, new, "-o", out, "--rank", 2)
    assert done.exit_code == 0, done.output
    assert "of the difference's energy is kept" in done.output
    done = run("inspect", out, "--base", base)
    assert done.exit_code == 0, done.output
    assert "made for sd" in done.output
    told = json.loads(run("inspect", lora, "--json").output.splitlines()[-1])
    assert told["matching"]["unmatched"] == []
    assert "exists: use another name" in run("merge-base", base, lora, "-o", new).output


def test_the_projection_of_a_text_encoder_goes_by_onetrainers_names(tmp_path):
    base = opened(tiny_folder("sdxl"))
    old = load_file(tiny_folder("sdxl") / "text_encoder_2" / "model.safetensors")
    rows, columns = old["text_projection.weight"].shape
    lora = {"lora_te2_text_projection.lora_down.weight": torch.full((1, columns), 0.5)}
    lora["lora_te2_text_projection.lora_up.weight"] = torch.full((rows, 1), 0.5)
    save_file(lora, tmp_path / "l.safetensors")
    assert not recognise(tmp_path / "l.safetensors", base).unmatched
    assert merge_into_base(base, [(tmp_path / "l.safetensors", 1.0)], tmp_path / "new", quiet).changed == 1
    new = load_file(tmp_path / "new" / "text_encoder_2" / "model.safetensors")
    for key, tensor in new.items():
        change = 0.25 if key == "text_projection.weight" else 0.0
        assert torch.allclose(tensor - old[key], torch.full_like(tensor, change), atol=1e-6), key


@pytest.mark.parametrize("rows_at_once", [1, 4, 99])
def test_the_projection_of_open_clip_is_merged_and_extracted_transposed(tmp_path, rows_at_once, monkeypatch):
    """open_clip keeps the transpose of the matrix that ComfyUI, and a LoRA file, mean: (T + (B A)^T)."""
    monkeypatch.setattr(merge_base, "BLOCK", 8 * rows_at_once)
    stem, source = "conditioner.embedders.1.model.", torch.Generator().manual_seed(5)
    path = base_file("sdxl", tmp_path / "base.safetensors", prefix="model.diffusion_model.")
    stored, _ = text_tensors("open_clip")
    old = torch.randn(8, 6, generator=source)
    save_file({**load_file(path), **{f"{stem}transformer.{k}": t for k, t in stored.items()}, f"{stem}text_projection": old}, path)  # fmt: skip
    down, up = torch.randn(2, 8, generator=source), torch.randn(6, 2, generator=source)
    key, lora, new = "lora_te2_text_projection", tmp_path / "l.safetensors", tmp_path / "new.safetensors"
    save_file({f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}, lora)
    base = opened(path)
    assert not recognise(lora, base).unmatched
    merge_into_base(base, [(lora, 0.5)], new, quiet)
    assert torch.allclose(load_file(new)[f"{stem}text_projection"], old + (0.5 * up @ down).T, atol=1e-6)
    extract_lora(base, opened(new), tmp_path / "out.safetensors", Keep(rank=2), "float32", quiet)
    found = group_by_module(load_file(tmp_path / "out.safetensors"))[0][key]
    assert torch.allclose(weight_change(found, torch.zeros(6, 8)), 0.5 * up @ down, atol=1e-5)


@pytest.mark.parametrize("toy", ["flux-dev", "chroma", "flux2-klein"])
def test_a_lora_on_query_key_and_value_of_a_fused_module_changes_their_rows_alone(tmp_path, toy):
    path = base_file(toy, tmp_path / "base.safetensors")
    base, key = opened(path), "diffusion_model.single_blocks.0.linear1_qkv"
    file = lora_for(base, tmp_path / "l.safetensors", [key])
    assert not recognise(file, base).unmatched
    merge_into_base(base, [(file, 0.5)], tmp_path / "new.safetensors", quiet)
    old, new = (load_file(one)["single_blocks.0.linear1.weight"] for one in (path, tmp_path / "new.safetensors"))
    rows = 3 * old.shape[1]
    change = weight_change(group_by_module(load_file(file))[0][key], old[:rows], 0.5)
    assert torch.allclose(new[:rows], old[:rows] + change, atol=1e-5)
    assert torch.equal(new[rows:], old[rows:])
