"""From a MODEL, a cache and settings to a session: everything that must happen in the node's thread before training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from ....trainer.config.model import BaseLoraConfig
from ....trainer.config.network import check_loftq
from ....trainer.config.run import (
    LoraDtype,
    MemoryConfig,
    NetworkConfig,
    ObjectiveConfig,
    OptimizerConfig,
    OutputConfig,
    ScheduleConfig,
    TextConfig,
    TrainingConfig,
    ValidationConfig,
)
from ....trainer.config.toml import to_dict
from ....trainer.data.batches import Singles
from ....trainer.data.order import AnyPlan, make_plan
from ....trainer.data.report import epochs_text, make_report
from ....trainer.data.sets.dataset import Dataset
from ....trainer.data.sets.reach import refuse_long_sides
from ....trainer.diffusion.denoiser import Denoiser
from ....trainer.diffusion.timesteps import ResolutionShift
from ....trainer.diffusion.token_routing import check_routes
from ....trainer.families.common.positions import positions_per_side
from ....trainer.lora.base_lora import BaseLora, has_adapter, lay_base_loras
from ....trainer.lora_tools.base_loras import refuse_training_loras
from ....trainer.memory_plan.plan import as_record, keeps_activations, predicted
from ....trainer.runs.assemble import assemble
from ....trainer.runs.plan import RunPlan
from ....trainer.runs.run_folder import RunFolder
from ....trainer.runs.session import Backend, RunData, Session
from ....trainer.runs.settled import with_average, with_guided_scale, with_length, with_rate, with_spread
from ....trainer.storage.fingerprint import tensors_digest
from ....trainer.storage.tensor_file import read_lora
from ....trainer.training.early_stopping import check_measured
from ....trainer.training.epochs import in_steps
from ....trainer.training.loss_settings import GUIDED_SCALE, check_objective, check_strengths, pass_notes
from ....trainer.training.optim import check_optimizer
from ....trainer.training.schedule import check_schedule
from ....trainer.training.text_encoders import rate_scales
from ....trainer.types import Record
from ....trainer.weights.devices import DTYPES
from ....trainer.weights.packing.layers import check_matmul
from ....trainer.weights.quantize import check_quantize
from ...sockets.values import CacheValue, MemoryValue, ValidationValue
from ..backend.denoiser import (
    LoadedDenoiser,
    bring_to_device,
    leave_in_ram,
    load_denoiser,
    refuse_patches,
)
from ..backend.encoder_check import check_encoders
from ..backend.lora_check import host_arithmetic
from ..backend.model_rows import as_begun, record_of, warnings
from ..backend.objective import check_pure_noise
from ..backend.patches import without_patches
from ..backend.sharing.mapped_files import HostFiles
from ..comfy_types import Clip, ModelPatcher
from ..encoding.datasets import read_listing
from ..encoding.encoders import clip_identity, model_identity
from ..encoding.texts import check_texts, load_texts
from ..paths import find_lora, lora_folder, root
from .batches import open_batches
from .memory.arithmetic import settle_arithmetic
from .memory.around import Beside
from .memory.memory_plan import GraphRun, plan_graph
from .memory.weights import prepare_weights, wanted_stream
from .preview import check_preview, load_preview
from .samples import HELD, all_texts, encoder_of, make_samples
from .targets import NO_TEXT, choose_modules, initial_weights, see_network


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What LoomTrain was asked for."""

    name: str
    training: TrainingConfig
    network: NetworkConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    objective: ObjectiveConfig
    memory: MemoryValue
    validation: ValidationValue | None
    cache: CacheValue
    lora_dtype: LoraDtype = "bfloat16"
    base_loras: tuple[BaseLoraConfig, ...] = ()
    """Files of LoomBaseLora, by their full paths."""
    clip: Clip | None = None
    """The CLIP that is trained too."""
    text: TextConfig = NO_TEXT

    def settled(
        self, folder: RunFolder, network: nn.Module, log: Callable[[str], None], guided_scale: float = GUIDED_SCALE
    ) -> "TrainRequest":
        """The same request with what "auto" stands for in the run of this folder. `guided_scale` is the usual one of the model."""
        return replace(
            self,
            optimizer=with_rate(self.optimizer, self.network, folder, network, log),
            objective=with_guided_scale(with_spread(self.objective, folder), folder, guided_scale),
            training=with_length(with_average(self.training, self.optimizer, self.network, folder), folder),
        )

    def plan(self, facts: Record, below: Sequence[BaseLora] = ()) -> RunPlan:
        """The run as both front ends describe it. The base model is a MODEL here, the data a filled cache. `below` are its base LoRAs."""
        value, cache = self.validation, self.cache
        files = {"base_lora": [to_dict(one) for one in self.base_loras]} if self.base_loras else {}
        return RunPlan(
            name=self.name,
            network=self.network,
            optimizer=self.optimizer,
            schedule=self.schedule,
            objective=self.objective,
            training=replace(self.training, precision=self.memory.precision),
            memory=self.memory.memory,
            validation=value.validation if value else ValidationConfig(),
            output=OutputConfig(
                directory=str(root()),
                loras=str(lora_folder()),
                dtype=self.lora_dtype,
                **(value.trackers if value else {}),
            ),
            trigger=cache.trigger,
            facts=facts,
            base_loras=tuple(one.identity for one in below),
            own={
                "model": {"quantize": self.memory.quantize, "matmul": self.memory.matmul, **files},
                **({"text": to_dict(self.text)} if self.clip else {}),
                "cache": {
                    "folder": cache.folder,
                    "listing": cache.listing,
                    "resolution": cache.resolution,
                    "trigger": cache.trigger,
                },
            },
        )


