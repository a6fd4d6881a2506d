"""A run from the command line: from a configuration to a trained LoRA, in order."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch

from ..base_model import Base, open_base
from ..config.network import WHOLE
from ..config.run import MemoryConfig, TrainConfig
from ..config.toml import digest, to_dict
from ..config.unused import refuse_unused_options
from ..data.batches import CachedBatches, PickedExample, Singles
from ..data.cache.captions import EncodedCaptions
from ..data.cache.fill import CacheReport, fill
from ..data.cache.keys import find_work, is_filled
from ..data.cache.online import Items, OnlineItems, SharedEncoders
from ..data.cache.store import Cache
from ..data.images.index import FileIndex
from ..data.order import AnyPlan, make_plan
from ..data.report import Report, epochs_text, make_report, refuse_warnings
from ..data.sets.checks import check_bucket_steps
from ..data.sets.dataset import Dataset, trigger_words
from ..data.sets.dataset_file import gather_sets
from ..data.sets.reach import refuse_long_sides
from ..data.unpack import dataset_of
from ..diffusion.denoiser import Denoiser
from ..diffusion.token_routing import check_routes
from ..distributed.processes import ALONE, Processes, check_batches, joined, main_first
from ..distributed.sharding import check_passes, check_sharding, check_teachers
from ..errors import DataError, StoppedError
from ..families.common.positions import positions_per_side
from ..full.checks import check_full
from ..full.model_file import model_file_of
from ..lora.base_lora import BaseLora, has_adapter, lay_base_loras
from ..lora.checkpointing import checkpoint
from ..lora.layers import layers_of, layers_text
from ..lora.state_dict import check_fits
from ..lora_tools.base_loras import read_base_loras
from ..lora_tools.layouts import FileFormat, Formats, check_format
from ..memory_plan.base_sizes import BaseSizes, base_sizes
from ..memory_plan.files import FilesRun, plan_files
from ..memory_plan.plan import MemoryPlan, as_record, keeps_activations, predicted
from ..storage.atomic import check_writable
from ..storage.fingerprint import tensors_digest
from ..storage.mapped_files import mapped_files_of
from ..storage.tensor_file import read_lora
from ..training.early_stopping import check_measured
from ..training.epochs import in_steps
from ..training.loss_settings import check_objective, check_strengths, pass_notes
from ..training.optim import check_optimizer
from ..training.schedule import check_schedule
from ..training.text_encoders import check_text_training, load_with_text, rate_scales, with_text
from ..types import Conditioning, EncoderIdentity, Example, Record
from ..weights.devices import compute_dtype
from ..weights.packing.layers import check_matmul
from ..weights.quantize import check_quantize
from ..weights.streaming import StreamSettings, stream_settings
from .adapting.adapt import Remade, execute_adapting, refuse_adapting
from .assemble import assemble
from .modules import modules_of_run, new_targets
from .plan import RunPlan, cache_folder, environment
from .reference_images import batch_references, check_reference_use, unused_references
from .run_folder import ReadOnlyRunFolder, RunFolder
from .samples import check_samples, make_samples, open_preview, sample_inputs
from .session import Backend, Host, Outcome, RunData, Session
from .settled import with_average, with_guided_scale, with_length, with_rate, with_spread
from .trackers import check_output


@dataclass(kw_only=True)
class Prepared:
    """Everything that is decided before a network is loaded."""

    config: TrainConfig
    base: Base
    dataset: Dataset
    report: Report
    plan: AnyPlan
    targets: list[str]
    layers: Record
    """Which layers train and which are left out, for run.json."""
    cache: Cache
    identity: EncoderIdentity
    folder: RunFolder
    processes: Processes
    trigger: str
    """The trigger words of the sets, for the file's metadata."""
    memory_plan: MemoryPlan | None = None
    """What the run needs; None where that is not predicted."""
    base_loras: tuple[BaseLora, ...]
    preview: Base | None
    """What samples are made with in place of the base; None for the base."""

    @property
    def stream(self) -> StreamSettings | None:
        """How the base is streamed; None for one that lies on its device as a whole."""
        asked = stream_settings(self.config.memory.base, self.config.memory.vram_gb)
        return self.memory_plan.stream if self.memory_plan else asked

    @cached_property
    def encoders(self) -> SharedEncoders:
        """The encoders that are used while training."""
        return SharedEncoders(partial(self.base.load_encoders, tiled=self.config.memory.vae_tiling))

    @cached_property
    def items(self) -> Items:
        """Encoded images and texts."""
        if self.config.memory.cache == "disk":
            return self.cache
        return OnlineItems(self.dataset.examples, self.identity.vae, self.encoders)


