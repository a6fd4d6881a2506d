"""model.matmul in whole runs: the error is measured once, resuming is exact, and where the base lies changes nothing."""

import json

import pytest
from safetensors import safe_open

from lora_loom.trainer.errors import ConfigError, RunError
from lora_loom.trainer.runs.headless import run_folder, train
from tests.conftest import SilentHost, make_config

STEPS = {"steps": 4, "save_every": 2, "batch_size": 2}
SAYS = "layers multiply in 8 bits; their weights are rounded by "


def go(root, matmul="int8", *, family="sd", stop_at=None, **sections):
    base = {**make_config(family, root).model.__dict__}["base"]
    config = make_config(family, root, training=STEPS, model={"base": base, "matmul": matmul}, **sections)
    host = SilentHost(stop_at)
    train(config, host)
    return host, (run_folder(config).last_checkpoint().folder / "adapter.safetensors").read_bytes()


def measured(root):
    return json.loads((root / "run/run.json").read_text()).get("matmul")


@pytest.mark.parametrize(("kind", "limit"), [("int8", 0.03), ("fp8", 0.08)])
def test_the_error_of_the_gradients_is_said_and_kept(tmp_path, kind, limit):
    host, mine = go(tmp_path / kind, kind)
    found = measured(tmp_path / kind)
    assert found["layers"] > 20
    assert 0 < found["gradients"] < limit
    assert 0 < found["weights"] < limit
    assert sum(SAYS in text for text in host.text) == 1
    _, plain = go(tmp_path / "off", "off")
    assert measured(tmp_path / "off") is None
    assert mine != plain
    with (
        safe_open(next((tmp_path / kind / "run/loras").glob("*.safetensors")), "pt") as first,
        safe_open(next((tmp_path / "off/run/loras").glob("*.safetensors")), "pt") as second,
    ):
        assert first.keys() == second.keys()
        assert all(first.get_tensor(key).dtype == second.get_tensor(key).dtype for key in first.keys())  # noqa: SIM118


def test_a_run_is_continued_exactly_with_the_error_it_began_with(tmp_path):
    _, whole = go(tmp_path / "whole")
    go(tmp_path / "parts", stop_at=2)
    before = measured(tmp_path / "parts")
    with pytest.raises(RunError, match="model.matmul: 'int8' -> 'off'"):
        go(tmp_path / "parts", "off")
    host, parts = go(tmp_path / "parts")
    assert parts == whole
    assert measured(tmp_path / "parts") == before
    assert any(SAYS in text for text in host.text)


@pytest.mark.parametrize(
    "memory", [{"base": "stream"}, {"gradient_checkpointing": True}, {"base": "stream", "gradient_checkpointing": True}]
)
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_where_the_base_lies_and_what_is_recomputed_change_nothing(tmp_path, memory, kind):
    _, expected = go(tmp_path / "resident", kind)
    _, mine = go(tmp_path / "other", kind, memory=memory)
    assert mine == expected


def test_dora_and_other_kinds_train_on_it(tmp_path):
    for kind in ("dora", "lokr"):
        host, _ = go(tmp_path / kind, family="sd3", network={"kind": kind, "rank": 2})
        assert all(abs(one.loss) < 100 for one in host.steps)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (
            {"model": {"quantize": "nf4"}},
            r"model\.matmul = 'int8': .*quantize = 'nf4' in others; use quantize = 'none'",
        ),
        ({"model": {"dtype": "bfloat16"}}, r"model\.dtype = 'bfloat16' would do nothing"),
    ],
)
def test_what_it_does_not_go_with_is_refused(tmp_path, sections, said):
    base = make_config("sd", tmp_path).model.base
    model = {"base": base, "matmul": "int8", **sections.pop("model", {})}
    with pytest.raises(ConfigError, match=said):
        train(make_config("sd", tmp_path, model=model, **sections), SilentHost())
    assert not (tmp_path / "run").exists()