def with_steps(request: TrainRequest, dataset: Dataset, log: Callable[[str], None]) -> TrainRequest:
    """The request with the length of the run in steps. Raises ConfigError for a batch or a schedule that does not go with it."""
    training = request.training
    plan = plan_of(dataset, training)
    request = replace(request, training=in_steps(training, plan.batches_in, dataset.trained_images, 1, log))
    check_schedule(request.schedule, request.training.steps)
    return request


def plan_of(dataset: Dataset, training: TrainingConfig) -> AnyPlan:
    """The order of a run's batches. Raises ConfigError."""
    steps = training.gradient_accumulation_steps
    return make_plan(dataset.training, training.batch_size, training.seed, steps)


def check_request(patcher: ModelPatcher, request: TrainRequest) -> Dataset:
    """Everything that can be refused without touching a weight. Raises LoomError."""
    refuse_patches(patcher)
    refuse_training_loras(request.network, request.base_loras)
    check_optimizer(request.optimizer, request.network, request.training.ema_decay)
    check_quantize(request.memory.quantize)
    check_loftq(request.network, request.memory.quantize, request.memory.matmul)
    check_matmul(request.memory.matmul, torch.device(patcher.load_device))
    dataset = Dataset(examples=tuple(read_listing(request.cache)))
    check_strengths(dataset.training, request.network, request.optimizer.learning_rate)
    reach = longest_side(patcher.model.diffusion_model, request.cache.factor)
    refuse_long_sides(dataset.examples, reach, type(patcher.model).__name__)
    measured = request.validation.validation if request.validation else ValidationConfig()
    check_measured(request.training, measured, dataset.held_out)
    check_encoders(patcher.model, request.cache, dataset.examples)
    if request.clip is not None:
        check_texts(patcher, request.clip, request.text, request.optimizer, request.network)
    if preview := preview_of(request):
        stream = wanted_stream(patcher, request.memory.memory)
        check_preview(preview, patcher, request.network, streamed=stream is not None, with_clip=bool(request.clip))
    return dataset


def preview_of(request: TrainRequest) -> ModelPatcher | None:
    """The MODEL that samples are made with; None for the one that is trained."""
    return HELD.of(request.validation).preview if request.validation else None


def longest_side(network: nn.Module, factor: int) -> int:
    """How many pixels of one side the network's table of positions reaches; 0 where positions are computed and have no end.

    `factor`: pixels per latent row or column. Only networks with a table have one square patch size: that of video networks
    is (frames, rows, columns).
    """
    patches = positions_per_side(network)
    return patches * int(network.patch_size) * factor if patches else 0  # type: ignore[arg-type]


def facts(patcher: ModelPatcher, request: TrainRequest) -> Record:
    """Digests of the model, the data and the encoders."""
    init = request.network.init_from
    return {
        "model": sampled_identity(without_patches(patcher)),
        "data": request.cache.digest,
        "vae": request.cache.vae,
        "text": request.cache.text + (f" beside {pixels} px" if (pixels := request.cache.text_pixels) else ""),
        "init": tensors_digest(read_lora(find_lora(init))) if init else "",
        **({"clip": clip_identity(request.clip)} if request.clip else {}),
    }


