"""Which classes a workflow may name by path: those of known libraries. A workflow may come from anybody, and importing runs code."""

from ...trainer.errors import ConfigError

LIBRARIES = (
    "torch", "transformers", "bitsandbytes", "schedulefree", "prodigyopt", "prodigyplus", "dadaptation", "lion_pytorch",
    "pytorch_optimizer", "adv_optm", "optimi", "torchao", "came_pytorch", "heavyball", "adabelief_pytorch",
)  # fmt: skip
"""Libraries of optimizers and schedules."""


def check_class_path(name: str, path: str) -> str:
    """The path of a class, without spaces around it. Raises ConfigError for one of another library; `name` is the input."""
    path = path.strip()
    if path and path.partition(".")[0] not in LIBRARIES:
        raise ConfigError(
            f"{name} = {path!r}: a workflow may name classes of {', '.join(LIBRARIES)}; the command line takes any"
        )
    return path
