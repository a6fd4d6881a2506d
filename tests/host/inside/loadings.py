"""A run follows a second copy of its model in whatever way ComfyUI has loaded it: not at all, whole, in part, with a LoRA, with hooks."""

from .step_bytes import living
from .toys import answer, import_pack, mm, torch, toy_model

NETWORK = "diffusion_model."
KEYS = [f"joint_blocks.{block}.x_block.{layer}.weight" for block in (0, 1) for layer in ("attn.proj", "mlp.fc1")]


def lora(patcher, strength=5.0):
    """A clone with a change on some weights."""
    clone = patcher.clone()
    weights = dict(patcher.model.diffusion_model.named_parameters())
    patches = {NETWORK + key: (torch.ones(weights[key].shape),) for key in KEYS if key in weights}
    assert len(clone.add_patches(patches, strength)) == len(patches) > 1
    return clone


@torch.inference_mode()
def loaded(patcher, state):
    """The MODEL that ComfyUI would have in its list of loaded models."""
    device = torch.device("cpu")
    if state == "not loaded":
        return patcher
    if state == "whole":
        mm.load_models_gpu([patcher])
        return patcher
    clone = lora(patcher)
    if state == "whole with a LoRA":
        mm.load_models_gpu([clone])
    elif state == "in part with a LoRA":
        half = patcher.model_size() // 2
        clone.model_patches_to(device)
        clone.load(device, lowvram_model_memory=half)
    elif state == "a LoRA in place":
        clone.weight_inplace_update = True
        clone.load(device, lowvram_model_memory=1e32)
    elif state == "a LoRA taken out again":
        mm.load_models_gpu([clone])
        mm.load_models_gpu([patcher])
    return clone


def case(loom, state):
    storages = loom("nodes.host.backend.sharing.share_storage").storages
    before = sum(living(storages).values())
    first = toy_model("sd3")
    shadow = loom("nodes.host.backend.denoiser").load_denoiser(first).module
    model = sum(living(storages).values()) - before
    numbers = {name: weight.clone() for name, weight in shadow.named_parameters()}
    second = toy_model("sd3")
    given = loaded(second, state)
    base = loom("nodes.host.backend.sharing.reshare").SharedBase(shadow, first, lambda: [given])
    said = base.follow()
    base.retired.clear()
    del first
    network = dict(second.model.diffusion_model.named_parameters())
    same = [name for name, weight in shadow.named_parameters() if weight.data_ptr() == network[name].data_ptr()]
    patched = [key for key in KEYS if key in network and not torch.equal(network[key], numbers[key])]
    pending = sum(bool(getattr(part, "weight_function", [])) for part in second.model.diffusion_model.modules())
    return {
        "followed": bool(said),
        "bits": all(torch.equal(weight, numbers[name]) for name, weight in shadow.named_parameters()),
        "shared": len(same),
        "weights": len(network),
        "patched in": len(patched),
        "pending": pending,
        "bytes": (sum(living(storages).values()) - before) / model - 1,  # `numbers` are a copy of their own
    }


STATES = (
    "not loaded",
    "whole",
    "whole with a LoRA",
    "in part with a LoRA",
    "a LoRA in place",
    "a LoRA taken out again",
)


def main():
    loom = import_pack()
    answer({state: case(loom, state) for state in STATES})


if __name__ == "__main__":
    main()
