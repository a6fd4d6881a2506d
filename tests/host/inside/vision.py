"""What a run's shadow of a CLIP_VISION makes of images, against ComfyUI's own `encode_image`, for each kind of encoder.

    python -m tests.host.inside.vision

answers {kind: largest difference between unit vectors}.
"""

import json
import tempfile
from pathlib import Path

from .toys import answer, import_pack, torch

CLIP = {
    "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3, "num_channels": 3,
    "image_size": 32, "patch_size": 8, "projection_dim": 16, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
SIGLIP = {name: value for name, value in CLIP.items() if name != "projection_dim"} | {
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}
KINDS = {
    "clip_vision_model": CLIP,
    "siglip_vision_model": SIGLIP,
    "siglip2_vision_model": {**SIGLIP, "num_patches": 16},
    "dinov2": {**CLIP, "num_hidden_layers": 2, "use_swiglu_ffn": False, "image_size": 518, "patch_size": 14},
}


def encoder(folder, kind):
    """A small encoder of this kind with random weights, or None if this ComfyUI does not know it."""
    from comfy import clip_vision

    if kind not in clip_vision.IMAGE_ENCODERS:
        return None
    path = folder / f"{kind}.json"
    path.write_text(json.dumps({**KINDS[kind], "model_type": kind}))
    made = clip_vision.ClipVisionModel(str(path))
    source = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(value.shape, generator=source) * 0.3 if value.is_floating_point() else value
        for name, value in made.get_sd().items()
    }
    made.load_sd(state)
    return made


def difference(vision_of_run, folder, model):
    import numpy
    from PIL import Image

    pixels = numpy.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=numpy.uint8)
    path = folder / "image.png"
    Image.fromarray(pixels).save(path)
    [found] = vision_of_run(model).images([path])
    with torch.inference_mode():
        wanted = model.encode_image(torch.from_numpy(pixels / 255).float().unsqueeze(0))["image_embeds"].flatten()
    wanted = wanted.double().numpy()
    return float(numpy.abs(found - wanted / numpy.linalg.norm(wanted)).max())


def main():
    vision_of_run = import_pack()("nodes.host.encoding.clip_vision").vision_of_run
    with tempfile.TemporaryDirectory() as name:
        made = {kind: encoder(Path(name), kind) for kind in KINDS}
        answer(
            {kind: difference(vision_of_run, Path(name), model) for kind, model in made.items() if model is not None}
        )


if __name__ == "__main__":
    main()
