"""Resizing and merging LoRA files, against dense arithmetic in float64."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from lora_loom.trainer.cli.main import app
from lora_loom.trainer.errors import ConfigError, ModelFileError
from lora_loom.trainer.lora.host_formula import group_by_module, weight_change
from lora_loom.trainer.lora_tools.factors import Factors
from lora_loom.trainer.lora_tools.merge import add, merge_loras
from lora_loom.trainer.lora_tools.resize import Keep, cut, product_svd, resize
from lora_loom.trainer.storage.atomic import stream_tensors

SHAPES = {"linear": (12, 8), "conv": (6, 4, 3, 3), "square": (10, 10)}


def factors(seed, out=12, inner=8, rank=4, scale=0.5):
    source = torch.Generator().manual_seed(seed)
    return Factors(
        up_OR=torch.randn(out, rank, generator=source), down_RI=torch.randn(rank, inner, generator=source), scale=scale
    )


def dense(f):
    return f.up_OR.double() @ f.down_RI.double() * f.scale


def lora_file(path, seed=0, rank=4, alpha=2.0, dtype=torch.float32, style="lora_unet_", modules=SHAPES):
    """A LoRA of every shape, in kohya or PEFT style."""
    source, tensors = torch.Generator().manual_seed(seed), {}
    down_name, up_name = ("lora_down", "lora_up") if style == "lora_unet_" else ("lora_A", "lora_B")
    for name, (out, *rest) in modules.items():
        down = torch.randn(rank, *rest, generator=source)
        up = torch.randn(out, rank, *[1] * (len(rest) - 1), generator=source)
        tensors[f"{style}{name}.{down_name}.weight"] = down.to(dtype)
        tensors[f"{style}{name}.{up_name}.weight"] = up.to(dtype)
        if alpha is not None:
            tensors[f"{style}{name}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path, {"ss_output_name": "x", "ss_network_dim": str(rank), "sshs_model_hash": "old"})
    return path


def changes(path):
    """{module: what a host adds to its weight, float64}."""
    modules, unknown = group_by_module(load_file(path))
    assert not unknown
    return {
        key: weight_change(parts, torch.zeros(SHAPES[key.split("_")[-1].split(".")[-1]]).double())
        for key, parts in modules.items()
    }


def metadata(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


@given(seed=st.integers(0, 99), out=st.integers(1, 12), inner=st.integers(1, 12), rank=st.integers(1, 16))
def test_the_short_decomposition_is_the_dense_one(seed, out, inner, rank):
    f = factors(seed, out, inner, rank)
    left, values, right = product_svd(f.up_OR, f.down_RI)
    whole = f.up_OR.double() @ f.down_RI.double()
    assert torch.allclose(left * values @ right, whole, atol=1e-9)
    count = min(len(values), *whole.shape)
    assert torch.allclose(values[:count], torch.linalg.svdvals(whole)[:count], atol=1e-9)


@given(seed=st.integers(0, 99), rank=st.integers(1, 6), scale=st.sampled_from([1.0, 0.25, -2.0]))
def test_a_cut_is_the_best_there_is_and_says_what_it_kept(seed, rank, scale):
    """Eckart-Young: the error is the rest of the singular values, and the report's energies are Frobenius norms."""
    f = factors(seed, rank=6, scale=scale)
    smaller, report = cut(f, Keep(rank=rank))
    whole, values = dense(f), torch.linalg.svdvals(dense(f))
    assert smaller.rank == report.new == rank
    assert torch.allclose((whole - dense(smaller)).norm(), values[rank:].norm(), atol=1e-5)
    assert report.kept == pytest.approx((dense(smaller).norm() / whole.norm()).item() ** 2, abs=1e-5)
    assert report.energy == pytest.approx(whole.square().sum().item(), rel=1e-9)
    assert f.energy() == pytest.approx(report.energy, rel=1e-6)


