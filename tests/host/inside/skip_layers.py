"""Samples of a toy SD3 in ComfyUI's own sampler: with its node for skip-layer guidance, with ours, and without."""

import json
import sys
from pathlib import Path

from scripts.record_host_models import import_comfy, import_pack

SHAPES = Path(__file__).resolve().parents[2] / "fixtures" / "host" / "sd3.json"
SHARE = {"skip_layer_start": 0.0, "skip_layer_end": 0.6}


def main() -> None:
    import_comfy()
    ours = import_pack()
    import comfy.sample
    import comfy.sd
    import torch
    from comfy_extras.nodes_sd3 import SkipLayerGuidanceSD3

    source = torch.Generator().manual_seed(0)
    shapes = json.loads(SHAPES.read_text())["keys"]
    weights = {key: torch.randn(shape, generator=source) * 0.05 for key, shape in shapes.items()}
    model = comfy.sd.load_diffusion_model_state_dict(weights)
    text = torch.randn(1, 77, model.model.diffusion_model.context_embedder.in_features, generator=source)
    pooled = torch.randn(1, shapes["y_embedder.mlp.0.weight"][1], generator=source)
    sides = [[[text * share, {"pooled_output": pooled * share}]] for share in (1.0, 0.3)]
    empty = torch.zeros(1, 16, 8, 8)

    def sampled(patcher):
        noise = comfy.sample.prepare_noise(empty, 1)
        return comfy.sample.sample(patcher, noise, 4, 4.0, "euler", "normal", *sides, empty, seed=1, disable_pbar=True)

    guidance = ours("trainer.config.run").GuidanceConfig(skip_layers=(1,), skip_layer_scale=2.5, **SHARE)
    here = sampled(ours("nodes.host.sweep.skip_layers").add_skip_layers(model, guidance))
    there = sampled(SkipLayerGuidanceSD3.execute(model, "1", 2.5, *SHARE.values()).result[0])
    made = {"equal": torch.equal(here, there), "changed": float((sampled(model) - there).abs().max())}
    sys.stdout.write(json.dumps(made) + "\n")


if __name__ == "__main__":
    main()
