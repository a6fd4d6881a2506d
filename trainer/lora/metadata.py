"""The metadata of a LoRA file: kohya's ss_* keys, Stability's modelspec.* keys, and loom.* keys about its origin."""

import json
from collections.abc import Mapping
from datetime import datetime, timezone

from torch import Tensor

from ..choices import ADAPTERS
from ..config.run import NetworkConfig
from .state_dict import effective_alpha

PREDICTIONS = {"epsilon": "epsilon", "v": "v"}


def describe(
    network: NetworkConfig,
    *,
    title: str,
    architecture: str,
    prediction: str,
    resolution: int,
    step: int,
    trigger: str,
    facts: Mapping[str, str],
    training: Mapping[str, object],
) -> dict[str, str]:
    """The safetensors metadata of a LoRA file. `facts` (digests of dataset and base model) become loom.*, `training` becomes ss_*."""
    kind = ADAPTERS[network.kind]
    double = 2 if network.has_product else 1
    is_lora = kind.network_module == "networks.lora"
    metadata = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/{'lora' if is_lora else network.kind}",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": title,
        "modelspec.resolution": f"{resolution}x{resolution}",
        "modelspec.date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "ss_network_module": kind.network_module,
        "ss_network_dim": str(network.rank * double) if network.has_one_rank else "Dynamic",
        "ss_network_alpha": f"{effective_alpha(network) * double:g}" if network.has_one_rank else "Dynamic",
        "ss_output_name": title,
        "ss_steps": str(step),
        "ss_resolution": f"({resolution}, {resolution})",
        "loom.network": json.dumps({"kind": network.kind, "rank": network.rank, "rslora": network.rslora}),
        "loom.form": kind.form,
        **{f"ss_{name}": str(value) for name, value in training.items()},
        **{f"loom.{name}": value for name, value in facts.items()},
    }
    if prediction in PREDICTIONS:
        metadata["modelspec.prediction_type"] = PREDICTIONS[prediction]
    if not is_lora:
        metadata["ss_network_args"] = json.dumps({"algo": network.kind, **_lycoris(network)})
    if trigger:
        metadata["modelspec.trigger_phrase"] = trigger
    return metadata


def _lycoris(network: NetworkConfig) -> dict[str, object]:
    """LyCORIS' names of the options that are not at their defaults, and the factor."""
    more: dict[str, object] = {"full_matrix": network.lokr_full_matrix, "decompose_both": network.lokr_decompose_both}
    more |= {"use_tucker": network.tucker, "conv_dim": network.conv_rank, "conv_alpha": network.conv_alpha}
    return {"factor": network.lokr_factor, **{name: value for name, value in more.items() if value}}


def trained_steps(metadata: Mapping[str, str]) -> int | None:
    """Optimizer steps that a LoRA file's metadata names, as kohya's and ours do; None where it names none."""
    steps = metadata.get("ss_steps", "")
    return int(steps) if steps.isascii() and steps.isdecimal() else None


def in_layout(metadata: Mapping[str, str], format: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The metadata for a file in another key format, where fused modules have other ranks and alpha may be multiplied in."""
    downs = [key for key in tensors if key.endswith((".lora_down.weight", ".lora_A.weight"))]
    ranks = {tensors[key].shape[0] for key in downs}
    alphas = {tensors[key].item() for key in tensors if key.endswith(".alpha")} or ranks
    return {
        **metadata,
        "loom.format": format,
        "ss_network_dim": str(*ranks) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": f"{next(iter(alphas)):g}" if len(alphas) == 1 else "Dynamic",
    }
