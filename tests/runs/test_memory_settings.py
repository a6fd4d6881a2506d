"""Which settings of memory a run may be continued with: those that give the same LoRA, bit for bit, and no others."""

import pytest

from lora_loom.trainer.errors import RunError
from lora_loom.trainer.runs.headless import prepare, run_folder, run_plan
from tests.conftest import SilentHost, make_config

BEGUN = {"memory": {"gradient_checkpointing": True}}


@pytest.fixture
def begun(tmp_path):
    """A function that asks the folder of a run, which was begun with nothing special, whether it may go on with other settings."""

    def plan(**sections):
        memory = {**BEGUN["memory"], **sections.pop("memory", {})}
        return run_plan(prepare(make_config("sd3", tmp_path, memory=memory, **sections), SilentHost()))

    first = plan()
    folder = run_folder(make_config("sd3", tmp_path))
    folder.start(first.config(), first.fixed(), {}, [], {})

    def go_on(**sections):
        other = plan(**sections)
        folder.check_same(other.fixed(), other.config())

    return go_on


@pytest.mark.parametrize(
    "memory",
    [{"base": "stream"}, {"vram_gb": 1.0}, {"checkpoint": "every 2"}, {"checkpoint_offload": True}, {"on_oom": "adapt"}, {"gradient_checkpointing": False}, {"prefetch": 0}],
    ids=str,
)  # fmt: skip
def test_where_things_lie_and_what_is_recomputed_may_change(begun, memory):
    begun(memory=memory)


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"model": {"quantize": "int8"}}, "model.quantize: 'none' -> 'int8'"),
        ({"model": {"quantize": "nf4"}}, "model.quantize: 'none' -> 'nf4'"),
        ({"model": {"matmul": "int8"}}, "model.matmul: 'off' -> 'int8'"),
        ({"memory": {"compile": True}}, "memory.compile: False -> True"),
    ],
    ids=str,
)
def test_what_computes_other_numbers_may_not(begun, sections, named):
    if "nf4" in named:
        pytest.importorskip("bitsandbytes")
    with pytest.raises(RunError) as refused:
        begun(**sections)
    assert named in str(refused.value)
