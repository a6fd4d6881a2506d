"""Which MODELs can make the samples of a run in place of the one that is trained."""

import re
from types import SimpleNamespace

import pytest
from torch import nn

from lora_loom.trainer.config.run import NetworkConfig
from lora_loom.trainer.errors import ConfigError, ModelFileError

from .test_base_loras import Patcher, entry, lora

LORA = NetworkConfig()


class Network(nn.Module):
    def __init__(self, width=4, blocks=2, outside=4):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(width, 6) for _ in range(blocks))
        self.embedder = nn.Linear(outside, 4)


def patcher(kind="Base", **sizes):
    made = Patcher()
    made.model = type(kind, (SimpleNamespace,), {})(diffusion_model=Network(**sizes))
    return made


def test_a_member_of_the_family_may_differ_outside_of_its_blocks(host):
    check = host("runs.preview").check_preview
    check(patcher(), patcher(), LORA, streamed=False)
    check(patcher(outside=9), patcher(), NetworkConfig(kind="lokr"), streamed=False)
    check(patcher(blocks=3), patcher(), LORA, streamed=False)


REFUSED = {
    "is a Other model, and a Base model is trained": (patcher("Other"), {}),
    "lacks blocks.0 in the shape (6, 4)": (patcher(width=5), {}),
    "lacks blocks.1 in the shape (6, 4)": (patcher(blocks=1), {}),
    "does not go with network.kind = 'dora', only with lora, loha and lokr": (
        patcher(),
        {"network": NetworkConfig(kind="dora")},
    ),
    "does not go with network.kind = 'oft'": (patcher(), {"network": NetworkConfig(kind="oft")}),
    "does not go with a streamed base": (patcher(), {"streamed": True}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_another_is_refused_by_what_is_wrong(host, message):
    shown, changes = REFUSED[message]
    options = {"network": LORA, "streamed": False, **changes}
    with pytest.raises(ConfigError, match=re.escape(message)):
        host("runs.preview").check_preview(shown, patcher(), options.pop("network"), **options)


def test_one_with_patches_that_cannot_be_computed_is_refused(host):
    shown = patcher()
    shown.patches = {"diffusion_model.blocks.0.weight": [entry(("diff", ()))]}
    with pytest.raises(ModelFileError, match="carries diff"):
        host("runs.preview").check_preview(shown, patcher(), LORA, streamed=False)
    shown.patches = {"diffusion_model.blocks.0.weight": [entry(lora())]}
    host("runs.preview").check_preview(shown, patcher(), LORA, streamed=False)
