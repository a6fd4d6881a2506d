"""LoomTrain, LoomWait, LoomRun."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from .node import InputTypes, LoomNode, NodeOutput
from .sockets.names import BASE_LORA, CACHE, MEMORY, NETWORK, OBJECTIVE, OPTIMIZER, RUN, VALIDATION
from .widgets import BEFORE, folded, link, seed, text, widget

if TYPE_CHECKING:
    from torch import Tensor

    from .host.comfy_types import Graph, ModelPatcher
    from .host.runs.session import TrainRequest
    from .sockets.values import (
        BaseLoraValue,
        CacheValue,
        MemoryValue,
        NetworkValue,
        ObjectiveValue,
        OptimizerValue,
        RunValue,
        ValidationValue,
    )


class AnyType(str):
    """A type that links to every input: ComfyUI refuses STRING -> combo, and older versions a plain "*"."""

    __slots__ = ()

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


ANY = AnyType("*")
VALUE = "value"
STEPS = "Optimizer steps of the whole run, where length is value and epochs is 0."
RATE = "Peak learning rate where rate is value: 1e-4 to 5e-4 is usual for LoRA, 1e-3 for LoKr, a third to a tenth of that for lion, 1.0 for prodigy."
EMA = "Decay of an exponential moving average (EMA) of the adapter's weights where average is value, e.g. 0.995; 0 switches it off. When on, LoRA files hold the EMA, and the current weights are measured and sampled too."
_RUN_OUTPUTS = (RUN, ANY, "IMAGE")
_RUN_NAMES = ("run", "lora_name", "loss_curve")
_RUN_TOOLTIPS = (
    "Connect to Loom Wait for Run or Loom Checkpoints.",
    "The LoRA's name, for LoraLoader.",
    "Training loss so far, raw and smoothed, and the validation loss.",
)


class LoomTrain(LoomNode):
    """Train a LoRA on the loaded model."""

    TITLE = "Loom Train LoRA"
    SEARCH_ALIASES = ("lora", "train lora", "lora training", "trainer", "finetune", "fine-tune", "dreambooth", "learn")
    DESCRIPTION = "Trains a LoRA on the weights that ComfyUI has already loaded, in the background by default: the queue stays usable."
    RETURN_TYPES = (*_RUN_OUTPUTS, "MODEL")
    RETURN_NAMES = (*_RUN_NAMES, "model")
    OUTPUT_TOOLTIPS = (*_RUN_TOOLTIPS, "The MODEL that is trained on: sampling with it loads nothing again.")
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return folded(
            {
                "required": {
                    "model": link(
                        "MODEL",
                        "The base model, from its loader. ModelSampling nodes are respected. LoRAs that are loaded into it belong to the base: the new LoRA is trained on top of them, and they have to be loaded with it. Other patches are refused.",
                    ),
                    "cache": link(CACHE, "From Loom Cache."),
                    "name": text("my-lora", "Name of the run, of its folder and of its LoRA files."),
                    "steps": widget("TrainingConfig", "steps", default=1000, min=1, max=1_000_000, tooltip=STEPS),
                    "learning_rate": widget(
                        "OptimizerConfig",
                        "learning_rate",
                        default=1e-4,
                        min=1e-12,
                        max=10.0,
                        step=0.00001,
                        tooltip=RATE,
                    ),
                    "rank": (
                        "INT",
                        {
                            "default": 16,
                            "min": 1,
                            "max": 1024,
                            "tooltip": "Rank (dimension) of the LoRA. A higher rank learns more detail, forgets more and makes a larger file; 8 to 32 suits most concepts.",
                        },
                    ),
                    "batch_size": widget("TrainingConfig", "batch_size", min=1, max=1024),
                    "save_every": widget("TrainingConfig", "save_every", max=1_000_000),
                    "seed": seed(
                        "Seed of everything random: initial weights, order of images, noise, timesteps, dropout."
                    ),
                    "mode": (
                        ["background", "wait"],
                        {
                            "default": "background",
                            "tooltip": "background: the node returns at once, and training continues while the queue stays usable. wait: the queue is occupied until training ends; Cancel saves a checkpoint and stops.",
                        },
                    ),
                    "existing_run": (
                        ["resume", "new"],
                        {
                            "default": "new",
                            "tooltip": "If a run with this name and these settings exists: both continue it; a finished run is returned as it is. If the run of this name has other settings: resume refuses, new starts or continues name-2.",
                        },
                    ),
                },
                "optional": {
                    "network": link(NETWORK, "From Loom Network."),
                    "optimizer": link(OPTIMIZER, "From Loom Optimizer."),
                    "objective": link(OBJECTIVE, "From Loom Objective."),
                    "memory": link(MEMORY, "From Loom Memory."),
                    "validation": link(VALIDATION, "From Loom Validation: samples and validation loss while training."),
                    "accumulation": widget("TrainingConfig", "accumulation", min=1, max=1024),
                    "ema": widget("TrainingConfig", "ema", default=0.0, max=0.9999, step=0.001, tooltip=EMA),
                    "keep": widget("TrainingConfig", "keep", max=1000),
                    "lora_dtype": widget("OutputConfig", "dtype"),
                    "rate": (
                        ["auto", VALUE, "find"],
                        {
                            "default": "auto",
                            BEFORE: VALUE,
                            "tooltip": "Where the learning rate comes from. auto: by the width of the model and the optimizer, 2e-4 to 5e-4 for real models; the run's log has the number, and a run keeps it. value: the input learning_rate. find: the best of three rates round that of auto, each tried for some steps before the run.",
                        },
                    ),
                    "epochs": widget("TrainingConfig", "epochs", max=100_000.0, step=0.5),
                    "save_every_epochs": widget("TrainingConfig", "save_every_epochs", max=100_000.0, step=0.5),
                    "keep_loras": widget("TrainingConfig", "keep_loras", max=100_000),
                    "base_loras": link(BASE_LORA, "From Loom Base LoRA: frozen LoRAs under the one that is trained."),
                    "length": (
                        ["character", "style", VALUE],
                        {
                            "default": "character",
                            BEFORE: VALUE,
                            "tooltip": "Where the length of the run comes from. character, style: by the number of images and the batch size, each image used about 100 times, 2000 to 7000 images in all for a character, 8000 to 12000 for a style; the run's log has the number of steps. value: the input steps. epochs above 0 goes before.",
                        },
                    ),
                    "keep_best": widget("TrainingConfig", "keep_best"),
                    "clip": link(
                        "CLIP",
                        "Link the loader's CLIP to train a LoRA on the text encoders too: SD 1, SD 2 and SDXL. It reads the captions in every step, with the clip skip that it has; the texts of Loom Cache are not used. LoRAs that are loaded into it belong to the base: the new one is trained on top of them. Not linked: the text encoders are not trained.",
                    ),
                    "text_learning_rate": widget(
                        "TextConfig",
                        "learning_rate",
                        default=5e-5,
                        max=1.0,
                        step=0.000001,
                        tooltip="Peak learning rate of the LoRA on the text encoder at clip: a third to a tenth of the network's is usual.",
                    ),
                    "text_learning_rate_2": widget("TextConfig", "learning_rate_2", min=-1.0, max=1.0, step=0.000001),
                    "text_alone": widget("TextConfig", "alone"),
                    "average": (
                        ["auto", VALUE],
                        {
                            "default": "auto",
                            BEFORE: VALUE,
                            "tooltip": "Whose weights LoRA files hold, and validation loss and samples are of. auto: an average over about the last tenth of the steps so far, from step 100 on: a lower loss in long runs, for four bytes per trained parameter. value: as the input ema says, with 0 the current weights.",
                        },
                    ),
                },
                "hidden": {"prompt": "PROMPT", "node_id": "UNIQUE_ID"},
            },
            # web/unread.js shows steps and learning_rate while they are read
            shown=("name", "rank", "batch_size", "save_every", "rate", "length"),
        )

    @classmethod
    def IS_CHANGED(cls, name: str, existing_run: Literal["resume", "new"] = "resume", **options: object) -> str:
        """Only whether there is something to start: an unchanged graph queued again starts nothing, a failed run goes on, a deleted one begins again."""
        from .host.runs.actions import needs_start

        return needs_start(name, existing_run)

    @classmethod
    def VALIDATE_INPUTS(cls, name: str | None = None) -> bool | str:
        """Before anything is encoded: the name becomes a folder. A name that is a link is not known yet."""
        from ..trainer.errors import ConfigError
        from ..trainer.storage.names import check_name

        try:
            return name is None or bool(check_name(name))
        except ConfigError as error:
            return str(error)

    def run(self, prompt: Graph | None = None, node_id: str | None = None, **inputs: Any) -> NodeOutput:
        from .host.runs.actions import start

        run, lora_name, curve = start(
            _request(inputs), inputs["model"], inputs["mode"], inputs["existing_run"], prompt, node_id
        )
        return {"ui": {"loom_run": [run.name]}, "result": (run, lora_name, curve, inputs["model"])}


def _request(inputs: dict[str, Any]) -> TrainRequest:
    """The settings groups, or their defaults, and this node's own widgets as one request."""
    from dataclasses import replace

    from ..trainer.config.run import (
        NetworkConfig,
        ObjectiveConfig,
        OptimizerConfig,
        ScheduleConfig,
        TextConfig,
        TrainingConfig,
    )
    from ..trainer.errors import ConfigError
    from ..trainer.storage.names import check_name
    from .host.runs.session import TrainRequest, default_memory

    network: NetworkValue | None = inputs.get("network")
    optimizer: OptimizerValue | None = inputs.get("optimizer")
    objective: ObjectiveValue | None = inputs.get("objective")
    memory: MemoryValue | None = inputs.get("memory")
    validation: ValidationValue | None = inputs.get("validation")
    base_loras: BaseLoraValue | None = inputs.get("base_loras")
    cache: CacheValue = inputs["cache"]
    rate: float | Literal["auto", "find"] = (
        inputs["learning_rate"] if inputs.get("rate", VALUE) == VALUE else inputs["rate"]
    )
    length = inputs.get("length", VALUE)
    clip, alone = inputs.get("clip"), inputs.get("text_alone", False)
    if alone and clip is None:
        raise ConfigError(
            "text_alone is on and no clip is linked: link the CLIP that is to be trained, or switch it off"
        )
    names = {"learning_rate": "text_learning_rate", "learning_rate_2": "text_learning_rate_2"}
    rates = {option: inputs[name] for option, name in names.items() if name in inputs}
    return TrainRequest(
        name=check_name(inputs["name"]),
        training=TrainingConfig(
            steps=inputs["steps"] if length == VALUE else 0,
            goal="character" if length == VALUE else length,
            batch_size=inputs["batch_size"],
            gradient_accumulation_steps=inputs.get("accumulation", 1),
            seed=inputs["seed"],
            save_every=inputs["save_every"],
            keep_checkpoints=inputs.get("keep", 0),
            ema_decay=inputs.get("ema", 0.0) if inputs.get("average", VALUE) == VALUE else "auto",
            keep_best=inputs.get("keep_best", False),
            **{name: inputs[name] for name in ("epochs", "save_every_epochs", "keep_loras") if name in inputs},
        ),
        network=replace(network.network if network else NetworkConfig(), rank=inputs["rank"]),
        optimizer=replace(optimizer.optimizer if optimizer else OptimizerConfig(), learning_rate=rate),
        schedule=optimizer.schedule if optimizer else ScheduleConfig(),
        objective=objective.objective if objective else ObjectiveConfig(),
        memory=memory or default_memory(),
        validation=validation,
        cache=cache,
        lora_dtype=inputs.get("lora_dtype", "bfloat16"),
        base_loras=base_loras.loras if base_loras else (),
        clip=clip,
        text=TextConfig(**rates, alone=alone) if clip is not None else TextConfig(),
    )


