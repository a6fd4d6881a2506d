"""A network under foreign names, in no table, trains the right layers: told by what runs through them, not by what they are called."""

import pytest
import torch
from torch import nn

from lora_loom.trainer.lora.layers import layers_of, layers_text
from lora_loom.trainer.lora.probe import meta_twin, probe
from lora_loom.trainer.lora.roles import presets, roles

D, BLOCKS = 16, 3
STREAMS = ("ocean", "land")


class Quarrel(nn.Module):
    """Query, key, value and output of two streams that attend to each other, as one Linear each."""

    def __init__(self):
        super().__init__()
        self.ask = nn.ModuleDict({name: nn.Linear(D, 3 * D) for name in STREAMS})
        self.tell = nn.ModuleDict({name: nn.Linear(D, D) for name in STREAMS})

    def forward(self, ocean, land):
        both = torch.cat([self.ask["ocean"](ocean), self.ask["land"](land)], dim=1)
        q, k, v = both.chunk(3, dim=-1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        sea, shore = mixed.split([ocean.shape[1], land.shape[1]], dim=1)
        return self.tell["ocean"](sea), self.tell["land"](shore)


class Tide(nn.Module):
    """A block with two streams. `moon` makes scales and shifts, which neither its name nor a Sequential says."""

    def __init__(self):
        super().__init__()
        self.moon = nn.Linear(D, 4 * D)
        self.quarrel = Quarrel()
        self.ferment = nn.ModuleDict(
            {name: nn.ModuleList([nn.Linear(D, 3 * D), nn.Linear(3 * D, D)]) for name in STREAMS}
        )

    def forward(self, ocean, land, hour):
        scale, shift, scale2, shift2 = self.moon(nn.functional.silu(hour)).unsqueeze(1).chunk(4, dim=-1)
        sea, shore = self.quarrel(ocean * (1 + scale) + shift, land)
        ocean, land = ocean + sea, land + shore
        return ocean + self._ferment("ocean", ocean * (1 + scale2) + shift2), land + self._ferment("land", land)

    def _ferment(self, name, x):
        up, down = self.ferment[name]
        return down(nn.functional.gelu(up(x)))


class World(nn.Module):
    """Image and text come in, the image goes out; the last block's text goes nowhere."""

    def __init__(self):
        super().__init__()
        self.shoreline, self.letters, self.clock = nn.Linear(4, D), nn.Linear(8, D), nn.Linear(1, D)
        self.tides = nn.ModuleList(Tide() for _ in range(BLOCKS))
        self.horizon = nn.Linear(D, 4)

    def forward(self, image, text, time):
        ocean, land, hour = self.shoreline(image), self.letters(text), self.clock(time)
        for tide in self.tides:
            ocean, land = tide(ocean, land, hour)
        return self.horizon(ocean)


@pytest.fixture(scope="module")
def seen():
    twin = meta_twin(World())
    sizes = ((9, 5), (12, 5), (9, 3))

    def run(pixels, tokens):
        made = (torch.zeros(1, pixels, 4), torch.zeros(1, tokens, 8), torch.zeros(1, 1))
        return twin(*(tensor.to("meta") for tensor in made))

    return probe(twin, [lambda size=size: run(*size) for size in sizes])


def numbered(pattern, blocks=BLOCKS):
    return {pattern.format(number) for number in range(blocks)}


def test_modulation_is_told_by_what_runs_through_it(seen):
    told = roles(World(), seen)
    assert {path for path, role in told.items() if role == "modulation"} == numbered("tides.{}.moon")
    assert {path for path, role in told.items() if role == "outside"} == {"shoreline", "letters", "clock", "horizon"}
    attention = {path for path, role in told.items() if role == "attention"}
    assert attention == {path for path in told if ".quarrel." in path}
    assert not [path for path, role in roles(World()).items() if role == "modulation"], "its name says nothing"


def test_layers_that_reach_nothing_are_no_targets(seen):
    last = f"tides.{BLOCKS - 1}"
    dead = {f"{last}.quarrel.tell.land", f"{last}.ferment.land.0", f"{last}.ferment.land.1"}
    assert seen.idle == dead
    found = presets(World(), seen)
    assert not dead & found["all"].paths
    assert len(found["all"].paths) == BLOCKS * 9 - 3
    assert found["attention+mlp"].paths == found["all"].paths - numbered("tides.{}.moon")


def test_what_is_idle_gets_no_gradient_on_real_numbers(seen):
    torch.manual_seed(0)
    network = World()
    network(torch.randn(1, 9, 4), torch.randn(1, 5, 8), torch.rand(1, 1)).square().sum().backward()
    without = {
        path for path, part in network.named_modules() if isinstance(part, nn.Linear) and part.weight.grad is None
    }
    assert without == seen.idle


def test_a_twin_holds_no_number_and_leaves_the_network_alone():
    network = World()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    twin = meta_twin(network)
    assert {tensor.device.type for tensor in twin.state_dict().values()} == {"meta"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_the_log_says_which_layers_train_and_which_do_not(seen):
    network = World()
    layers = layers_of(network, sorted(presets(network, seen)["attention+mlp"].paths), roles(network, seen))
    assert layers == {
        "trained": {"mlp": 10, "attention": 11},
        "left_out": {"outside": 4, "modulation": 3, "mlp": 2, "attention": 1},
        "outside": ["shoreline", "letters", "clock", "horizon"],
    }
    text = layers_text(layers)
    assert "trains 10 mlp, 11 attention" in text
    assert "4 outside of the blocks (shoreline, letters, clock, horizon)" in text