def sampled_identity(patcher: ModelPatcher) -> str:
    """Returns the identity of a MODEL with the way it samples, which conditions in the cache belong to."""
    sampling = patcher.get_model_object("model_sampling")
    how = {"sampling": sorted(cls.__name__ for cls in type(sampling).__mro__), "sigma_max": float(sampling.sigma_max)}
    how["sigma_middle"] = float(sampling.sigmas[len(sampling.sigmas) // 2])
    return model_identity(patcher, how)


def make_session(
    patcher: ModelPatcher,
    request: TrainRequest,
    plan: RunPlan,
    dataset: Dataset,
    folder: RunFolder,
    below: Sequence[BaseLora],
    progress: Callable[[int, int], None],
    log: Callable[[str], None],
) -> Session:
    """Build the shadow, the network's inputs, the samples' decoder and of these the session. Raises LoomError."""
    stream = wanted_stream(patcher, request.memory.memory)
    value, preview = request.validation, preview_of(request)
    others: list[ModelPatcher] = [one for one in (preview, request.clip and request.clip.patcher) if one]
    precision, training = plan.training.precision, plan.training
    denoiser = load_denoiser(patcher, compute_dtype=None if precision == "auto" else DTYPES[precision])
    denoiser.settings = as_begun(folder, denoiser.settings, denoiser.plain)
    check_objective(plan.objective, denoiser.objective)
    check_pure_noise(plan.objective, denoiser.objective)
    check_routes(plan.objective.routes, denoiser.module, denoiser.family)
    see = partial(see_network, patcher.model, denoiser, request.cache, plan.facts["model"], dataset.examples, log)
    texts = (
        load_texts(request.clip, patcher, denoiser, dataset.examples, all_texts(value), request.cache, log)
        if request.clip
        else None
    )
    whole: Denoiser = texts.whole if texts else denoiser
    modules, layers = choose_modules(folder, denoiser, plan.network, plan.optimizer, see, log, texts, request.text)
    init = initial_weights(plan.network, whole, modules)
    predicts, guided = denoiser.objective.name, plan.objective.guided_loss != "off"
    for warning in warnings(denoiser.settings.told, patcher, predicts, adapter=has_adapter(below), guided=guided):
        log(f"warning: {warning}")
    for note in pass_notes(plan.objective):
        log(note)
    log(epochs_text(make_report(dataset), training.batch_size, training.gradient_accumulation_steps, training.steps))
    batches = open_batches(
        patcher,
        denoiser,
        request.cache,
        plan.objective,
        plan.facts["model"],
        dataset.examples,
        plan_of(dataset, training),
        progress,
        texts,
    )
    shift = training_shift(denoiser)
    beside = Beside(value=value, texts=texts, caching=request.cache.encoding_bytes)
    run = GraphRun(
        denoiser=denoiser,
        plan=plan,
        targets=modules,
        dataset=dataset,
        batches=batches,
        shift=shift,
        beside=beside,
        matmul=request.memory.matmul,
        below=below,
    )
    arithmetic = {} if texts else settle_arithmetic(run, patcher, request.memory, folder, log)
    taken = [line["seconds"] for line in folder.read_metrics() if "seconds" in line]
    plan_memory = partial(plan_graph, run, patcher, request.memory.packing, taken)
    memory_plan = predicted(plan_memory, log)
    if stream is None and memory_plan is not None and memory_plan.streamed:
        stream = memory_plan.stream
    stays_in_ram = stream is not None or request.memory.packing != "none"
    if stays_in_ram:
        leave_in_ram(patcher)
    bring_to_device(*([] if stays_in_ram else [patcher]), *others)
    denoiser.module = load_denoiser(patcher, compute_dtype=denoiser.compute_dtype).module  # as the weights lie now
    how = {"rests": keeps_activations(memory_plan), "keep": request.network.is_loftq}
    prepare_weights(denoiser, patcher, request.memory, stream, log, **how)
    laid = lay_base_loras(denoiser.module, [one for one in below if not one.identity.on_clip])
    if texts and request.clip:
        texts.place(request.clip, denoiser, [one for one in below if one.identity.on_clip])
    backend = Backend(
        denoiser=whole,
        architecture=denoiser.family,
        compute_dtype=denoiser.compute_dtype,
        shift=shift,
        init=init,
        base_loras=laid,
        rate_scales=rate_scales(request.text, plan.optimizer, tuple(texts.clip.parts)) if texts else {},
        arithmetic=host_arithmetic(patcher.model, request.clip),
        check_files=HostFiles(denoiser.module).check,
        about={
            "base_model": record_of(denoiser.settings),
            "layers": layers,
            "memory_plan": as_record(memory_plan),
            **arithmetic,
        },
    )
    data = RunData(
        training=batches(dataset.training),
        held_out=Singles(batches(dataset.held_out)),
        images=len(dataset.training),
        resolution=request.cache.resolution,
        files=dataset.learnt_files,
        encoder=encoder_of(value),
    )
    shown = load_preview(preview, denoiser, request.base_loras, request.memory) if preview else denoiser
    samples = (
        make_samples(value, preview or patcher, shown, folder.path, training, is_other=preview is not None, texts=texts)
        if value
        else None
    )
    return assemble(plan, backend, data, folder, modules, samples=samples)


def training_shift(denoiser: LoadedDenoiser) -> float | ResolutionShift:
    """The family's shift of trained noise levels, else the shift that the model samples with."""
    shift = denoiser.settings.training_shift
    if shift is None:
        return denoiser.objective.sampling_shift() if denoiser.objective.name == "flow" else 1.0
    return shift


def default_memory() -> MemoryValue:
    """The settings of a run without a LoomMemory node: nothing is quantized and training does not yield to queued prompts for a set time."""
    return MemoryValue(memory=MemoryConfig(), precision="auto", quantize="none", yield_max_s=0.0)