@pytest.mark.parametrize(
    ("keep", "count"),
    [
        (Keep(rank=2), 2),
        (Keep(rank=9), 4),
        (Keep(method="sv_ratio", amount=3.0), 2),  # above 8/3: 8, 4
        (Keep(method="sv_ratio", amount=8.5), 4),
        (Keep(method="sv_cumulative", amount=0.8), 2),  # 12 of 15
        (Keep(method="sv_cumulative", amount=0.81), 3),
        (Keep(method="sv_cumulative", amount=1.0), 4),
        (Keep(method="sv_fro", amount=0.9), 2),  # 80 of 85 >= .81 * 85; 64 is not
        (Keep(method="sv_fro", amount=0.85), 1),
        (Keep(method="sv_fro", amount=1.0, rank=3), 3),
    ],
)
def test_the_laws_of_d14(keep, count):
    values = torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64)
    assert keep.count(values) == count
    f = Factors(up_OR=torch.diag(values.float()), down_RI=torch.eye(4), scale=1.0)
    assert cut(f, keep)[1].new == count


@pytest.mark.parametrize("style", ["lora_unet_", "transformer."])
@pytest.mark.parametrize("alpha", [2.0, None])
def test_a_resized_file_acts_as_its_dense_approximation(tmp_path, style, alpha):
    source = lora_file(tmp_path / "a.safetensors", style=style, alpha=alpha)
    steps = []
    report = resize(source, tmp_path / "b.safetensors", Keep(rank=2), progress=lambda *step: steps.append(step))
    assert steps == [(done + 1, len(SHAPES)) for done in range(len(SHAPES))]
    before, after = changes(source), changes(tmp_path / "b.safetensors")
    assert before.keys() == after.keys()
    for key, whole in before.items():
        left, values, right = torch.linalg.svd(whole.flatten(1), full_matrices=False)
        best = (left[:, :2] * values[:2]) @ right[:2]
        assert torch.allclose(after[key].flatten(1), best, atol=1e-5)
        assert report.cuts[key].kept == pytest.approx((best.norm() / whole.norm()).item() ** 2, abs=1e-6)
    total = sum(c.square().sum() for c in before.values())
    assert report.kept == pytest.approx((sum(c.square().sum() for c in after.values()) / total).item(), abs=1e-5)
    told = metadata(tmp_path / "b.safetensors")
    assert (told["ss_output_name"], told["ss_network_dim"]) == ("x", "2")
    assert "sshs_model_hash" not in told
    assert json.loads(told["loom.history"])[0]["tool"] == "resize"


def test_resizing_to_the_full_rank_changes_nothing(tmp_path):
    source = lora_file(tmp_path / "a.safetensors")
    report = resize(source, tmp_path / "b.safetensors", Keep(method="sv_fro", amount=1.0))
    for key, change in changes(tmp_path / "b.safetensors").items():
        assert torch.allclose(change, changes(source)[key], atol=1e-5)
    assert report.kept == pytest.approx(1.0)


def test_zero_modules_are_left_out_and_named(tmp_path):
    source = lora_file(tmp_path / "a.safetensors")
    tensors = load_file(source)
    tensors["lora_unet_conv.lora_up.weight"][:] = 0
    save_file(tensors, source)
    report = resize(source, tmp_path / "b.safetensors", Keep(rank=1))
    assert report.zero == ("lora_unet_conv",)
    assert set(changes(tmp_path / "b.safetensors")) == {"lora_unet_linear", "lora_unet_square"}
    assert "1 modules without effect were left out" in report.text()
    for name in tensors:
        tensors[name] = torch.zeros_like(tensors[name])
    save_file(tensors, source)
    with pytest.raises(ModelFileError, match="all of its modules are zero"):
        resize(source, tmp_path / "c.safetensors", Keep(rank=1))
    assert not (tmp_path / "c.safetensors").exists()


@given(
    weights=st.lists(st.floats(-2, 2).filter(lambda w: abs(w) > 1e-3), min_size=1, max_size=3),
    ranks=st.lists(st.integers(1, 5), min_size=3, max_size=3),
)
def test_the_sum_of_changes_is_exact(weights, ranks):
    parts = [(factors(i, rank=ranks[i]), weight) for i, weight in enumerate(weights)]
    merged = add(parts, "k")
    assert torch.allclose(dense(merged), sum(weight * dense(f) for f, weight in parts), atol=1e-4)
    assert merged.rank == sum(f.rank for f, _ in parts)


