"""Run by ComfyUI's Python: write diffusion-model files small enough for tests that its stock loader recognises."""

import os
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import torch  # noqa: E402
from host_toys import TOYS, toy_tensor  # noqa: E402
from record_host_keys import build, host  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

SD1 = replace(
    TOYS["sd1"],
    context=768,
    host_config={
        **TOYS["sd1"].host_config, "model_channels": 320, "channel_mult": [1], "num_res_blocks": [1],
        "transformer_depth": [1], "transformer_depth_output": [1, 1], "transformer_depth_middle": 1,
        "context_dim": 768, "num_heads": 8,
    },
)  # fmt: skip
FILES = {"sd1": SD1, "sd3": TOYS["sd3"], "flux": TOYS["flux-dev"]}
PREFIX = {"sd1": "model.diffusion_model."}
"""The stock loader recognises a UNet in a checkpoint; the others also as bare files."""


def main(folder):
    comfy, _ = host()
    folder.mkdir(parents=True, exist_ok=True)
    for name, toy in FILES.items():
        state = build(comfy, toy, toy_tensor).diffusion_model.state_dict()
        prefix = PREFIX.get(name, "")
        save_file({prefix + key: tensor.contiguous() for key, tensor in state.items()}, folder / f"{name}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ.setdefault("COMFYUI_PATH", str(Path("~/ComfyUI").expanduser()))
    main(Path(sys.argv[1]))
