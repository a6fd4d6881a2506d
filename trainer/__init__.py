"""The training engine. The names listed here are its public Python interface (docs/python-api.md); each is imported on first use."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base_model import open_base as open_base
    from .cli.console import QuietHost as QuietHost
    from .comfy_api.client import ComfyServer as ComfyServer
    from .comfy_api.runs import RemoteRuns as RemoteRuns
    from .comfy_api.submit import submit as submit_prompts
    from .comfy_api.workflow import load_workflow as load_workflow
    from .comfy_api.workflow import plan_prompts as plan_prompts
    from .comfy_api.workflow import with_settings as with_settings
    from .config.run import ModelConfig as ModelConfig
    from .config.run import TrainConfig as TrainConfig
    from .config.toml import load as load_config
    from .config.toml import parse as parse_config
    from .errors import LoomError as LoomError
    from .lora_tools.base_keys import recognise as recognise
    from .lora_tools.convert import convert as convert_lora
    from .lora_tools.inspect import inspect as inspect_lora
    from .lora_tools.merge import merge_loras as merge_loras
    from .lora_tools.resize import Keep as Keep
    from .lora_tools.resize import resize as resize_lora
    from .lora_tools.with_base import extract_lora as extract_lora
    from .lora_tools.with_base import merge_into_base as merge_into_base
    from .runs.headless import train as train_lora
    from .sweep.run import sweep as sweep_checkpoints
    from .sweep.run import write_strips as write_strips

_FROM = {
    "open_base": "base_model.open_base",
    "extract_lora": "lora_tools.with_base.extract_lora",
    "merge_into_base": "lora_tools.with_base.merge_into_base",
    "ModelConfig": "config.run.ModelConfig",
    "TrainConfig": "config.run.TrainConfig",
    "load_config": "config.toml.load",
    "parse_config": "config.toml.parse",
    "QuietHost": "cli.console.QuietHost",
    "LoomError": "errors.LoomError",
    "merge_loras": "lora_tools.merge.merge_loras",
    "Keep": "lora_tools.resize.Keep",
    "resize_lora": "lora_tools.resize.resize",
    "inspect_lora": "lora_tools.inspect.inspect",
    "convert_lora": "lora_tools.convert.convert",
    "recognise": "lora_tools.base_keys.recognise",
    "RemoteRuns": "comfy_api.runs.RemoteRuns",
    "train_lora": "runs.headless.train",
    "sweep_checkpoints": "sweep.run.sweep",
    "write_strips": "sweep.run.write_strips",
    "ComfyServer": "comfy_api.client.ComfyServer",
    "submit_prompts": "comfy_api.submit.submit",
    "load_workflow": "comfy_api.workflow.load_workflow",
    "plan_prompts": "comfy_api.workflow.plan_prompts",
    "with_settings": "comfy_api.workflow.with_settings",
}
__all__ = [
    "ComfyServer",
    "Keep",
    "LoomError",
    "ModelConfig",
    "QuietHost",
    "RemoteRuns",
    "TrainConfig",
    "convert_lora",
    "extract_lora",
    "inspect_lora",
    "load_config",
    "load_workflow",
    "merge_into_base",
    "merge_loras",
    "open_base",
    "parse_config",
    "plan_prompts",
    "recognise",
    "resize_lora",
    "submit_prompts",
    "sweep_checkpoints",
    "train_lora",
    "with_settings",
    "write_strips",
]


def __getattr__(name: str) -> object:
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _FROM[name].rpartition(".")
    value: object = getattr(importlib.import_module(f".{module}", __name__), attribute)
    return value
