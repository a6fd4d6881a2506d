"""A full fine-tune cannot be had in the graph, and that is said."""

import pytest

from lora_loom.nodes.settings import LoomNetwork
from lora_loom.trainer.errors import ConfigError


def test_the_node_does_not_offer_it_and_says_why():
    choices, options = LoomNetwork.INPUT_TYPES()["required"]["kind"]
    assert "full" not in choices
    assert "full:" not in options["tooltip"]
    with pytest.raises(
        ConfigError, match="MODEL that ComfyUI and other nodes go on using: train from the command line"
    ):
        LoomNetwork().run(alpha=0.0, kind="full", targets="default")
