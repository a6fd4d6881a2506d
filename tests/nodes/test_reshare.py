"""One copy of the base: a run lays its tensors over the copy that the host holds now. Storages are counted, not losses."""

import gc
from types import SimpleNamespace

import peft  # noqa: F401 - now: what its import keeps of the frames that asked for it would be counted
import pytest
import torch
from torch import nn

from lora_loom.trainer.config.run import NetworkConfig
from lora_loom.trainer.lora.adapter import inject
from lora_loom.trainer.weights.frozen import compute_in
from lora_loom.trainer.weights.streaming import StreamSettings, stream_base

WIDTH = 96
LAYER = WIDTH * WIDTH * 4


class Model:
    """What a patcher carries."""

    def __init__(self, network):
        self.diffusion_model = network


class Patcher:
    """A MODEL as the host makes it: clones share the network and its backups."""

    def __init__(self, network, parent=None):
        self.model = parent.model if parent else Model(network)
        self.parent, self.patches, self.object_patches = parent, {}, {}
        self.model_options = {"transformer_options": {}}
        self.backup = parent.backup if parent else {}
        self.hook_backup = parent.hook_backup if parent else {}

    def clone(self):
        return Patcher(None, self)

    def patch(self, key, change):
        """As ComfyUI applies a LoRA: a new parameter, the original in `backup`."""
        self.patches[key] = [change]
        path, _, name = key.rpartition(".")
        module = self.model.diffusion_model.get_submodule(path.removeprefix("diffusion_model."))
        self.backup[key] = SimpleNamespace(weight=getattr(module, name), inplace_update=False)
        setattr(module, name, nn.Parameter(getattr(module, name) + change, requires_grad=False))


def network(seed=0, dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(3)), nn.LayerNorm(WIDTH))
    made.register_buffer("table", torch.arange(WIDTH, dtype=torch.float32))
    made.register_buffer("scratch", torch.zeros(WIDTH), persistent=False)
    made = made.to(dtype).requires_grad_(False)
    with torch.inference_mode():
        for module in made.modules():
            for group in (module._parameters, module._buffers):
                for name, value in group.items():
                    group[name] = nn.Parameter(value.clone(), False) if group is module._parameters else value.clone()
    return made


