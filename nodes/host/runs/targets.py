"""The modules that a run of the graph trains, and what is said of them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ....trainer.config.run import NetworkConfig, OptimizerConfig, TextConfig
from ....trainer.data.cache.keys import views
from ....trainer.data.cache.store import Cache
from ....trainer.diffusion.denoiser import Denoiser
from ....trainer.lora import roles
from ....trainer.lora.layers import layers_of, layers_text
from ....trainer.lora.probe import Probe
from ....trainer.lora.state_dict import check_fits
from ....trainer.lora.targets import resolve_targets
from ....trainer.runs.modules import meanings, modules_of_run, of_start
from ....trainer.runs.run_folder import RunFolder
from ....trainer.storage.tensor_file import read_lora
from ....trainer.training.text_encoders import joined_targets
from ....trainer.types import Example, Record
from ...sockets.values import CacheValue
from ..backend.conditions import ConditionSource, given
from ..backend.denoiser import LoadedDenoiser
from ..backend.families import joined
from ..backend.model_rows import with_row
from ..comfy_types import BaseModel
from ..encoding.texts import TrainedTexts
from ..paths import find_lora
from .probe import probe_loaded

Log = Callable[[str], None]
NO_TEXT = TextConfig()


def choose_modules(
    folder: RunFolder,
    denoiser: LoadedDenoiser,
    network: NetworkConfig,
    optimizer: OptimizerConfig,
    see: Callable[[], Probe | None],
    log: Log,
    texts: TrainedTexts | None = None,
    asked: TextConfig = NO_TEXT,
) -> tuple[list[str], Record]:
    """Paths of the modules that get an adapter, and run.json's account of the layers. `see` probes a network without a family,
    whose targets are read from its structure; a run that exists keeps its own. `texts` is a CLIP that is trained as `asked`."""
    whole = texts.whole.module if texts else denoiser.module

    def resolve() -> list[str]:
        found = _new_targets(network, optimizer, denoiser, see)
        return joined_targets(found, texts.clip.targets(asked.rates(texts.clip.parts)), asked) if texts else found

    modules = modules_of_run(folder, whole, resolve)
    known = denoiser.roles
    layers = layers_of(whole, modules, texts.roles(dict(known or roles.roles(denoiser.module))) if texts else known)
    told = denoiser.settings.told
    name = f"{denoiser.family} ({told.row.name})" if told else denoiser.family
    how = "" if denoiser.is_known else ", its layers found by their structure"
    log(f"model {name}, predicts {denoiser.objective.name}{how}; {len(modules)} target modules")
    log(layers_text(layers))
    return modules, layers


def _new_targets(
    network: NetworkConfig, optimizer: OptimizerConfig, denoiser: LoadedDenoiser, see: Callable[[], Probe | None]
) -> list[str]:
    """Target modules of a run that begins. A start LoRA of an earlier version, which trained fewer modules by default, and q, k
    and v of a fused Linear as one, goes on as it is."""
    if not denoiser.is_known:
        apply_probe(denoiser, see())
    found = meanings(denoiser.module, denoiser.target_presets, network, optimizer)
    if network.init_from:
        some = set(resolve_targets(denoiser.module, denoiser.target_presets, "all"))
        parts = (
            denoiser.settings.parts
        )  # those that nothing reads are in no preset now; earlier versions trained the whole
        forms = [form for one in found for form in (one, joined(one, parts, missing=lambda part: part not in some))]
        return of_start(forms, read_lora(find_lora(network.init_from)), denoiser.file_key, denoiser.module)
    return found[0]


def apply_probe(denoiser: LoadedDenoiser, seen: Probe | None) -> None:
    """Lets the presets of a network without a family follow what was seen to run through it."""
    if seen is None:
        return
    denoiser.roles = roles.roles(denoiser.module, seen)
    denoiser.plain = replace(denoiser.plain, targets=roles.presets(denoiser.module, seen))
    denoiser.settings = with_row(denoiser.plain, denoiser.settings.told, denoiser.module)


def see_network(
    model: BaseModel, denoiser: LoadedDenoiser, value: CacheValue, identity: str, examples: Sequence[Example], log: Log
) -> Probe | None:
    """Probe the network with the inputs of the first image; None, and a line in the log, for one that cannot be probed."""
    cache = Cache(Path(value.folder))
    source = ConditionSource(identity=identity, encoders=value.identity, values={}, factor=value.factor)
    first = examples[0]
    view = views(first)[0]
    text, _, _, factor, channels, _ = given(cache, source, view, view.key(source.encoders.vae), first.captions[0])
    try:
        seen = probe_loaded(
            model, denoiser.module, text, denoiser.settings.conditions, factor, channels, denoiser.compute_dtype
        )
    except Exception as error:  # noqa: BLE001 - a network may do anything with tensors that have no values
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        log(f"modulation is told by its name, as this network does not run without values ({reason})")
        return None
    named, by_name = roles.roles(denoiser.module, seen), roles.roles(denoiser.module)
    if apart := [path for path, role in named.items() if role != by_name[path]]:
        log(f"{len(apart)} layers have another role than their names say, by what runs through them: {apart[0]}, …")
    return seen


def initial_weights(network: NetworkConfig, denoiser: Denoiser, targets: list[str]) -> dict[str, Tensor]:
    """Tensors of the LoRA to start from, {} for none. Raises ConfigError or ModelFileError for one that does not fit the targets."""
    if not network.init_from:
        return {}
    tensors = read_lora(find_lora(network.init_from))
    check_fits(tensors, [denoiser.file_key(path) for path in targets], network)
    return tensors
