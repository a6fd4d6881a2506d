"""Foreign model folders: no code of theirs is run, no pickle is opened, and a missing tensor is an error, not a random one."""

import ast
import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModelWithProjection

import lora_loom
from lora_loom.trainer.errors import ModelFileError
from lora_loom.trainer.families.common.encoders import load_codec, load_network, load_tokenizer
from lora_loom.trainer.families.common.modules import Loading
from tests.conftest import tiny_folder

ROOT = Path(lora_loom.__file__).parent
CONFIGURED = ("AutoTokenizer", "AutoConfig")
"""Classes that may run a folder's code; the others may open a pickle."""
READS_NO_WEIGHTS = ("CLIPProcessor", "CLIPTokenizer", "config_class")
LOADING = Loading(device=torch.device("cpu"), dtype=torch.float32)


def calls(name):
    for path in [*(ROOT / "trainer").rglob("*.py"), *(ROOT / "nodes").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == name:
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def test_nothing_is_loaded_that_could_run_code():
    found = list(calls("from_pretrained"))
    assert len(found) >= 6
    for where, node in found:
        given = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
        owner = ast.unparse(node.func.value).rpartition(".")[2]
        if owner in CONFIGURED:
            assert given.get("trust_remote_code") is False, where
        elif owner not in READS_NO_WEIGHTS:
            assert given.get("use_safetensors") is True, where


def test_no_pickle_is_read_by_torch():
    for where, node in calls("load"):
        owner = ast.unparse(node.func.value)
        assert owner not in ("torch", "pickle", "yaml", "joblib", "numpy", "np"), where


@pytest.fixture
def base(tmp_path):
    return Path(shutil.copytree(tiny_folder("sd3"), tmp_path / "base"))


@pytest.mark.parametrize("change", ["missing", "another shape"])
@pytest.mark.parametrize("part", ["text_encoder", "vae"])
def test_a_missing_or_odd_tensor_is_refused(base, part, change):
    [path] = (base / part).glob("*.safetensors")
    tensors = load_file(path)
    name = next(n for n in sorted(tensors) if n.endswith(("q_proj.weight", "conv_in.weight")))
    tensors[name] = torch.zeros(3)
    if change == "missing":
        del tensors[name]
    save_file(tensors, path, {"format": "pt"})
    load = (
        partial(load_codec, base) if part == "vae" else partial(load_network, CLIPTextModelWithProjection, base, part)
    )
    reason = (
        r"lacks tensors.*" + re.escape(name)
        if change == "missing" and part == "text_encoder"
        else "cannot load|lacks tensors"
    )
    with pytest.raises(ModelFileError, match=reason):
        load(LOADING)


def test_code_of_a_tokenizer_folder_is_not_run(base, tmp_path):
    mark = tmp_path / "was_run"
    (base / "tokenizer" / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: ...\n")
    path = base / "tokenizer" / "tokenizer_config.json"
    config = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(
        json.dumps({**config, "tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}})
    )
    with pytest.raises(ModelFileError, match="cannot load the tokenizer"):
        load_tokenizer(base, "tokenizer")
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b"null"])
def test_a_damaged_tokenizer_is_one_plain_line(base, content):
    for path in (base / "tokenizer").iterdir():
        path.write_bytes(content)
    with pytest.raises(ModelFileError, match="cannot load the tokenizer"):
        load_tokenizer(base, "tokenizer")
