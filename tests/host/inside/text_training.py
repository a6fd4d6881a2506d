"""The shadow of ComfyUI's CLIP against ComfyUI: what it says about texts, whether it shares all weights, its gradient.

    python -m tests.host.inside.text_training KIND …

answers {kind: {"texts", "copied", "targets", "skipped", "gradient"}}.
"""

import sys

from .toys import answer, import_pack, torch, toy_tensor

TEXTS = ("", "a red thing", "a (red:1.4) thing and ((one)) more", "the quick brown fox " * 30)


def difference(loom, clip, text):
    """The largest, of all that both say about every text."""
    found = 0.0
    for prompt, made in zip(TEXTS, text.encode(TEXTS), strict=True):
        with torch.inference_mode():
            [[cross, extra]] = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
        found = max(found, float((made["cross_attn"] - cross).abs().max()))
        if (pooled := extra.get("pooled_output")) is not None:
            found = max(found, float((made["pooled_output"] - pooled).abs().max()))
    return found


def gradient(text):
    """Relative error of the derivative along a direction of the first encoder's positions, which all layers see."""
    [name, *_] = text.parts.values()
    module = getattr(text.network, name).transformer.text_model.embeddings.position_embedding
    start, source = module.weight.detach().clone(), torch.Generator().manual_seed(1)
    [said] = text.encode([TEXTS[2]])
    weights = torch.randn(said["cross_attn"].shape, generator=source)
    along = torch.randn(start.shape, generator=source)

    def loss(weight):
        module.weight = weight
        return (text.read([TEXTS[2]])[0]["cross_attn"] * weights).sum()

    leaf = torch.nn.Parameter(start.clone())
    loss(leaf).backward()
    exact, step = float((leaf.grad * along).sum()), 1e-3
    with torch.no_grad():
        above, below = (loss(torch.nn.Parameter(start + sign * step * along, requires_grad=False)) for sign in (1, -1))
    module.weight = torch.nn.Parameter(start, requires_grad=False)
    return abs(float(above - below) / (2 * step) - exact) / abs(exact)


def case(loom, kind):
    from toy_texts import toy_clip

    backend = loom("nodes.host.encoding.trained_text")
    with torch.inference_mode():
        clip = toy_clip(kind, toy_tensor)
    text = backend.load_clip(clip, TEXTS)
    mine = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in text.network.parameters()}
    theirs = {p.untyped_storage().data_ptr() for p in clip.cond_stage_model.parameters()}
    copied = sum(size for place, size in mine.items() if place not in theirs)
    skipping = clip.clone()
    skipping.layer_idx = -3
    skipped = backend.load_clip(skipping, TEXTS)
    return {
        "texts": max(difference(loom, clip, text), difference(loom, skipping, skipped)),
        "copied": copied,
        "targets": len(text.targets(text.parts)),
        "skipped": len(skipped.targets(skipped.parts)),
        "gradient": gradient(text),
    }


def main(kinds):
    loom = import_pack()
    answer({kind: case(loom, kind) for kind in kinds})


if __name__ == "__main__":
    main(sys.argv[1:])