def run_folder(config: TrainConfig, processes: Processes = ALONE) -> RunFolder:
    """The folder of the run that a configuration describes. Only the first of several processes may write to it."""
    kind, whole = RunFolder if processes.rank == 0 else ReadOnlyRunFolder, config.network.kind == WHOLE
    return kind(Path(config.output.directory).expanduser() / config.name, whole=whole)


def prepare(config: TrainConfig, host: Host, processes: Processes = ALONE) -> Prepared:
    """Check every setting against the base and the images. Raises LoomError before anything large is loaded."""
    refuse_unused_options(config)
    check_optimizer(config.optimizer, config.network, config.training.ema_decay)
    check_output(config.output, host.log)
    check_quantize(config.model.quantize)
    check_sharding(config.memory.shard, processes, config.model)
    refuse_adapting(config.memory, processes.count)
    check_format(config.output.format, config.network.kind, config.network.tucker, config.network.train_norm)
    base = open_base(config.model, config.text, config.objective)
    check_matmul(config.model.matmul, base.device)
    base.check_encoders()
    check_objective(config.objective, base.settings.objective)
    base.check_guidance("objective.guidance_scale", config.objective.guidance_scale, 1.0)
    listed = gather_sets(config.dataset, config.dataset_files)
    check_full(config, listed.sets, base)
    check_bucket_steps(config.data, listed.sets)
    sharded, by_length = config.memory.shard, base.settings.by_length
    check_teachers(listed.sets, sharded=sharded)
    check_passes(config.training, sharded=sharded, by_length=by_length, family=base.family.name)
    if (stream := stream_settings(config.memory.base, config.memory.vram_gb)) is not None:
        base.check_stream(config.model, config.training.precision, stream)
    references = [one.reference_folders for one in listed.sets]
    check_reference_use("dataset.references", references, base)
    check_samples(config, base)
    skeleton, folder = base.skeleton(), run_folder(config, processes)
    check_routes(config.objective.routes, skeleton.module, base.family.name)
    base_loras = read_base_loras(config, base, skeleton)
    optimizer = with_rate(config.optimizer, config.network, folder, skeleton.module, host.log)
    objective = with_guided_scale(with_spread(config.objective, folder), folder, base.settings.guided_scale)
    training = with_length(with_average(config.training, config.optimizer, config.network, folder), folder)
    config = replace(config, optimizer=optimizer, objective=objective, training=training)
    passes = pass_notes(objective, sharded=config.memory.shard)
    check_text_training(config.text, config.optimizer, config.network, [*base.settings.text_parts], base.family.name)
    fits: Denoiser = with_text(skeleton, base) if config.text.is_trained else skeleton
    targets = modules_of_run(folder, fits.module, partial(new_targets, config, base, skeleton, fits))
    if config.network.init_from:
        init = Formats(family=base.family, denoiser=skeleton).native(read_lora(config.network.init_from))
        check_fits(init, [fits.file_key(path) for path in targets], config.network)
    index, reading = FileIndex(cache_folder(config) / "files.json"), partial(host.stage, "reading images")
    dataset = dataset_of(listed.sets, config.data, base.family.bucket_step, config.training.seed, index, reading)
    check_strengths(dataset.training, config.network, optimizer.learning_rate, sharded=config.memory.shard)
    refuse_long_sides(dataset.examples, positions_per_side(skeleton.module) * base.family.bucket_step, base.family.name)
    check_measured(config.training, config.validation, dataset.held_out)
    per_step = config.training.gradient_accumulation_steps * processes.count
    plan = make_plan(dataset.training, config.training.batch_size, config.training.seed, per_step)
    check_batches(processes, plan.per_epoch)
    training = in_steps(config.training, plan.batches_in, dataset.trained_images, processes.count, host.log)
    config = replace(config, training=training)
    check_schedule(config.schedule, config.training.steps)
    if (alone := unused_references("dataset.references", references, base)) and config.data.strict:
        raise DataError(f"data.strict: {alone}")
    said = base.warnings(adapter=has_adapter(base_loras), guided=objective.guided_loss != "off")
    layers = layers_of(fits.module, targets)
    for note in (layers_text(layers), *said, *passes, *listed.notes, *([alone] if alone else [])):
        host.log(note)
    report = make_report(dataset)
    host.log(report.text())
    if config.data.strict:
        refuse_warnings(report)
    host.log(epochs_text(report, config.training.batch_size, per_step, config.training.steps))
    return Prepared(
        config=config,
        base=base,
        dataset=dataset,
        report=report,
        plan=plan,
        targets=targets,
        layers=layers,
        cache=Cache(cache_folder(config)),
        identity=base.encoder_identity(tiled=config.memory.vae_tiling),
        folder=folder,
        processes=processes,
        trigger=trigger_words(listed.sets),
        base_loras=base_loras,
        preview=open_preview(config, base, skeleton, targets),
    )