@settings(max_examples=5)
@given(first=st.floats(-2, 2).filter(lambda w: abs(w) > 1e-2), second=st.floats(-2, 2).filter(lambda w: abs(w) > 1e-2))
def test_merged_files_act_as_both(tmp_path_factory, first, second):
    folder = tmp_path_factory.mktemp("merge")
    a = lora_file(folder / "a.safetensors", 1, rank=3)
    b = lora_file(folder / "b.safetensors", 2, rank=2, alpha=None, modules={"linear": (12, 8)})
    report = merge_loras([(a, first), (b, second)], folder / "m.safetensors")
    assert (report.modules, report.shared, report.ranks, report.rounding) == (3, 1, (3, 5), 0.0)
    merged, theirs = changes(folder / "m.safetensors"), (changes(a), changes(b))
    for key, change in merged.items():
        expected = first * theirs[0][key] + (second * theirs[1][key] if key in theirs[1] else 0)
        assert torch.allclose(change, expected, atol=1e-4)


def test_a_lora_minus_itself_is_nothing(tmp_path):
    a = lora_file(tmp_path / "a.safetensors", 1)
    merge_loras([(a, 1.0), (a, -1.0)], tmp_path / "m.safetensors")
    assert all(change.abs().max() < 1e-6 for change in changes(tmp_path / "m.safetensors").values())


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 8e-3), (torch.float16, 1e-3)])
def test_rounding_is_reported_as_it_is(tmp_path, dtype, most):
    a, b = (lora_file(tmp_path / f"{n}.safetensors", n, dtype=dtype) for n in (1, 2))
    report = merge_loras([(a, 0.3), (b, 0.7)], tmp_path / "m.safetensors")
    assert {t.dtype for name, t in load_file(tmp_path / "m.safetensors").items() if "alpha" not in name} == {dtype}
    worst = 0.0
    for key, change in changes(tmp_path / "m.safetensors").items():
        exact = 0.3 * changes(a)[key] + 0.7 * changes(b)[key]
        worst = max(worst, ((change - exact).norm() / exact.norm()).item())
    assert report.rounding == pytest.approx(worst, rel=0.02)
    assert report.rounding < most
    one = merge_loras([(a, 0.3)], tmp_path / "one.safetensors")
    assert one.rounding == 0, "a single LoRA keeps its matrices; its alpha carries the weight"


def test_merging_can_resize(tmp_path):
    a, b = (lora_file(tmp_path / f"{n}.safetensors", n) for n in (1, 2))
    report = merge_loras([(a, 1.0), (b, 1.0)], tmp_path / "m.safetensors", Keep(rank=3))
    assert report.ranks == (3, 3)
    assert 0.3 < report.resized.kept < 1
    assert "energy is kept" in report.text()


