"""Values on the wires: JSON and back, no tensors; conditioning as flat tensors and back."""

import dataclasses
import json
import typing
from pathlib import Path

import pytest
import torch

from lora_loom.nodes import NODE_CLASS_MAPPINGS
from lora_loom.nodes.sockets import values
from lora_loom.nodes.sockets.values import MemoryValue, SocketValue, example_from_json, example_to_json
from lora_loom.trainer.config import run as config
from lora_loom.trainer.config.model import BaseLoraConfig
from lora_loom.trainer.config.run import MemoryConfig
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.types import Example, Geometry

KINDS = [
    cls
    for cls in vars(values).values()
    if isinstance(cls, type) and issubclass(cls, SocketValue) and cls is not SocketValue
]


def sample(kind):
    """Some value of a field's type."""
    if typing.get_origin(kind) is tuple:
        return tuple(sample(part) for part in typing.get_args(kind) if part is not ...)
    if typing.get_origin(kind) is typing.Literal:
        return typing.get_args(kind)[0]
    plain = {
        str: "x",
        int: 1,
        float: 0.5,
        bool: True,
        config.DatasetConfig: config.DatasetConfig(folder="x"),
        BaseLoraConfig: BaseLoraConfig(file="x"),
    }
    return plain[kind] if kind in plain else kind()


@pytest.mark.parametrize("cls", KINDS, ids=lambda cls: cls.__name__)
def test_a_value_is_frozen_and_writes_itself_as_json(cls):
    hints = typing.get_type_hints(cls)
    value = cls(**{field.name: sample(hints[field.name]) for field in dataclasses.fields(cls)})
    read = json.loads(value.to_json())
    assert read.pop("version") == values.VERSION
    assert read == json.loads(json.dumps(dataclasses.asdict(value)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, dataclasses.fields(cls)[0].name, None)
    assert not any("Tensor" in str(hint) or "Thread" in str(hint) for hint in hints.values())


def test_an_example_comes_back_as_it_was():
    geometry = Geometry(original=(9, 8), resized=(8, 7), crop_left=1, crop_top=0, target=(4, 4))
    [field_names] = [{field.name for field in dataclasses.fields(Example)}]
    given = {"path": Path("a.png"), "captions": ("one", "<script>"), "geometry": geometry}
    others = {
        field.name: sample(typing.get_type_hints(Example)[field.name])
        for field in dataclasses.fields(Example)
        if field.name not in given
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    }
    example = Example(**given, **others)
    assert example_from_json(json.loads(json.dumps(example_to_json(example)))) == example
    assert {"path", "captions"} <= field_names


def test_every_input_of_every_node_has_a_tooltip():
    for name, cls in NODE_CLASS_MAPPINGS.items():
        groups = cls.INPUT_TYPES()
        for group in ("required", "optional"):
            for key, entry in groups.get(group, {}).items():
                assert entry[1].get("tooltip"), f"{name}.{key}"


def test_the_lora_name_links_to_a_list_and_is_a_str():
    kind = NODE_CLASS_MAPPINGS["LoomTrain"].RETURN_TYPES[1]
    assert isinstance(kind, str)
    assert not kind != ["a.safetensors"]  # noqa: SIM202 - the host compares with !=
    assert not kind != "COMBO"  # noqa: SIM202


def test_conditioning_is_packed_and_unpacked_in_order(host):
    packing = host("backend.packing")
    given = {
        "cross_attn": torch.rand(1, 4, 2), "guidance": 1.0, "sizes": [1, [2, 3]], "nothing": None,
        "ref_latents": [torch.full((1,), float(i)) for i in range(12)], "odd[name": "text",
    }  # fmt: skip
    back = packing.unpack(packing.pack(given))
    assert back.keys() == given.keys()
    assert [int(t) for t in back["ref_latents"]] == list(range(12))
    assert torch.equal(back["cross_attn"], given["cross_attn"])
    assert (back["guidance"], back["sizes"], back["nothing"], back["odd[name"]) == (1.0, [1, [2, 3]], None, "text")
    with pytest.raises(TypeError, match="model is a Linear"):
        packing.pack({"model": torch.nn.Linear(1, 1)})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"quantize": "int9"},
            r"quantize = 'int9': use 'none', 'int8', 'int4', 'int2', 'float8' or 'nf4' \(did you mean 'int8'",
        ),
        ({"precision": "bf16"}, r"precision = 'bf16': use 'auto', 'float32', 'bfloat16' or 'float16'"),
        ({"yield_max_s": -1.0}, r"yield_max_s = -1\.0: use 0 for no limit"),
    ],
)
def test_settings_of_memory_made_from_python_are_checked(wrong, message):
    right = {"memory": MemoryConfig(), "precision": "auto", "quantize": "none", "yield_max_s": 0.0}
    assert MemoryValue(**right).quantize == "none"
    with pytest.raises(ConfigError, match=message):
        MemoryValue(**right | wrong)


def test_the_labels_of_a_node_are_unambiguous():
    for name, cls in NODE_CLASS_MAPPINGS.items():
        groups = cls.INPUT_TYPES()
        labels = [
            entry[1].get("display_name", key)
            for group in ("required", "optional")
            for key, entry in groups.get(group, {}).items()
        ]
        assert len(labels) == len(set(labels)), name
        assert "every" not in labels or not [label for label in labels if label.endswith("_every")], name


def test_layers_that_are_skipped_are_written_as_numbers():
    from lora_loom.nodes.sweep import LoomGuidance
    from lora_loom.trainer.errors import LoomError

    given = {"label": "", "method": "cfg", "cfg": 4.0, "eta": 0.0, "norm_threshold": 0.0, "momentum": 0.0}
    [value] = LoomGuidance().run(**given, skip_layers="7, 8,9", skip_layer_scale=2.5)
    assert (value.settings[0].skip_layers, value.settings[0].skip_layer_scale) == ((7, 8, 9), 2.5)
    with pytest.raises(LoomError, match="skip_layers = 'all': write numbers of blocks"):
        LoomGuidance().run(**given, skip_layers="all")