def build_cache(prepared: Prepared, host: Host) -> CacheReport:
    """Encode what the cache lacks; the encoders are loaded only for that and dropped afterwards. Online there is nothing to do."""
    if prepared.config.memory.cache == "online":
        host.log("memory.cache = 'online': every image and text is encoded when a batch needs it; nothing is kept")
        return CacheReport(reused=0, encoded=0, bytes=0)
    trains_text = prepared.config.text.is_trained
    work = find_work(prepared.cache, prepared.dataset, prepared.identity, texts=not trains_text)
    if not work.count:
        return CacheReport(reused=work.reused, encoded=0, bytes=0)
    host.log(f"cache: {work.reused} items reused, {work.count} to encode")
    encoders = prepared.base.load_encoders(tiled=prepared.config.memory.vae_tiling)

    def progress(what: str, done: int, total: int) -> None:
        host.stage(f"encoding {what}", done, total)
        if host.should_stop():
            raise StoppedError("stopped while encoding; what is done is kept, run it again to go on")

    return fill(prepared.cache, work, encoders, prepared.config.memory.vae_batch_size, progress)


def train(config: TrainConfig, host: Host) -> Outcome:
    """The whole job: check, cache, load, train, save. Continues the run of this name if it is the same run.

    Where a launcher has started several processes, each calls this with the same configuration; they train one LoRA.
    """
    with joined(config.model.device) as processes:
        with main_first(processes):
            prepared = prepare(config, host, processes)
            prepared.memory_plan = predicted(partial(plan_memory, prepared), host.log)
        return _train(prepared, host)


def _train(prepared: Prepared, host: Host) -> Outcome:
    folder, processes = prepared.folder, prepared.processes
    folder.lock()
    try:
        config, fixed = (plan := run_plan(prepared)).config(), plan.fixed(processes.count)
        processes.require_same("configuration, base or dataset", digest([fixed, config]))
        if plan.output.loras:
            check_writable(Path(plan.output.loras).expanduser() / plan.name)
        here = environment(str(prepared.base.device), torch.get_num_threads(), processes.count)
        if processes.from_main(lambda: folder.is_replaceable(fixed, config)):
            host.log(folder.forget())
        elif folder.exists():
            folder.check_same(fixed, config)
            if changed := folder.changed_environment(here):
                host.log(changed)
        folder.start(config, fixed, here, prepared.targets, {"layers": prepared.layers})
        with folder.noting_failure():
            folder.update(state="caching", error="", memory_plan=as_record(prepared.memory_plan))
            _cache_once(prepared, host)
            return execute_adapting(_remade(prepared, plan), plan.memory, folder, host)
    finally:
        folder.unlock()


def _remade(prepared: Prepared, plan: RunPlan) -> Remade:
    """The run as it can be made again where memory has run out."""
    config = prepared.config

    def make(memory: MemoryConfig) -> Session:
        if memory == config.memory:
            return make_session(prepared, plan)
        changed = replace(prepared, config=replace(config, memory=memory), memory_plan=None)
        return make_session(changed, replace(plan, memory=memory))

    def sizes() -> BaseSizes:
        structure = prepared.base.structure(config.model, config.training.precision)
        return base_sizes(structure.module, config.model.packing)

    return Remade(make=make, sizes=sizes, stream=prepared.stream)


def plan_memory(prepared: Prepared, *, every_bucket: bool = False) -> MemoryPlan:
    """What the run will need, from shapes. Raises ConfigError for what cannot fit, with the nearest settings that do."""
    taken = [line["seconds"] for line in prepared.folder.read_metrics() if "seconds" in line]
    config, below, other = prepared.config, prepared.base_loras, prepared.preview
    done = is_filled(prepared.cache, prepared.dataset, prepared.identity, texts=not config.text.is_trained)
    run = FilesRun(prepared.base, config, prepared.dataset, prepared.targets, below, other, done)
    return plan_files(run, taken, every_bucket=every_bucket)


