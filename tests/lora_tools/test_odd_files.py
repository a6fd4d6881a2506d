"""Files that are given as a LoRA and are none, or a damaged one: the true reason and a remedy, and nothing is lost where they can be read."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_loom.trainer.base_model import open_base
from lora_loom.trainer.config.run import ModelConfig, NetworkConfig
from lora_loom.trainer.errors import ModelFileError
from lora_loom.trainer.lora.patch import match_modules
from lora_loom.trainer.lora.state_dict import check_fits
from lora_loom.trainer.lora_tools.convert import convert
from lora_loom.trainer.lora_tools.inspect import inspect
from lora_loom.trainer.lora_tools.merge import merge_loras
from lora_loom.trainer.lora_tools.resize import Keep, resize
from lora_loom.trainer.lora_tools.with_base import merge_into_base
from lora_loom.trainer.storage.tensor_file import TensorFile, read_lora
from scripts.host_toys import toy_tensor

from .test_convert import record
from .test_every_name import assert_same, host_changes

Q = "transformer.single_transformer_blocks.0.attn.to_q"
PROJ = "diffusion_model.double_blocks.0.img_attn.proj"


def pair(key, rows=128, columns=128, rank=4, alpha=1.0):
    source = torch.Generator().manual_seed(len(key))
    made = {f"{key}.lora_down.weight": torch.randn(rank, columns, generator=source)}
    made[f"{key}.lora_up.weight"] = torch.randn(rows, rank, generator=source)
    return {**made, f"{key}.alpha": torch.tensor(alpha)}


def put(path, tensors):
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    return open_base(ModelConfig(base=str(put(path, network())), device="cpu"))


def network():
    return {key: toy_tensor(key, tuple(shape)) for key, shape in record("flux-dev")["keys"].items()}


def tools(path, target, base):
    """Every tool that reads a LoRA, as a call without arguments."""
    return {
        "inspect": lambda: inspect(path),
        "convert": lambda: convert(path, target, "native", "flux"),
        "resize": lambda: resize(path, target, Keep(rank=2)),
        "merge": lambda: merge_loras([(path, 1.0)], target),
        "merge-base": lambda: merge_into_base(base, [(path, 1.0)], target, lambda *_: None),
    }


class RunsCode:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was opened",))


OTHER_FILES = {
    "pickle": (pickle.dumps(RunsCode(), 4), "is a pickle, which can run code when opened: convert it"),
    "torch": (b"PK\x03\x04 data.pkl", "is a pickle, which can run code when opened: convert it"),
    "gguf": (b"GGUF\x03\0\0\0", "is a GGUF file"),
    "page": (b"<!DOCTYPE html><title>404</title>", "is a web page: download the file itself"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS: fetch the file itself"),
    "index": (b'{"weight_map": {}}', "is a text in JSON: name the .safetensors file"),
    "empty": (b"", "is empty: get it again"),
    "short": (b"\x10\0\0", "is damaged or not a safetensors file .*: download or copy it again"),
}


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_what_is_no_safetensors_file_says_what_it_is(tmp_path, kind, base):
    content, said = OTHER_FILES[kind]
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    for call in [*tools(path, tmp_path / "b.safetensors", base).values(), lambda: TensorFile(path)]:
        with pytest.raises(ModelFileError, match=rf"a\.safetensors {said}"):
            call()
    with pytest.raises(ModelFileError, match=rf"a\.safetensors {said.split(' or not')[0]}"):
        read_lora(path)
    with pytest.raises(ModelFileError, match=rf"a\.safetensors {said.split(' or not')[0]}"):
        open_base(ModelConfig(base=str(path), device="cpu"))


def test_a_folder_names_the_file_in_it(tmp_path):
    put(tmp_path / "pytorch_lora_weights.safetensors", pair(Q))
    with pytest.raises(ModelFileError, match=r"is a folder: name the file in it, pytorch_lora_weights\.safetensors"):
        inspect(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"emb_params": torch.ones(4, 768)}, r"is an embedding \(textual inversion\), not a LoRA"),
        ({"clip_l": torch.ones(4, 768), "clip_g": torch.ones(4, 1280)}, r"is an embedding \(textual inversion\)"),
        ({"x.y": torch.ones(3)}, r"holds no LoRA tensors; it begins with x\.y"),
        ({}, "holds no LoRA tensors"),
    ],
)
def test_what_holds_no_adapter_says_what_it_holds(tmp_path, tensors, said, base):
    path = put(tmp_path / "a.safetensors", tensors)
    for call in tools(path, tmp_path / "b.safetensors", base).values():
        with pytest.raises(ModelFileError, match=rf"a\.safetensors {said}"):
            call()
    with pytest.raises(ModelFileError, match=rf"the LoRA {said}"):
        match_modules(None, load_file(path))


def test_a_whole_model_given_as_a_lora_is_called_so(tmp_path, base):
    """Flux holds norms that a control LoRA replaces; it is none for that."""
    path = put(tmp_path / "a.safetensors", network())
    for call in tools(path, tmp_path / "b.safetensors", base).values():
        with pytest.raises(
            ModelFileError, match=r"is a whole model or a part of one, not a LoRA: give it as the base model"
        ):
            call()


@pytest.mark.parametrize(
    "tensors",
    [
        {f"{Q}.lora_magnitude_vector": torch.ones(128), **pair(Q)},
        {f"{Q}.vera_lambda_b": torch.ones(128)},
        {f"{Q}.{n}.{x}": torch.ones(1) for n in range(20) for x in ("on_input", "weight")},
        {f"{Q}.on_input": torch.ones(1), f"{Q}.weight": torch.ones(128)},
        {f"{Q}.oft_diag": torch.ones(4, 8, 8)},
        {f"{Q}.lokr_w1": torch.ones(4, 4), f"{Q}.lokr_t2": torch.ones(2, 2, 3, 3)},
    ],
)
def test_kinds_that_comfyui_does_not_apply_are_not_sent_there(tmp_path, tensors, base):
    path = put(tmp_path / "a.safetensors", tensors)
    for name, call in tools(path, tmp_path / "b.safetensors", base).items():
        if name != "inspect":
            with pytest.raises(ModelFileError, match="ComfyUI does not apply it either: merge it with the program"):
                call()


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (pair(Q, alpha=float("nan")), "NaN or infinite"),
        (pair(Q, alpha=float("inf")), "NaN or infinite"),
        ({f"{Q}.lora_down.weight": torch.ones(4, 128), f"{Q}.lora_up.weight": torch.ones(128, 3)}, "damaged"),
        ({f"{Q}.lora_down.weight": torch.ones(4, 128)}, "damaged"),
        ({f"{Q}.lokr_w1": torch.ones(4, 4)}, "damaged"),
        ({f"{Q}.hada_w1_a": torch.ones(128, 4), f"{Q}.hada_w1_b": torch.ones(4, 128)}, "damaged"),
        ({**pair(Q), f"{Q}.alpha": torch.ones(2)}, "damaged"),
    ],
)
def test_damaged_adapters_are_refused_by_file_and_module_and_nothing_is_written(tmp_path, tensors, said, base):
    path, target = put(tmp_path / "a.safetensors", tensors), tmp_path / "b.safetensors"
    for name, call in tools(path, target, base).items():
        if name == "inspect":
            continue
        with pytest.raises(ModelFileError, match=rf"a\.safetensors.*{Q}.*{said}|a\.safetensors.*{said}.*{Q}"):
            call()
        assert not target.exists()


def test_sizes_that_differ_name_both_files(tmp_path):
    first, second = put(tmp_path / "1.safetensors", pair(Q)), put(tmp_path / "2.safetensors", pair(Q, columns=64))
    with pytest.raises(ModelFileError, match=r"to_q of .*1\.safetensors and .*2\.safetensors has a weight of"):
        merge_loras([(first, 1.0), (second, 1.0)], tmp_path / "b.safetensors")
    with pytest.raises(ModelFileError, match=r"1\.safetensors: a LoRA of 64 rows for single_blocks\.0\.linear1"):
        convert(
            put(first, {**pair(Q, rows=64), **pair(Q.replace("to_q", "to_k"))}),
            tmp_path / "b.safetensors",
            "kohya",
            "flux",
        )


@pytest.mark.parametrize("format", ["native", "kohya", "diffusers"])
def test_a_fused_module_and_a_part_of_it_both_act(tmp_path, format):
    """ComfyUI adds the change of linear1 and that of its query."""
    source = put(tmp_path / "a.safetensors", {**pair(Q), **pair("lora_unet_single_blocks_0_linear1", rows=896)})
    convert(source, tmp_path / "b.safetensors", format, "flux")
    assert_same(host_changes("flux-dev", source), host_changes("flux-dev", tmp_path / "b.safetensors"))


def test_one_module_under_two_names_is_not_converted(tmp_path):
    """ComfyUI applies the one that its key map has last."""
    twice = {**pair(Q), **pair("lora_transformer_single_transformer_blocks_0_attn_to_q")}
    path = put(tmp_path / "a.safetensors", twice)
    with pytest.raises(ModelFileError, match="under two names, .* of which ComfyUI applies one"):
        convert(path, tmp_path / "b.safetensors", "native", "flux")


def test_no_message_is_long_whatever_the_names(tmp_path, base):
    tensors = {}
    for number in range(200):
        tensors |= {f"{key}{'x' * 900}": t for key, t in pair(f"strange.{number}.").items()}
    path = put(tmp_path / "a.safetensors", {**tensors, **pair("strange." + "y" * 5000)})
    for name, call in tools(path, tmp_path / "b.safetensors", base).items():
        if name in ("convert", "merge-base"):
            with pytest.raises(ModelFileError) as error:
                call()
            assert len(str(error.value)) <= 1200
            assert str(error.value).count("\n") < 10


def test_odd_metadata_does_no_harm(tmp_path):
    source = tmp_path / "a.safetensors"
    odd = {
        "lora_adapter_metadata": "[1]",
        "loom.history": "5",
        "ss_network_args": '{"a":',
        "modelspec.thumbnail": "A" * 90_000,
    }
    save_file({key: tensor for key, tensor in pair(Q).items() if not key.endswith("alpha")}, source, odd)
    convert(source, tmp_path / "b.safetensors", "kohya", "flux")
    assert json.loads(TensorFile(tmp_path / "b.safetensors").metadata["loom.history"])[-1]["tool"] == "convert"
    assert_same(host_changes("flux-dev", source), host_changes("flux-dev", tmp_path / "b.safetensors"))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"emb_params": torch.ones(4, 768)}, r"is an embedding \(textual inversion\)"),
        (pair(Q, alpha=float("nan")), "1 tensors have NaN or infinite numbers"),
        (
            pair("x"),
            f"does not fit this network: it lacks 1 modules that are trained, first {Q}, and it holds 1 that are not, first x;",
        ),
        (pair(Q, rank=2), r"has rank \[2\], network\.rank = 4: use the file's rank"),
        ({**pair(Q), "y": torch.ones(1)}, "has 1 tensors of an unknown kind, first y"),
    ],
)
def test_a_lora_to_start_from_is_refused_with_its_name_and_the_reason(tensors, said):
    with pytest.raises(
        ModelFileError,
        match=rf"network\.init_from = 'old\.safetensors'.* {said}|network\.init_from = 'old\.safetensors': {said}",
    ):
        check_fits(tensors, [Q], NetworkConfig(rank=4, init_from="old.safetensors"))