def live_bytes():
    """Of all storages that tensors of this process lie over, the large ones."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.device.type == "cpu":
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(size for size in storages.values() if size >= LAYER // 4)


class Run:
    """A shadow with an adapter that is trained by plain gradient descent, and what the host has loaded."""

    def __init__(self, host, patcher, dtype=torch.float32):
        self.loaded = []
        self.shadow = host("backend.shadow").build_shadow(
            patcher.model.diffusion_model, dict(patcher.model.diffusion_model.state_dict())
        )
        compute_in(self.shadow, dtype)
        self.base = host("backend.sharing.reshare").SharedBase(self.shadow, patcher, lambda: self.loaded)
        self.adapter = inject(self.shadow, ["0", "1", "2"], NetworkConfig(rank=2), seed=0, compute_dtype=dtype)

    def step(self):
        x = torch.linspace(-1, 1, WIDTH).repeat(2, 1)
        loss = (self.shadow(x).float() - 1).square().mean()
        loss.backward()
        with torch.no_grad():
            for parameter in self.adapter.parameters().values():
                parameter.sub_(0.1 * parameter.grad)
                parameter.grad = None
        return loss.item()

    def weights(self):
        return {name: value.detach().clone() for name, value in self.adapter.parameters().items()}


@pytest.fixture
def none_before():
    return live_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_model_that_was_loaded_again_is_shared_and_the_first_copy_goes(host, dtype, none_before):
    run = Run(host, Patcher(network(dtype=dtype)))
    one = live_bytes() - none_before
    run.step()
    run.loaded = [Patcher(network(dtype=dtype))]
    assert live_bytes() - none_before >= 1.9 * one
    assert "shares that copy" in run.base.follow()
    assert len(run.base.retired) == 1
    run.base.retired.clear()
    assert live_bytes() - none_before <= 1.05 * one
    assert run.base.follow() == ""


def test_training_goes_on_bit_for_bit(host):
    plain, moved = Run(host, Patcher(network())), Run(host, Patcher(network()))
    losses = []
    for step in range(6):
        if step == 3:
            moved.loaded = [Patcher(network())]
            assert moved.base.follow()
            moved.base.retired.clear()
        losses.append((plain.step(), moved.step()))
    assert all(a == b for a, b in losses)
    assert all(torch.equal(a, b) for a, b in zip(plain.weights().values(), moved.weights().values(), strict=True))


@pytest.mark.parametrize("key", ["0.weight", "2.bias", "3.weight", "table"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_model_that_differs_in_one_element_is_not_taken(host, key, dtype):
    run = Run(
        host, Patcher(network(dtype=dtype))
    )  # in bfloat16 norms and biases are cast once, and compared all the same
    other = Patcher(network(dtype=dtype))
    with torch.inference_mode():
        other.model.diffusion_model.state_dict()[key].view(-1)[-1] += 1
    run.loaded = [other]
    before = [p.data_ptr() for p in run.shadow.parameters()]
    assert run.base.follow() == ""
    assert [p.data_ptr() for p in run.shadow.parameters()] == before
    assert run.base.model().model is not other.model


def test_another_class_or_a_patched_loader_is_not_even_compared(host):
    run = Run(host, Patcher(network()))
    strange, patched = Patcher(network()), Patcher(network())
    strange.model = type("Other", (Model,), {})(strange.model.diffusion_model)
    patched.patches = {"diffusion_model.0.weight": [1]}
    run.loaded = [strange, patched]
    assert run.base.follow() == ""


def test_what_a_lora_has_changed_is_taken_from_the_backup(host, none_before):
    run = Run(host, Patcher(network()))
    one = live_bytes() - none_before
    second = Patcher(network())
    clone = second.clone()
    clone.patch("diffusion_model.1.weight", 5.0)
    run.loaded = [clone]
    undisturbed = Run(host, Patcher(network()))
    assert run.base.follow()
    run.base.retired.clear()
    assert run.step() == undisturbed.step()
    del undisturbed
    assert live_bytes() - none_before <= 1.05 * (one + LAYER)  # the patched weight is the host's own
    handed = run.base.model()
    assert handed.model is second.model
    assert not handed.patches


def test_hooks_keep_the_original_elsewhere(host):
    second = Patcher(network())
    weight = second.model.diffusion_model[1].weight
    second.hook_backup["diffusion_model.1.weight"] = (weight.clone(), torch.device("cpu"))
    with torch.inference_mode():
        weight.add_(1)  # in place
    run, undisturbed = Run(host, Patcher(network())), Run(host, Patcher(network()))
    run.loaded = [second]
    assert run.base.follow()
    assert run.step() == undisturbed.step()


def test_a_model_that_was_moved_is_followed(host, none_before):
    patcher = Patcher(network())
    run = Run(host, patcher)
    run.loaded = [patcher]
    one = live_bytes() - none_before
    assert run.base.follow() == ""
    with torch.inference_mode():
        for parameter in patcher.model.diffusion_model.parameters():
            parameter.data = parameter.data.clone()  # as module.to(device) does
    assert live_bytes() - none_before >= 1.9 * one
    assert "moved" in run.base.follow()
    assert live_bytes() - none_before <= 1.05 * one
    assert not run.base.retired


def test_a_model_that_a_node_was_given_is_followed_too(host, none_before):
    run = Run(host, Patcher(network()))
    one = live_bytes() - none_before
    given = Patcher(network())
    run.base.offer(given)
    assert run.base.follow()
    run.base.retired.clear()
    del given
    assert live_bytes() - none_before <= 1.05 * one
    gone = Patcher(network())
    run.base.offer(gone)
    del gone
    assert run.base.follow() == ""  # it is held weakly


def test_scratch_tensors_neither_hinder_nor_are_taken(host):
    run = Run(host, Patcher(network()))
    second = Patcher(network())
    second.model.diffusion_model._buffers["scratch"] = torch.ones(WIDTH)
    second.model.diffusion_model.cached = torch.ones(3)
    run.loaded = [second]
    assert run.base.follow()
    assert torch.equal(run.shadow.scratch, torch.zeros(WIDTH))


def test_the_model_of_a_run_samples_as_the_one_it_was_given(host):
    given = Patcher(network())
    given.object_patches["model_sampling"] = "shifted"
    run = Run(host, given)
    second = Patcher(network())
    run.loaded = [second]
    assert run.base.follow()
    handed = run.base.model()
    assert handed.model is second.model
    assert handed.object_patches == {"model_sampling": "shifted"}
    assert second.object_patches == {}


def test_data_set_would_change_nothing():
    """Why `set_` is called on the tensor itself."""
    parameter, other = nn.Parameter(torch.zeros(4), requires_grad=False), torch.ones(4)
    parameter.data.set_(other)
    assert torch.equal(parameter, torch.zeros(4))
    with torch.no_grad():
        parameter.set_(other)
    assert parameter.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def test_packed_tensors_are_laid_over_part_by_part(host):
    from tests.nodes.test_share import Packed
    from tests.nodes.test_share import Params as Fields

    share = host("backend.sharing.share_storage")

    def packed(value):
        return Packed(torch.full((4, 4), value, dtype=torch.uint8), "layout", Fields(torch.ones(1), (4, 4)))

    ours, theirs = share.share(packed(3)), packed(3)
    assert [part.shape for part in share.parts(ours)] == [(4, 4), (1,)]
    with torch.no_grad():
        for mine, other in zip(share.parts(ours), share.parts(theirs), strict=True):
            mine.set_(other)
    assert share.storages(ours) == share.storages(theirs)


def test_the_output_of_a_node_is_linked_or_not():
    from lora_loom.nodes.train import _is_linked

    graph = {"1": {"class_type": "LoomRun", "inputs": {"name": "x"}}, "2": {"class_type": "K", "inputs": {"model": ["1", 1]}}}  # fmt: skip
    assert _is_linked(graph, "1", 1)
    assert not _is_linked(graph, "1", 0)
    assert not _is_linked(graph, "2", 1)
    assert not _is_linked({}, "1", 1)


@pytest.mark.parametrize("slots", [1, 2])
def test_a_streamed_base_brings_its_blocks_from_the_new_copy(host, slots, none_before):
    def blocks():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            made = nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)) for _ in range(5)))
        return Patcher(made.requires_grad_(False))

    def shadow_of(patcher):
        network = patcher.model.diffusion_model
        return host("backend.shadow").build_shadow(network, dict(network.state_dict()))

    first = blocks()
    shadow, x = shadow_of(first), torch.linspace(-1, 1, WIDTH).repeat(2, 1)
    expected, homes = shadow(x), [weight.data_ptr() for weight in shadow.parameters()]
    stream = stream_base(shadow, StreamSettings(budget=None), torch.device("cpu"), None, torch.float32, slots=slots)
    assert [weight.data_ptr() for weight in shadow.parameters()] == homes  # ComfyUI's own, not copied
    alone = live_bytes() - none_before
    assert alone <= 1.05 * (stream.total + slots * stream.ring.size)
    assert torch.equal(shadow(x), expected)
    loaded = [blocks()]
    base = host("backend.sharing.reshare").SharedBase(shadow, first, lambda: loaded)
    assert base.follow()
    base.retired.clear()
    del first
    theirs = [weight.data_ptr() for weight in loaded[0].model.diffusion_model.parameters()]
    assert [weight.data_ptr() for weight in shadow.parameters()] == theirs
    assert live_bytes() - none_before <= 1.05 * alone
    moves = stream.ring.moves
    assert torch.equal(shadow(x), expected)
    assert stream.ring.moves > moves


@pytest.mark.parametrize("is_at_rest", [False, True])
def test_what_a_copy_on_the_device_was_made_from_follows_too(host, is_at_rest, none_before):
    """As under dynamic VRAM: the run's copy is on the device (meta here), and is taken again from the copy that the host holds then."""

    def blocks():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            made = nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)) for _ in range(5)))
        return Patcher(made.requires_grad_(False))

    first, meta = blocks(), torch.device("meta")
    network = first.model.diffusion_model
    shadow = host("backend.shadow").build_shadow(network, dict(network.state_dict()))
    stream = stream_base(shadow, StreamSettings(budget=1 << 40), meta, None, torch.float32, keep_homes=True)
    assert stream.held == 10 * LAYER
    alone = live_bytes() - none_before
    if is_at_rest:
        assert stream.rest() == 10 * LAYER
    loaded = [blocks()]
    base = host("backend.sharing.reshare").SharedBase(shadow, first, lambda: loaded)
    assert base.follow()
    base.retired.clear()
    del first, network
    assert live_bytes() - none_before <= 1.05 * alone
    stream.wake()
    assert {weight.device for weight in shadow.parameters()} == {meta}
    stream.rest()
    theirs = {name: weight.data_ptr() for name, weight in loaded[0].model.diffusion_model.named_parameters()}
    mine = {name: weight.data_ptr() for name, weight in shadow.named_parameters() if name.endswith("weight")}
    assert all(theirs[name] == place for name, place in mine.items())
    assert len(mine) == 10
