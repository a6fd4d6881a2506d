"""A run that moves nothing is an error, and modules that do not move are named: in the log, run.json and the LoRA file."""

import pytest
import torch
from safetensors import safe_open

from lora_loom.trainer.errors import RunError, StoppedError
from lora_loom.trainer.runs.headless import run_folder, train
from lora_loom.trainer.training.movement import WATCHED_STEPS, GradientWatch, unmoved
from tests.conftest import SilentHost, make_config

DEAD = "transformer_blocks.1.attn.add_q_proj"
"""Of SD3's last block: its output is thrown away, so that no gradient reaches it."""


def quick(tmp_path, **network):
    return make_config(
        "sd3", tmp_path, training={"steps": 2, "save_every": 0, "batch_size": 1}, network=network,
        output={"loras": str(tmp_path / "published")},
    )  # fmt: skip


def test_none_moved_is_an_error_without_a_file_under_the_final_name(tmp_path):
    config, host = quick(tmp_path, target_modules=f"regex:{DEAD}$"), SilentHost()
    with pytest.raises(
        RunError, match="none of the 1 modules moved, so that the LoRA would do nothing: .*learning_rate"
    ):
        train(config, host)
    assert not list(tmp_path.rglob("run.safetensors"))
    assert run_folder(config).read()["state"] == "failed"
    assert any(f"1 of 1 modules had no gradient in 2 steps: {DEAD}." in text for text in host.text)


def test_modules_that_did_not_move_are_named_everywhere(tmp_path):
    config, host = (
        quick(tmp_path, target_modules=r"regex:transformer_blocks\.1\.attn\.(add_q_proj|to_q)$"),
        SilentHost(),
    )
    outcome = train(config, host)
    words = f"1 of 2 modules moved; not moved: {DEAD}"
    assert words in host.text
    assert run_folder(config).read()["movement"] == {"modules": 2, "unmoved": [DEAD]}
    with safe_open(outcome.lora, "pt") as file:
        assert file.metadata()["loom.moved"] == words


def test_a_stop_before_the_first_step_leaves_no_file(tmp_path):
    class Impatient(SilentHost):
        def should_stop(self):
            return any("trainable parameters" in text for text in self.text)

    config = quick(tmp_path)
    with pytest.raises(StoppedError, match="before the first step"):
        train(config, Impatient())
    assert not list(tmp_path.rglob("*.safetensors"))
    assert run_folder(config).read()["state"] == "interrupted"
    assert train(config, SilentHost()).state == "finished"


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_every_kind_begins_unmoved_and_moves(tmp_path, kind):
    config = quick(tmp_path, kind=kind, target_modules=r"regex:transformer_blocks\.0\.attn\.to_q$")
    host = SilentHost()
    train(config, host)
    assert "1 of 1 modules moved" in host.text


def test_unmoved_is_judged_as_it_is_saved():
    values = {"a|up": torch.full((2,), 1e-12), "a|down": torch.ones(2), "b|up": torch.ones(2), "b|down": torch.ones(2)}
    assert unmoved(values, torch.float32) == []
    assert unmoved(values, torch.float16) == ["a"], "it is rounded to zero"


def test_the_watch_ends_and_changes_no_number():
    p = {"a|x": torch.nn.Parameter(torch.ones(2)), "b|x": torch.nn.Parameter(torch.ones(2))}
    optimizer = torch.optim.SGD(p.values(), lr=0.1)
    watch = GradientWatch(p, optimizer)
    for _ in range(WATCHED_STEPS):
        p["a|x"].grad, p["b|x"].grad = torch.ones(2), torch.zeros(2)
        optimizer.step()
    assert watch.without_gradient() == ["b"]
    p["b|x"].grad = torch.ones(2)
    optimizer.step()
    assert (watch.steps, watch.without_gradient()) == (WATCHED_STEPS, ["b"]), "only the first steps count"
    assert p["a|x"][0].item() == pytest.approx(1 - 0.1 * (WATCHED_STEPS + 1))
