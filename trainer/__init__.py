"""The engine. What is listed here is its Python interface (docs/python-api.md); each name is imported when it is first used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base_model import open_base as open_base
    from .base_tools import extract_lora as extract_lora
    from .base_tools import merge_into_base as merge_into_base
    from .config import ModelConfig as ModelConfig
    from .config import TrainConfig as TrainConfig
    from .config_file import load as load_config
    from .config_file import parse as parse_config
    from .console import QuietHost as QuietHost
    from .errors import LoomError as LoomError
    from .lora.merge import merge_loras as merge_loras
    from .lora.resize import Keep as Keep
    from .lora.resize import resize as resize_lora
    from .lora.tools import inspect as inspect_lora
    from .lora_convert import convert as convert_lora
    from .lora_places import recognise as recognise
    from .remote_runs import RemoteRuns as RemoteRuns
    from .run import train as train_lora
    from .run_sweep import sweep as sweep_checkpoints
    from .run_sweep import write_strips as write_strips
    from .server_client import ComfyServer as ComfyServer
    from .submit import submit as submit_prompts
    from .workflow import load_workflow as load_workflow
    from .workflow import plan_prompts as plan_prompts
    from .workflow import with_settings as with_settings

_FROM = {
    "open_base": "base_model.open_base",
    "extract_lora": "base_tools.extract_lora",
    "merge_into_base": "base_tools.merge_into_base",
    "ModelConfig": "config.ModelConfig",
    "TrainConfig": "config.TrainConfig",
    "load_config": "config_file.load",
    "parse_config": "config_file.parse",
    "QuietHost": "console.QuietHost",
    "LoomError": "errors.LoomError",
    "merge_loras": "lora.merge.merge_loras",
    "Keep": "lora.resize.Keep",
    "resize_lora": "lora.resize.resize",
    "inspect_lora": "lora.tools.inspect",
    "convert_lora": "lora_convert.convert",
    "recognise": "lora_places.recognise",
    "RemoteRuns": "remote_runs.RemoteRuns",
    "train_lora": "run.train",
    "sweep_checkpoints": "run_sweep.sweep",
    "write_strips": "run_sweep.write_strips",
    "ComfyServer": "server_client.ComfyServer",
    "submit_prompts": "submit.submit",
    "load_workflow": "workflow.load_workflow",
    "plan_prompts": "workflow.plan_prompts",
    "with_settings": "workflow.with_settings",
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


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _FROM[name].rpartition(".")
    return getattr(importlib.import_module(f".{module}", __name__), attribute)