def test_what_cannot_be_merged_is_refused(tmp_path):
    a = lora_file(tmp_path / "a.safetensors", 1)
    other = lora_file(tmp_path / "b.safetensors", 2, modules={"linear": (12, 9)})
    with pytest.raises(
        ModelFileError,
        match=r"lora_unet_linear of .*a\.safetensors and .*b\.safetensors has a weight of .12, 8. and .12, 9.: these LoRAs are for different",
    ):
        merge_loras([(a, 1.0), (other, 1.0)], tmp_path / "m.safetensors")
    with pytest.raises(ConfigError, match="nothing to merge"):
        merge_loras([(a, 0.0)], tmp_path / "m.safetensors")
    save_file({"x.hada_w1_a": torch.ones(2, 2), "x.hada_w1_b": torch.ones(2, 2)}, tmp_path / "loha.safetensors")
    with pytest.raises(
        ModelFileError, match="x has hada_w1_a, hada_w1_b only, which is no whole adapter: the file is damaged"
    ):
        resize(tmp_path / "loha.safetensors", tmp_path / "m.safetensors", Keep(rank=1))
    tensors = load_file(a)
    tensors["lora_unet_conv.lora_up.weight"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "nan.safetensors")
    with pytest.raises(ModelFileError, match="lora_unet_conv has NaN"):
        resize(tmp_path / "nan.safetensors", tmp_path / "m.safetensors", Keep(rank=1))
    tensors = load_file(a) | {"lora_unet_conv.lora_up.weight": torch.ones(6, 7, 1, 1)}
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(ModelFileError, match="cannot be multiplied"):
        resize(tmp_path / "odd.safetensors", tmp_path / "m.safetensors", Keep(rank=1))
    assert not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "rank = 0"),
        ({"method": "sv_frob", "amount": 0.9}, "did you mean 'sv_fro'"),
        ({"method": "sv_ratio", "amount": 0.5}, "sv_ratio needs a number above 1"),
        ({"method": "sv_ratio", "amount": 1.0}, "sv_ratio needs a number above 1"),
        ({"method": "sv_fro", "amount": 1.5}, "sv_fro needs a share"),
        ({"method": "sv_cumulative"}, "sv_cumulative needs a share"),
        ({"rank": -1, "method": "sv_fro", "amount": 0.9}, "rank = -1"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        Keep(**settings)


KINDS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn,
         "F64": torch.float64, "I64": torch.int64, "U8": torch.uint8, "BOOL": torch.bool}  # fmt: skip


@settings(max_examples=20)
@given(
    parts=st.dictionaries(
        st.text(st.characters(codec="utf-8", categories=("L", "N")), min_size=1, max_size=8),
        st.tuples(st.sampled_from(sorted(KINDS)), st.lists(st.integers(0, 5), max_size=3)),
        max_size=6,
    )
)
def test_a_streamed_file_reads_back_equal(tmp_path_factory, parts):
    path = tmp_path_factory.mktemp("stream") / "x.safetensors"
    tensors = {name: (torch.rand(tuple(shape)) * 9).to(KINDS[kind]) for name, (kind, shape) in parts.items()}
    asked = []
    stream_tensors(
        path,
        {name: (kind, tuple(shape)) for name, (kind, shape) in parts.items()},
        lambda name: asked.append(name) or tensors[name],
        {"a": "ü"},
    )
    read = load_file(path)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    assert (8 + length) % 8 == 0, "so that every tensor can be mapped where it lies"
    assert path.stat().st_size == 8 + length + sum(tensor.nbytes for tensor in tensors.values())
    assert sorted(asked) == sorted(tensors)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert torch.equal(read[name].float(), tensor.float())
    assert metadata(path) == {"a": "ü"}


def test_a_failure_while_streaming_leaves_nothing(tmp_path):
    def fail(name):
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        stream_tensors(tmp_path / "x.safetensors", {"a": ("F32", (2,))}, fail)
    assert list(tmp_path.iterdir()) == []


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_commands(tmp_path):
    a, b = (lora_file(tmp_path / f"{n}.safetensors", n) for n in (1, 2))
    out = tmp_path / "out.safetensors"
    done = run("resize", a, "-o", out, "--rank", 2, "--method", "sv_fro", "--amount", 0.9)
    assert done.exit_code == 0, done.output
    assert "of the change's energy is kept" in done.output
    done = run("resize", a, "-o", out, "--rank", 2, "--json")
    assert done.exit_code == 2
    assert "exists: use another name, or --overwrite" in done.output
    done = run("merge", a, b, "-o", out, "--weights", "1,-0.5", "--overwrite", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.output.splitlines()[-1])
    assert (told["modules"], told["shared"], told["ranks"]) == (3, 3, [8, 8])
    assert "give one for each" in run("merge", a, b, "-o", out, "--weights", "1,2,3", "--overwrite").output
    assert "is one of the files that are read" in run("resize", a, "-o", a, "--rank", 1, "--overwrite").output
    assert "needs a method" in run("resize", a, "-o", out, "--overwrite", "--amount", 0.5).output
