"""The loaded backend: a MODEL that ComfyUI has loaded, as a Denoiser over a shadow of its network.

It is built in the node's thread and used in the training thread. After building, nothing of ComfyUI's memory management,
sampling or encoders is touched; what stays is the network's own forward code, which runs on the shadow.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....trainer.diffusion.denoiser import Targets
from ....trainer.errors import ModelFileError
from ....trainer.lora.roles import Role
from ....trainer.types import Conditioning
from ....trainer.weights.row_parts import split
from ..comfy_types import BaseModel, ModelPatcher
from .families import LoadedFamily, described, told_by_structure
from .model_rows import told_of, with_row
from .objective import HostObjective
from .patches import patch_problems, without_patches
from .rope import register_rope_gradients
from .shadow import build_shadow

PREFIX = "diffusion_model."
Sample: TypeAlias = Mapping[str, object]
"""The network's inputs for one sample, as `extra_conds` made them: tensors with a batch of 1, lists of such, constants."""


def attention(
    function: object,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    mask: Tensor | None = None,
    *,
    skip_reshape: bool = False,
    skip_output_reshape: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    **others: object,
) -> Tensor:
    """Plain scaled dot product attention, in place of whatever the host has chosen.

    Quantised attention has no backward, and the chunked kinds choose their chunks by the memory free at the moment,
    which may differ between forward and recomputation. On a CPU bfloat16 is computed in float32: torch's backward pass is two to five
    times as slow in bfloat16 there, for images of up to about a thousand tokens, and as fast beyond.
    """
    if not skip_reshape:
        batch, _, width = q.shape
        q, k, v = (x.view(batch, -1, heads, width // heads).transpose(1, 2) for x in (q, k, v))
    if mask is not None:
        mask = mask.unsqueeze(0) if mask.ndim == 2 else mask
        mask = mask.unsqueeze(1) if mask.ndim == 3 else mask
    grouped = {"enable_gqa": True} if enable_gqa else {}  # an argument that older versions of torch do not have
    dtype = q.dtype
    if q.device.type == "cpu" and dtype == torch.bfloat16:
        q, k, v = q.float(), k.float(), v.float()
        mask = mask.float() if mask is not None and mask.is_floating_point() else mask
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, **grouped).to(dtype)
    if skip_output_reshape:
        return out
    return out.transpose(1, 2).reshape(out.shape[0], -1, heads * out.shape[-1])


def as_it_is(timestep_B: Tensor, **inputs: object) -> Tensor:
    """The timestep of a class that changes nothing in it."""
    return timestep_B


def options_of(class_name: str, context: object) -> dict[str, object]:
    """What a class of comfy.model_base tells its network besides the inputs: LongCatImage puts the image behind the text."""
    if class_name != "LongCatImage":
        return {}
    length = float(context.shape[1]) if isinstance(context, Tensor) else 512.0
    return {"rope_options": {"shift_t": 1.0, "shift_y": length, "shift_x": length}}


def forget(network: nn.Module) -> None:
    """Drop what a network keeps of the text from one call to the next, as HiDream O1 does: the LoRA changes it."""
    if clear := getattr(network, "clear_kv_cache", None):
        clear()


@dataclass(kw_only=True)
class LoadedDenoiser:
    """A frozen network that ComfyUI has loaded. Latents are model space (after `process_latent_in`), 4-D."""

    family: str
    module: nn.Module
    objective: HostObjective
    settings: LoadedFamily
    plain: LoadedFamily
    """The settings without the model's row in the table of known models."""
    is_known: bool
    """Whether a family describes it; otherwise its layers are found by their structure."""
    latent_dims: int
    """5 for video-shaped networks, which get a time axis of 1."""
    compute_dtype: torch.dtype
    roles: Mapping[str, Role] | None = None
    """The role of every Linear as a probe has told it."""
    process_timestep: Callable[..., Tensor] = as_it_is
    """The class's own change of the timestep, as ComfyUI calls it before the network."""

    @property
    def target_presets(self) -> Mapping[str, Targets]:
        """The presets by paths of the loaded network."""
        return self.settings.targets

    def file_key(self, module_path: str) -> str:
        """The module's own name in ComfyUI; for a part of a fused Linear the name that ComfyUI applies to its rows."""
        return self.settings.file_keys.get(module_path, f"{PREFIX}{module_path}")

    def predict(self, noisy_BCHW: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Samples whose inputs have the same shapes run as one batch; groups of others run one after another."""
        samples: Sequence[Sample] = conditioning["samples"]
        parts: dict[int, Tensor] = {}
        for rows in group_alike(samples):
            together = merge([samples[row] for row in rows])
            predicted = self._run(noisy_BCHW[rows], sigma_B[rows], together)
            parts |= dict(zip(rows, predicted, strict=True))
        return torch.stack([parts[row] for row in range(len(samples))])

    def _run(self, noisy_BCHW: Tensor, sigma_B: Tensor, inputs: Sample) -> Tensor:
        noisy = noisy_BCHW.unsqueeze(2) if self.latent_dims == 5 else noisy_BCHW
        given = {name: self._placed(value, noisy.device) for name, value in inputs.items()}
        context = given.pop("c_crossattn", None)
        network_input = self.objective.network_input(noisy, sigma_B).to(self.compute_dtype)
        if (concat := given.pop("c_concat", None)) is not None:
            network_input = torch.cat([network_input, cast(Tensor, concat)], dim=1)
        timestep_B = self.process_timestep(self.objective.timestep(sigma_B).float(), x=noisy, **given)
        options = {"optimized_attention_override": attention, **options_of(self.family, context)}
        forget(self.module)
        output = self.module(network_input, timestep_B, context=context, transformer_options=options, **given)
        forget(self.module)
        return (output.squeeze(2) if self.latent_dims == 5 else output).float()

    def _placed(self, value: object, device: torch.device) -> object:
        """Tensors on the device, floating ones in the network's dtype."""
        if isinstance(value, list):
            return [self._placed(item, device) for item in value]
        if isinstance(value, Tensor):
            return value.to(device, self.compute_dtype) if value.is_floating_point() else value.to(device)
        return value


def signature(value: object) -> object:
    """What must be equal for samples to run as one batch."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, list):
        return [signature(item) for item in value]
    return value


def group_alike(samples: Sequence[Sample]) -> list[list[int]]:
    """The numbers of the samples, in groups of equal signatures; groups and members in the order of the samples."""
    groups: list[tuple[object, list[int]]] = []
    for row, sample in enumerate(samples):
        mine = {name: signature(value) for name, value in sample.items()}
        for theirs, rows in groups:
            if theirs == mine:
                rows.append(row)
                break
        else:
            groups.append((mine, [row]))
    return [rows for _, rows in groups]


def merge(samples: Sequence[Sample]) -> dict[str, object]:
    """Samples with equal signatures as one batch; constants are taken from the first."""

    def joined(values: Sequence[object]) -> object:
        if tensors := [value for value in values if isinstance(value, Tensor)]:
            return torch.cat(tensors)
        if lists := [value for value in values if isinstance(value, list)]:
            return [joined(items) for items in zip(*lists, strict=True)]
        return values[0]

    return {name: joined([sample[name] for sample in samples]) for name in samples[0]}


def load_denoiser(patcher: ModelPatcher, *, compute_dtype: torch.dtype | None = None) -> LoadedDenoiser:
    """A Denoiser over the weights of a ComfyUI MODEL. Call it in the node, outside inference mode.

    Raises ModelFileError, naming each reason and its remedy, if something is patched into the MODEL.
    """
    refuse_patches(patcher)
    register_rope_gradients()
    model = patcher.model
    name = type(model).__name__
    with torch.inference_mode(False):
        shadow = build_shadow(model.diffusion_model, original_weights(patcher))
        objective = HostObjective(patcher.get_model_object("model_sampling"))
    if hasattr(shadow, "prefix_cache_enabled"):  # newer ComfyUIs' Qwen-Image 2.1 keeps the text's keys and values
        shadow.__dict__["prefix_cache_enabled"] = False
    family = described(name, shadow)
    plain = family or told_by_structure(shadow)
    settings = with_row(plain, told_of(patcher), shadow)
    for path, parts in settings.parts.items():
        split(shadow.get_submodule(path), parts)
    return LoadedDenoiser(
        family=name,
        module=shadow,
        objective=objective,
        settings=settings,
        plain=plain,
        is_known=family is not None,
        latent_dims=latent_dims(model),
        process_timestep=partial(process, None)
        if (process := getattr(type(model), "process_timestep", None))
        else as_it_is,
        compute_dtype=compute_dtype or model.manual_cast_dtype or model.get_dtype(),
    )


def bring_to_device(*patchers: ModelPatcher) -> None:
    """Have ComfyUI load models, together, as it does before sampling: a loader node leaves them in RAM. Node thread only.

    Under dynamic VRAM nothing is loaded: training then makes its own copy from the masters in RAM.
    """
    if held := [one for one in patchers if not is_dynamic(one)]:
        from comfy.model_management import load_models_gpu

        load_models_gpu(
            [without_patches(one) for one in held]
        )  # a patched weight would lie there in place of the original


def leave_in_ram(patcher: ModelPatcher) -> None:
    """Have ComfyUI give back the device memory it holds, for a base that is streamed from RAM. Node thread only."""
    device = torch.device(patcher.load_device)
    if device.type != "cpu":
        from comfy.model_management import free_memory

        free_memory(1e30, device)


def is_dynamic(patcher: ModelPatcher) -> bool:
    """Whether ComfyUI pages this MODEL's weights to the device as it needs them (dynamic VRAM)."""
    return bool(getattr(patcher, "is_dynamic", lambda: False)())


def latent_dims(model: BaseModel) -> int:
    """Dimensions of a batch of latents as the network takes them."""
    return 2 + int(getattr(model.latent_format, "latent_dimensions", 2))


def original_weights(patcher: ModelPatcher) -> dict[str, Tensor]:
    """Returns {key of the network's state dict: weight before any patch}, whatever is patched into the module at the moment."""
    patches = patcher.get_key_patches(PREFIX)
    return {key.removeprefix(PREFIX): chain[0][0] for key, chain in patches.items()}


def is_plain(patcher: ModelPatcher) -> bool:
    """Whether nothing is patched into the MODEL, apart from how it samples."""
    return not patcher.patches and not any(found(patcher) for _, found in PATCHES)


def refuse_patches(patcher: ModelPatcher, way: str = "") -> None:
    """Raise ModelFileError if training would not see the model that generation will use. Plain LoRA, LoHa and LoKr are base LoRAs.

    `way` names the nodes that the MODEL came through, one of which has patched it.
    """
    reasons = patch_problems(patcher) + [reason for reason, found in PATCHES if found(patcher)]
    if reasons:
        through = f" (it came through {way})" if way else ""
        raise ModelFileError(
            f"this MODEL carries {', '.join(reasons)}{through}: training needs the plain model. Connect the loader's MODEL directly, or save the merged model to a file and load that"
        )


def _options(patcher: ModelPatcher) -> dict[str, object]:
    return dict(patcher.model_options.get("transformer_options", {}))


def _object_patches(patcher: ModelPatcher) -> list[str]:
    return [name for name in getattr(patcher, "object_patches", {}) if name != "model_sampling"]


def _has(name: str) -> Callable[[ModelPatcher], bool]:
    """Returns whether an attribute of the patcher, which maps types or names to lists, holds any value."""

    def found(patcher: ModelPatcher) -> bool:
        value = getattr(patcher, name, None) or {}
        return any(bool(v) for v in (value.values() if isinstance(value, dict) else value))

    return found


PATCHES: tuple[tuple[str, Callable[[ModelPatcher], bool]], ...] = (
    (
        "attention or block patches",
        lambda patcher: any(_options(patcher).get(name) for name in ("patches", "patches_replace")),
    ),
    ("an attention override", lambda patcher: "optimized_attention_override" in _options(patcher)),
    (
        "model wrappers",
        lambda patcher: (
            bool(_options(patcher).get("wrappers"))
            or _has("wrappers")(patcher)
            or "model_function_wrapper" in patcher.model_options
        ),
    ),
    ("replaced model parts", lambda patcher: bool(_object_patches(patcher))),
    ("hooks", lambda patcher: _has("hook_patches")(patcher) or bool(getattr(patcher, "forced_hooks", None))),
    ("injections", _has("injections")),
    ("weight wrappers", _has("weight_wrapper_patches")),
)