class LoomWait(LoomNode):
    """Wait for a run."""

    TITLE = "Loom Wait for Run"
    SEARCH_ALIASES = ("wait", "after training", "lora name")
    DESCRIPTION = "Waits until a run has ended and returns its LoRA, or fails with the error of the run. Cancel ends the waiting, not the run."
    RETURN_TYPES = _RUN_OUTPUTS
    RETURN_NAMES = _RUN_NAMES
    OUTPUT_TOOLTIPS = _RUN_TOOLTIPS
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {"required": {"run": link(RUN, "From Loom Train LoRA or Loom Run.")}}

    @classmethod
    def IS_CHANGED(cls, **inputs: object) -> str:
        from .host.runs.actions import states

        return states()

    def run(self, run: RunValue) -> tuple[RunValue, str, Tensor]:
        from .host.runs.actions import wait

        return wait(run)


class LoomRun(LoomNode):
    """A run on disk."""

    TITLE = "Loom Run (from disk)"
    SEARCH_ALIASES = ("run", "load run", "trained lora", "open run")
    DESCRIPTION = "A run by name: one that was trained before, or one that trains now, with its MODEL."
    RETURN_TYPES = (RUN, "MODEL")
    RETURN_NAMES = ("run", "model")
    OUTPUT_TOOLTIPS = (
        "Connect to Loom Wait for Run or Loom Checkpoints.",
        "The MODEL of a run that trains now, as its LoomTrain was given it: sampling with it loads no second copy. A run that does not train has none.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {
            "required": {"name": text("my-lora", "Name of the run.")},
            "hidden": {"prompt": "PROMPT", "node_id": "UNIQUE_ID"},
        }

    @classmethod
    def IS_CHANGED(cls, name: str, **hidden: object) -> str:
        from .host.runs.actions import state_of

        return state_of(name)

    def run(
        self, name: str, prompt: Graph | None = None, node_id: str | None = None
    ) -> tuple[RunValue, ModelPatcher | None]:
        from .host.runs.actions import model_of, open_run

        return open_run(name), model_of(name) if _is_linked(prompt or {}, node_id, 1) else None


def _is_linked(graph: Graph, node_id: str | None, output: int) -> bool:
    """Whether some node of a queued graph takes this output."""
    return any([node_id, output] in node["inputs"].values() for node in graph.values())
