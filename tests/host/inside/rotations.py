"""Gradients of ComfyUI's fused rotations and norms by the formulas of the pack, beside those of the same functions in plain torch."""

import math

from .toys import answer, import_pack, relative, torch


def table(tokens, pairs):
    angle = torch.rand(1, tokens, 1, pairs) * 2 * math.pi
    return torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).reshape(1, tokens, 1, pairs, 2, 2)


def main():
    import comfy_kitchen
    from comfy_kitchen.backends import eager

    import_pack()("nodes.host.backend.rope").register_rope_gradients()
    torch.manual_seed(0)
    heads, scales = [torch.randn(1, 5, 2, 16) for _ in "qk"], [torch.rand(16) + 0.5 for _ in "qk"]
    weights = [torch.randn(1, 5, 2, 16) for _ in "qk"]
    found = {}
    for name in ("apply_rope1", "apply_rope", "rms_rope1", "rms_rope", "apply_rope_split_half1", "apply_rope_split_half",
                 "rms_rope_split_half1", "rms_rope_split_half", "rms_rope_split_half partly"):  # fmt: skip
        function, _, part = name.partition(" ")
        count = 1 if function.endswith("1") else 2
        last = {"rot_dim": 8} if part else {}
        norms = [*scales[:count], 1e-6] if "rms" in function else []
        gradients, turns = [], table(5, 4 if part else 8)
        for library in (comfy_kitchen, eager):
            leaves = [head.clone().requires_grad_() for head in heads[:count]]
            made = getattr(library, function)(*leaves, turns, *norms, **last)
            made = (made,) if count == 1 else made
            gradients.append(
                torch.autograd.grad(sum((one * w).sum() for one, w in zip(made, weights, strict=False)), leaves)
            )
        found[name] = max(relative(ours, plain) for ours, plain in zip(*gradients, strict=True))
    for name in ("adaln", "rms_adaln"):
        gradients = []
        for library in (comfy_kitchen, eager):
            leaves = [heads[0].clone().requires_grad_(), *(scale.clone().requires_grad_() for scale in scales)]
            made = getattr(library, name)(leaves[0], leaves[1].expand_as(leaves[0]), leaves[2].expand_as(leaves[0]))
            gradients.append(torch.autograd.grad((made * weights[0]).sum(), leaves))
        found[name] = max(relative(ours, plain) for ours, plain in zip(*gradients, strict=True))
    answer(found)


if __name__ == "__main__":
    main()
