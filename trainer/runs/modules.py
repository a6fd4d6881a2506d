"""Which modules a run trains: those it was begun with, whatever the preset that named them means by now."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from ..base_model import Base
from ..config.network import WHOLE
from ..config.run import NetworkConfig, OptimizerConfig, TrainConfig
from ..diffusion.denoiser import Denoiser, Targets
from ..errors import ConfigError
from ..full.network import whole_targets
from ..lora.host_formula import group_by_module
from ..lora.targets import has_modules, resolve_targets, with_norms
from ..lora_tools.layouts import Formats
from ..storage.tensor_file import read_lora
from ..training.text_encoders import WithText, all_targets
from .run_folder import RunFolder

DEFAULT = "default"
BEFORE = ("attention", "transformer", "all")
"""Presets that `default` stood for in earlier versions: attention alone in version 0.1, and for UNets what has no convolutions, which is
`transformer` where a family describes them and `all` elsewhere."""


def modules_of_run(folder: RunFolder, network: nn.Module, resolve: Callable[[], list[str]]) -> list[str]:
    """Paths of the modules that get an adapter: as the run on disk has them, of a new run as `resolve` finds them.

    A record that does not fit the network is of another base; `resolve` then lets the comparison of settings say so. A run
    that has kept nothing begins again, maybe with other settings.
    """
    recorded = [] if folder.has_kept_nothing() else folder.recorded_modules()
    return recorded if recorded and has_modules(network, recorded) else resolve()


def meanings(
    module: nn.Module, presets: Mapping[str, Targets], network: NetworkConfig, optimizer: OptimizerConfig
) -> list[list[str]]:
    """The target modules of a new run; of `default` with a start LoRA also what it meant before, for a file that holds these.

    `default` leaves out convolutions where the optimizer has no steps for them.
    """
    names = [network.target_modules]
    if network.init_from and network.target_modules == DEFAULT:
        names += [name for name in BEFORE if name in presets]
    found = [resolve_targets(module, presets, name, network.exclude_modules) for name in names]
    if network.target_modules == DEFAULT and optimizer.entry.matrices_only:
        found = [[path for path in paths if isinstance(module.get_submodule(path), nn.Linear)] for paths in found]
    if network.train_norm and optimizer.entry.matrices_only:
        raise ConfigError(
            f"network.train_norm = True: {optimizer.name} trains matrices alone, and norms have none; use another optimizer"
        )
    return [with_norms(module, paths, network.exclude_modules) if network.train_norm else paths for paths in found]


def of_start(
    found: Sequence[list[str]], start: Mapping[str, Tensor], file_key: Callable[[str], str], network: nn.Module
) -> list[str]:
    """Those of `found` that a start LoRA holds, else the first with what the file holds besides: earlier versions also trained
    layers that nothing reads."""
    held = group_by_module(start)[0].keys()
    for paths in found:
        if held == {file_key(path) for path in paths}:
            return paths
    named = {file_key(path) for path in found[0]}
    if not named < held:
        return found[0]
    layers = [path for path, part in network.named_modules() if hasattr(part, "weight") and not list(part.children())]
    return sorted({*found[0], *(path for path in layers if file_key(path) in held - named)})


def new_targets(config: TrainConfig, base: Base, skeleton: Denoiser, whole: Denoiser) -> list[str]:
    """What the configuration names, by what presets mean in this version."""
    network = config.network
    if network.kind == WHOLE:
        return whole_targets(skeleton.module, skeleton.target_presets, network)
    targets, *before = meanings(skeleton.module, skeleton.target_presets, network, config.optimizer)
    if before:
        start = Formats(family=base.family, denoiser=skeleton).native(read_lora(network.init_from))
        targets = of_start([targets, *before], start, skeleton.file_key, skeleton.module)
    return all_targets(targets, whole, base, config.text) if isinstance(whole, WithText) else targets
