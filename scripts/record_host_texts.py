"""Ask a real ComfyUI what its text encoders say with toy weights, and write it down as a fixture.

    COMFYUI_PATH=~/ComfyUI $COMFYUI_PYTHON scripts/record_host_texts.py tests/fixtures/host/texts.safetensors

CLIP: token chunks of long prompts, the hidden states of one layer, the pooled vector; SD3's encoders together. Qwen2.5-VL: the last hidden state of
tokens with a picture among them. Qwen3: the layers that models read.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from record_host_keys import host


def fill(module: Any, toy_tensor: Any, rename: Any = lambda key: key) -> Any:
    import torch

    with torch.no_grad():
        for key, tensor in module.state_dict().items():
            tensor.copy_(toy_tensor(rename(key), tuple(tensor.shape)))
    return module.eval()


def clip(name: str, case: Any, toys: Any, toy_tensor: Any) -> dict[str, Any]:
    """{"clip.<case>.<prompt>.tokens|hidden|pooled": …}."""
    import torch

    model, tokenizer = toy_clip(case, toys, toy_tensor)
    found = {}
    for label, prompt in {**toys.PROMPTS, **toys.WEIGHTED}.items():
        pairs = tokenizer.tokenize_with_weights(prompt)
        with torch.no_grad():
            hidden, pooled = model.encode_token_weights(pairs)
        found |= {
            f"clip.{name}.{label}.tokens": torch.tensor([[token for token, _ in chunk] for chunk in pairs]),
            f"clip.{name}.{label}.hidden": hidden[0].clone(),
            f"clip.{name}.{label}.pooled": pooled[0].clone(),
        }
    return found


def toy_clip(case: Any, toys: Any, toy_tensor: Any) -> tuple[Any, Any]:
    """The host's CLIP for a case, and its tokenizer."""
    import torch
    from comfy import sd1_clip

    config = {**toys.CLIP, "hidden_act": case.activation}
    layers = {"layer": "last"} if case.layer is None else {"layer": "hidden", "layer_idx": case.layer}
    model = sd1_clip.SDClipModel(
        textmodel_json_config=config, special_tokens={"start": 1, "end": 3, "pad": case.pad},
        layer_norm_hidden_state=case.normalise, dtype=torch.float32, **layers,
    )  # fmt: skip
    fill(model.transformer, toy_tensor)
    return model, sd1_clip.SDTokenizer(tokenizer_class=toys.Letters, pad_with_end=case.pad == 3)


def sd3(toys: Any, toy_tensor: Any) -> dict[str, Any]:
    """{"sd3.<prompt>.hidden": (L, 40), the first columns of what SD3's three encoders say together}; the others are 0."""
    import torch
    from comfy.text_encoders.sd3_clip import SD3ClipModel

    class T5:
        @staticmethod
        def encode_token_weights(_: Any) -> tuple[Any, None]:
            return torch.nn.functional.pad(toy_tensor("t5", toys.T5), (0, 4096 - toys.T5[1])).unsqueeze(0), None

    whole = SD3ClipModel.__new__(SD3ClipModel)
    torch.nn.Module.__init__(whole)
    (whole.clip_l, first), (whole.clip_g, second) = (
        toy_clip(toys.CLIPS[name], toys, toy_tensor) for name in ("sdxl-l", "sdxl-g")
    )
    whole.t5xxl, whole.t5_attention_mask = T5(), False
    found = {}
    for label, prompt in toys.PROMPTS.items():
        tokens = {"l": first.tokenize_with_weights(prompt), "g": second.tokenize_with_weights(prompt), "t5xxl": []}
        with torch.no_grad():
            hidden = whole.encode_token_weights(tokens)[0][0]
        assert not hidden[:, 40:].any()
        found[f"sd3.{label}.hidden"] = hidden[:, :40].clone()
    return found


def qwen(toys: Any, toy_tensor: Any) -> dict[str, Any]:
    """{"qwen.hidden": (L, D) beside one picture, "qwen.two": beside two}."""
    model = fill(toy_language(toys)(), toy_tensor)
    first, second = toys.picture(), toys.picture(toys.SECOND)
    return {
        "qwen.hidden": beside(model, [toys.BEFORE, first, toys.AFTER]),
        "qwen.two": beside(model, [toys.BEFORE, first, toys.BETWEEN, second, toys.AFTER]),
    }