def run_plan(prepared: Prepared) -> RunPlan:
    """What the run is, as both front ends say it."""
    config, whole = prepared.config, to_dict(prepared.config)
    return RunPlan(
        name=config.name,
        network=config.network,
        optimizer=config.optimizer,
        schedule=config.schedule,
        objective=config.objective,
        training=config.training,
        memory=config.memory,
        validation=config.validation,
        output=config.output,
        trigger=prepared.trigger,
        facts=_facts(prepared),
        base_loras=tuple(one.identity for one in prepared.base_loras),
        own={name: whole[name] for name in ("model", "dataset", "dataset_files", "data", "text", "sweep")},
    )


def _cache_once(prepared: Prepared, host: Host) -> None:
    """Process 0 encodes what is missing while the others wait."""
    if prepared.processes.rank == 0:
        done = build_cache(prepared, host)
        host.log(f"cache: {done.text()}")
    prepared.processes.wait()
    prepared.cache.reload()


def _facts(prepared: Prepared) -> dict[str, str]:
    """Digests of what the paths in the configuration lead to."""
    init = prepared.config.network.init_from
    return {
        "model": prepared.base.identity(),
        "encoders": digest([prepared.identity.vae, prepared.identity.text]),
        "data": prepared.dataset.digest,
        "init": tensors_digest(read_lora(init)) if init else "",
    }


def make_session(prepared: Prepared, plan: RunPlan) -> Session:
    """Load what is needed and put it together. Text encoders go before the network comes, or with it if they are trained."""
    config, base, main = prepared.config, prepared.base, prepared.processes.rank == 0
    inputs = None
    if main or config.memory.shard:  # where the base is split, all processes must take part in every pass
        inputs = sample_inputs(config, base)
    backend = _load_backend(prepared)
    samples = None
    if inputs is not None:
        place, other, below = prepared.folder.path / "samples", prepared.preview, prepared.base_loras
        samples = make_samples(
            config, base, inputs, backend.denoiser, place, preview=other, base_loras=below, writes=main
        )
    data = RunData(
        training=dataset_batches(prepared, prepared.dataset.training),
        held_out=Singles(dataset_batches(prepared, prepared.dataset.held_out)),
        images=len(prepared.dataset.training),
        resolution=config.data.resolution,
        files=prepared.dataset.learnt_files,
    )
    return assemble(
        plan, backend, data, prepared.folder, prepared.targets, samples=samples, processes=prepared.processes
    )


def _load_backend(prepared: Prepared) -> Backend:
    config, base = prepared.config, prepared.base
    denoiser: Denoiser = base.load_denoiser(
        config.model,
        config.training.precision,
        sharded=config.memory.shard,
        stream=prepared.stream,
        keep_originals=config.network.is_loftq,
    )
    mapped = mapped_files_of(denoiser.module)
    checkpoint(denoiser.module, config.memory, rests=keeps_activations(prepared.memory_plan))
    laid = lay_base_loras(denoiser.module, prepared.base_loras)
    if config.text.is_trained:
        denoiser = load_with_text(denoiser, base, config.objective.guidance_scale)
    formats, format = Formats(family=base.family, denoiser=base.skeleton()), config.output.format
    return Backend(
        denoiser=denoiser,
        architecture=base.variant,
        compute_dtype=compute_dtype(config.training.precision, base.device),
        shift=base.settings.training_shift,
        init=formats.native(read_lora(init)) if (init := config.network.init_from) else {},
        base_loras=laid,
        rate_scales=rate_scales(config.text, config.optimizer, tuple(base.settings.text_parts)),
        model_file=model_file_of(config, base),
        layout=FileFormat(formats=formats, format=format) if format != "native" else None,
        check_files=mapped.check,
    )


def dataset_batches(prepared: Prepared, examples: Sequence[Example]) -> CachedBatches:
    """Batches of these examples with the conditioning that the family makes of their captions and reference images."""
    base, guidance = prepared.base, prepared.config.objective.guidance_scale
    family = base.family
    encoded = EncodedCaptions(prepared.items, prepared.identity, prepared.encoders)

    def condition(picks: Sequence[PickedExample]) -> Conditioning:
        if prepared.config.text.is_trained:  # `WithText` reads them
            return {"captions": [pick.caption for pick in picks], "geometries": [pick.view.geometry for pick in picks]}
        texts = [encoded.of(pick.view, pick.caption) for pick in picks]
        made = family.condition(texts, [pick.view.geometry for pick in picks], guidance)
        made = {**made, **batch_references(prepared.items, picks, family.latent_space.to_model)}
        return {name: tensor.to(base.device) for name, tensor in made.items()}

    return CachedBatches(
        examples,
        prepared.plan,
        prepared.items,
        prepared.identity.vae,
        normalise=family.latent_space.to_model,
        condition=condition,
        device=base.device,
        guided=prepared.config.objective.guided_loss != "off",
    )
