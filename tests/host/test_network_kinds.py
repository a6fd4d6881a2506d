"""A file of every kind of network that a run writes: ComfyUI's loader uses each key and patches what `merge-base` writes."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_loom.trainer.base_model import open_base
from lora_loom.trainer.choices import ADAPTERS
from lora_loom.trainer.config.run import ModelConfig, NetworkConfig
from lora_loom.trainer.lora.adapter import inject
from lora_loom.trainer.lora.state_dict import to_file
from lora_loom.trainer.lora.targets import resolve_targets, with_norms
from lora_loom.trainer.lora_tools.with_base import merge_into_base
from scripts.host_toys import TOYS
from tests.families.test_host_gradients import load_toy
from tests.families.test_native_files import weights

from .programs import run_inside

pytestmark = pytest.mark.comfyui
LOW_RANK = {"rank": 4, "alpha": 2.0}
NETWORKS = {
    "lora": {"kind": "lora", **LOW_RANK},
    "rslora": {"kind": "lora", **LOW_RANK, "rslora": True},
    "ranks": {"kind": "lora", **LOW_RANK, "module_ranks": {"attn": 2}, "module_alphas": {"attn": 3.0}},
    "dylora": {"kind": "lora", **LOW_RANK, "dylora_unit": 2},
    "pissa": {"kind": "lora", "rank": 4, "init": "pissa"},
    "olora": {"kind": "lora", "rank": 4, "init": "olora"},
    "dora": {"kind": "dora", **LOW_RANK},
    "loha": {"kind": "loha", **LOW_RANK},
    "lokr": {"kind": "lokr", **LOW_RANK},
    "lokr-full": {"kind": "lokr", "rank": 4, "lokr_full_matrix": True},
    "lokr-both": {"kind": "lokr", **LOW_RANK, "lokr_decompose_both": True},
    "glora": {"kind": "glora", **LOW_RANK},
    "oft": {"kind": "oft", "rank": 4},
    "boft": {"kind": "boft", "rank": 18},
    "diff": {"kind": "diff"},
    "ia3": {"kind": "ia3"},
}
CONVOLUTIONS = {
    "conv-rank": {"kind": "lora", **LOW_RANK, "conv_rank": 2, "conv_alpha": 1.0},
    "tucker": {"kind": "lora", **LOW_RANK, "tucker": True},
    "loha-tucker": {"kind": "loha", **LOW_RANK, "tucker": True},
    "norms": {"kind": "lora", **LOW_RANK, "train_norm": True},
}
KINDS = {
    "sd1": {**NETWORKS, **CONVOLUTIONS},
    "flux-dev": NETWORKS,
    "z-image": NETWORKS,
    "qwen": NETWORKS,
}
"""A UNet with convolutions, fused rows beside whole modules, fused rows of all attention, and modules as they are."""
CASES = [(toy, label) for toy, networks in KINDS.items() for label in networks]


def moved(adapter):
    """Every parameter a little off its beginning, so that no part of the file says nothing."""
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters().values():
            size = 0.1 * parameter.std().nan_to_num() + 0.01
            parameter.add_(size * torch.randn(parameter.shape, generator=source))


def write_case(toy, label, base, folder):
    """The LoRA file of one kind, and the base with it merged in by `merge-base`."""
    _, denoiser = load_toy(toy, base)
    network = NetworkConfig(**KINDS[toy][label])
    paths = resolve_targets(denoiser.module, denoiser.target_presets, "conv" if label in CONVOLUTIONS else "all")
    paths = with_norms(denoiser.module, paths) if network.train_norm else paths
    adapter = inject(denoiser.module, paths, network, seed=0)
    moved(adapter)
    file = folder / f"{toy}.{label}.lora.safetensors"
    save_file(to_file(adapter, denoiser.file_key, torch.float32), file)
    opened = open_base(ModelConfig(base=str(base), variant=TOYS[toy].variant, device="cpu"))
    merge_into_base(opened, [(file, 1.0)], folder / f"{toy}.{label}.merged.safetensors", lambda done, total: None)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(folder of bases, folder of files, {file: what ComfyUI's loader said})."""
    folder, bases = tmp_path_factory.mktemp("kinds"), tmp_path_factory.mktemp("bases")
    for toy in KINDS:
        save_file(weights(toy), bases / f"{toy}.safetensors")
    for toy, label in CASES:
        write_case(toy, label, bases / f"{toy}.safetensors", folder)
    return bases, folder, run_inside("merged_weights", folder)["told"]


def test_every_kind_of_the_choices_is_here():
    assert {network["kind"] for network in NETWORKS.values()} == ADAPTERS.keys() - {"full"}


@pytest.mark.parametrize(("toy", "label"), CASES)
def test_the_loader_uses_every_key_and_patches_what_a_merge_writes(found, toy, label):
    bases, folder, told = found
    assert [line for line in told[f"{toy}.{label}.lora.safetensors"] if "not loaded" in line] == []
    base = load_file(bases / f"{toy}.safetensors")
    theirs = load_file(folder / f"{toy}.{label}.lora.patched")
    ours = load_file(folder / f"{toy}.{label}.merged.safetensors")
    changed = 0
    for key, before in base.items():
        size = (ours[key] - before).norm()
        assert (ours[key] - theirs[key]).norm() <= 1e-4 * size + 1e-6 * before.norm(), key
        changed += bool(size > 0)
    assert changed > 4