def qwen3(toys: Any, toy_tensor: Any) -> dict[str, Any]:
    """{"qwen3.<reading>": (L, D * layers)} of a short text."""
    import torch
    from comfy import sd1_clip
    from comfy.text_encoders import llama

    found = {}
    for name, (layers, padding) in toys.QWEN3_READS.items():
        chosen = {"layer": "hidden", "layer_idx": layers[0]} if len(layers) == 1 else {"layer": list(layers)}
        model = sd1_clip.SDClipModel(
            textmodel_json_config=toys.QWEN3, special_tokens={"pad": 0}, layer_norm_hidden_state=False, dtype=torch.float32,
            model_class=llama.Qwen3_4B, enable_attention_masks=True, return_attention_masks=True, **chosen,
        )  # fmt: skip
        fill(model.transformer, toy_tensor)
        with torch.no_grad():
            hidden = model.encode_token_weights([[(token, 1.0) for token in [*toys.BEFORE, *[0] * padding]]])[0]
        found[f"qwen3.{name}"] = hidden[0].clone() if len(layers) == 1 else hidden[0].movedim(0, 1).flatten(1).clone()
    return found


def toy_language(toys: Any, **changes: int) -> Any:
    """Class of the host's Qwen2.5-VL in the size of the toys; `changes` are to its language part."""
    import comfy.ops
    import torch
    from comfy.text_encoders import llama, qwen_vl

    asked = {**toys.LANGUAGE, **changes}
    language = {k: v for k, v in asked.items() if k in llama.Qwen25_7BVLI_Config.__dataclass_fields__}

    class Toy(llama.Qwen25_7BVLI):  # type: ignore[misc]
        def __init__(self, *_: Any) -> None:
            torch.nn.Module.__init__(self)
            config = llama.Qwen25_7BVLI_Config(**language)
            config.head_dim = config.hidden_size // config.num_attention_heads
            config.rope_dims = toys.MROPE
            ops = comfy.ops.manual_cast
            self.num_layers, self.dtype = config.num_hidden_layers, torch.float32
            self.model = llama.Llama2_(config, device="cpu", dtype=torch.float32, ops=ops)
            v = toys.VISION
            self.visual = qwen_vl.Qwen2VLVisionTransformer(
                hidden_size=v["hidden_size"], output_hidden_size=config.hidden_size,
                intermediate_size=v["intermediate_size"], num_heads=v["num_heads"], num_layers=v["depth"],
                window_size=v["window_size"], device="cpu", dtype=torch.float32, ops=ops,
            )  # fmt: skip

    return Toy


def beside(model: Any, parts: list[Any]) -> Any:
    """(L, D) the last hidden state of texts (lists of tokens) and of pictures among them."""
    import torch

    embeds, info, start = [], [], 0
    with torch.no_grad():
        for part in parts:
            if isinstance(part, list):
                seen = model.model.embed_tokens(torch.tensor(part))
            else:
                image = ((part + 1) / 2).permute(1, 2, 0).unsqueeze(0)
                seen, grid = model.preprocess_embed({"type": "image", "data": image}, "cpu")
                info.append({"type": "image", "index": start, "size": len(seen), "extra": grid})
            embeds.append(seen)
            start += len(seen)
        mask = torch.ones(1, start, dtype=torch.long)
        whole = torch.cat(embeds).unsqueeze(0)
        hidden = model(None, mask, embeds=whole, num_tokens=[start], embeds_info=info, dtype=torch.float32)
    return hidden[0][0].clone()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    file = parser.parse_args().file.resolve()
    _, version = host()
    import toy_texts
    from host_toys import toy_tensor
    from safetensors.torch import save_file

    found = {}
    for name, case in toy_texts.CLIPS.items():
        found |= clip(name, case, toy_texts, toy_tensor)
    found |= sd3(toy_texts, toy_tensor)
    found |= qwen(toy_texts, toy_tensor)
    found |= qwen3(toy_texts, toy_tensor)
    save_file({key: tensor.contiguous() for key, tensor in found.items()}, file, metadata={"comfyui": version})
    print(f"{len(found)} tensors recorded from ComfyUI {version}")


if __name__ == "__main__":
    main()
