"""An error that nobody foresaw is one plain line in ComfyUI too; what ComfyUI itself must see passes."""

import pytest

from lora_loom.nodes import NODE_CLASS_MAPPINGS
from lora_loom.nodes.node import LoomNode
from lora_loom.trainer.errors import ConfigError, LoomError


class InterruptProcessingException(Exception):
    """Named as ComfyUI's: somebody pressed Cancel."""


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


class Fails(LoomNode):
    FUNCTION = "work"

    def work(self, error, value=1):
        raise error


@pytest.mark.parametrize("name", NODE_CLASS_MAPPINGS)
def test_every_node_has_the_boundary(name):
    cls = NODE_CLASS_MAPPINGS[name]
    assert hasattr(getattr(cls, cls.FUNCTION), "__wrapped__")


def test_a_mistake_is_one_line_that_keeps_its_cause():
    with pytest.raises(LoomError, match=r"^unexpected KeyError: 'what'\. This is a mistake of LoRA Loom") as raised:
        Fails().work(error=KeyError("what"))
    assert isinstance(raised.value.__cause__, KeyError)


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("rank = 0: give a number from 1"),
        InterruptProcessingException(),
        OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
        KeyboardInterrupt(),
    ],
)
def test_what_has_a_meaning_of_its_own_passes(error):
    with pytest.raises(type(error)) as raised:
        Fails().work(error)
    assert raised.value is error
