"""Several processes train one LoRA: equal to one process that takes all their batches, files written once, resume exact."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace

import accelerate  # noqa: F401 - once here, not once in every child
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lora_loom.trainer.base_model import open_base
from lora_loom.trainer.config.run import TrainingConfig
from lora_loom.trainer.config.toml import to_dict
from lora_loom.trainer.data.cache.store import Cache
from lora_loom.trainer.distributed.launch import Launch, launched
from lora_loom.trainer.distributed.processes import joined
from lora_loom.trainer.distributed.sharding import check_passes
from lora_loom.trainer.errors import ConfigError, LoomError, PeerError, RunError
from lora_loom.trainer.runs import checkpoint
from lora_loom.trainer.runs import headless as run
from lora_loom.trainer.runs import run_folder as runs
from lora_loom.trainer.runs.checkpoint import list_checkpoints
from lora_loom.trainer.runs.headless import run_folder, train
from lora_loom.trainer.storage import atomic as files
from tests.conftest import FAMILIES, SilentHost, make_config
from tests.runs.test_resume import check_no_broken_file

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fork(count, work, quiet=False):
    """`work(rank)` in processes as torchrun would start them, forked from this one, which has everything imported.

    Returns their exit codes: 0, or 1 with a traceback on the standard error.
    """
    port, children = free_port(), []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            try:
                told = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}  # fmt: skip
                os.environ.update({name: str(value) for name, value in told.items()})
                torch.set_num_threads(1)
                work(rank)
                os._exit(0)
            except BaseException:  # noqa: BLE001 - whatever happened, the child must not go on as a test run
                import traceback

                if not quiet:
                    traceback.print_exc()
                os._exit(1)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def train_together(config, count=2, host=lambda rank: SilentHost()):
    assert fork(count, lambda rank: train(config, host(rank))) == [0] * count


CASE = {
    "data": {"validation_split": 0.17},
    "network": {"dropout": 0.2},
    "training": {"steps": 4, "save_every": 2, "batch_size": 1, "ema_decay": 0.9},
}


def case(tmp_path, name, family="sd3", accumulation=1, **sections):
    tables = {key: {**CASE.get(key, {}), **sections.get(key, {})} for key in {*CASE, *sections}}
    tables["training"] = {"gradient_accumulation_steps": accumulation, **tables["training"]}
    return make_config(family, tmp_path / name, **tables)


def last_state(config):
    """Every tensor of the last checkpoint, and what was measured on the way."""
    folder = list_checkpoints(run_folder(config).checkpoints)[-1].folder
    state = {f"{file}/{name}": t for file in ("adapter", "optimizer") for name, t in load_file(folder / f"{file}.safetensors").items()}  # fmt: skip
    lines = [json.loads(line) for line in run_folder(config).metrics.read_text().splitlines()]
    return state, [{name: value for name, value in line.items() if name not in ("seconds", "ram_gb")} for line in lines]


def assert_close(found, expected, limit):
    for name, tensor in found[0].items():
        assert (tensor.double() - expected[0][name].double()).abs().max() <= limit, name
    assert found[0].keys() == expected[0].keys()
    assert [line.keys() for line in found[1]] == [line.keys() for line in expected[1]]
    for mine, other in zip(found[1], expected[1], strict=True):
        for name, value in mine.items():
            np.testing.assert_allclose(value, other[name], rtol=limit, atol=limit, err_msg=name)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """An undisturbed run of two processes."""
    config = replace(case(tmp_path_factory.mktemp("straight"), "straight"), name="straight")
    train_together(config)
    return config


SETUPS = {
    "lumina2-prodigy-dora": (
        "lumina2", {"network": {"kind": "dora"}, "optimizer": {"name": "prodigy", "learning_rate": 1.0}}
    ),
    "flux-adafactor-lokr": ("flux", {"network": {"kind": "lokr", "dropout": 0.0}, "optimizer": {"name": "adafactor"}}),
    "sd3-lion-mixed-sizes": ("sd3", {"optimizer": {"name": "lion"}, "training": {"batch_size": 2}}),
}  # fmt: skip


def check_equal_to_one(together, alone):
    train(alone, SilentHost())
    assert_close(last_state(together), last_state(alone), 1e-6)
    files = [sorted(str(p.relative_to(run_folder(c).path)) for p in run_folder(c).path.rglob("*")) for c in (together, alone)]  # fmt: skip
    assert files[0] == files[1]


def test_two_processes_are_one_with_twice_the_accumulation(tmp_path, straight):
    """Noise, levels, dropout and batches are functions of the place in the run, and the gradients are summed."""
    alone = case(tmp_path, "alone", accumulation=2)
    check_equal_to_one(straight, replace(alone, name="straight"))


@pytest.mark.slow
@pytest.mark.parametrize("name", SETUPS)
def test_the_same_for_other_families_optimizers_and_kinds(tmp_path, name):
    family, sections = SETUPS[name]
    together, alone = (case(tmp_path, label, family, n, **sections) for label, n in (("two", 1), ("one", 2)))
    train_together(together)
    check_equal_to_one(together, alone)


def test_only_the_first_process_encodes_and_writes(tmp_path):
    """The second fails if it loads an encoder or writes a file; the cache is new."""
    config = case(tmp_path, "run", output={"cache": str(tmp_path / "cache")})

    def work(rank):
        if rank:

            @contextmanager
            def refuse(path):
                raise AssertionError(f"process {rank} writes {path}")
                yield

            files._whole_file = files.whole_folder = checkpoint.whole_folder = refuse
            run.build_cache = lambda *_: refuse("the cache").__enter__()
            runs.RunFolder._append = lambda self, path, line: refuse(path).__enter__()
        train(config, SilentHost())

    assert fork(2, work) == [0, 0]
    assert Cache(tmp_path / "cache").missing([]) == []
    assert [line["step"] for line in last_state(config)[1] if "loss" in line] == [1, 2, 3, 4]
    assert run_folder(config).read()["state"] == "finished"
    assert run_folder(config).read()["environment"]["processes"] == 2


def test_resume_is_exact_and_a_stop_asked_of_any_process_stops_all(tmp_path, straight):
    halved = case(tmp_path, "halved")
    train_together(halved, host=lambda rank: SilentHost(stop_at=3 if rank else None))
    assert run_folder(halved).read()["state"] == "stopped"
    assert run_folder(halved).saved_step() == 3
    train_together(halved)
    found, expected = last_state(halved), last_state(straight)
    assert all(torch.equal(tensor, expected[0][name]) for name, tensor in found[0].items())
    assert [line for line in found[1] if line["step"] != 3 or "loss" in line] == expected[1]


def test_continuing_with_another_number_of_processes(tmp_path, straight):
    """Refused where the step would be another one; taken where it is the same calculation."""
    changed = case(tmp_path, "changed")
    train_together(changed, host=lambda rank: SilentHost(stop_at=2))
    with pytest.raises(
        RunError,
        match=r"training\.gradient_accumulation_steps: 2 -> 1; \(it counts the forward passes of all processes",
    ):
        train(changed, SilentHost())
    same = case(tmp_path, "changed", accumulation=2)
    host = SilentHost()
    train(same, host)
    assert any("resuming in a different environment" in text and "processes: 2 -> None" in text for text in host.text)
    assert_close(last_state(same), last_state(straight), 1e-6)


class DyingHost(SilentHost):
    """Its process is killed after three steps, before it meets the others again."""

    def should_stop(self):
        if self.steps and self.steps[-1].step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return False


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_process_ends_the_run(tmp_path, straight, victim):
    """The others end with a message instead of waiting; nothing is broken; the same command goes on, bit for bit."""
    killed = case(tmp_path, "killed")

    def work(rank):
        try:
            train(killed, DyingHost() if rank == victim else SilentHost())
        except PeerError as error:
            (tmp_path / f"error-{rank}").write_text(str(error))
            raise

    started = time.monotonic()
    codes = fork(2, work, quiet=True)
    assert time.monotonic() - started < 60
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == 1
    assert "another process of this run has ended" in (tmp_path / f"error-{1 - victim}").read_text()
    check_no_broken_file(run_folder(killed).path)
    assert run_folder(killed).saved_step() == 2
    if victim == 1:
        assert "another process" in run_folder(killed).read()["error"]
    train_together(killed)
    found, expected = last_state(killed), last_state(straight)
    assert all(torch.equal(tensor, expected[0][name]) for name, tensor in found[0].items())
    assert found[1] == expected[1]


def failing(tmp_path, config_of, count=2):
    """What each process says."""

    def work(rank):
        try:
            train(config_of(rank), SilentHost())
        except LoomError as error:
            (tmp_path / f"error-{rank}").write_text(f"{type(error).__name__}: {error}")
            raise

    assert fork(count, work, quiet=True) == [1] * count
    return [(tmp_path / f"error-{rank}").read_text() for rank in range(count)]


def test_more_processes_than_batches(tmp_path):
    config = case(tmp_path, "run", training={"batch_size": 6}, data={"validation_split": 0.0, "buckets": "off"})
    said = failing(tmp_path, lambda rank: config)
    assert said[0].startswith("ConfigError: 2 processes for 1 batches per epoch: start at most 1")
    assert said[1].startswith("PeerError"), "one message is enough"


def test_processes_with_different_settings(tmp_path):
    said = failing(tmp_path, lambda rank: case(tmp_path, "run", optimizer={"learning_rate": 1e-3 * (1 + rank)}))
    assert all("configuration, base or dataset of process 1 differs from that of process 0" in text for text in said)


@pytest.mark.parametrize(
    ("environment", "config", "message"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, {}, "requests FSDP, which is not supported.*memory.shard = true"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, {}, "requests DeepSpeed"),
        ({}, {"model": {"device": "mps"}}, "2 processes on mps: use CUDA GPUs, or model.device = 'cpu'"),
        ({}, {"model": {"device": "cuda:1"}}, "model.device = 'cuda:1' with 2 processes: leave it at auto"),
        ({}, {"model": {"device": "cuda"}}, "2 processes on a machine with 0 GPUs: start one per GPU"),
        ({"accelerate": "missing"}, {}, "need the library accelerate: pip install accelerate"),
    ],
)
def test_a_launch_that_cannot_work(tmp_path, monkeypatch, environment, config, message):
    """Told before the processes meet."""
    if environment.pop("accelerate", ""):
        monkeypatch.setitem(sys.modules, "accelerate", None)
    for name, value in {**environment, "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match=message):
        train(case(tmp_path, "run", **config), SilentHost())
    assert not (tmp_path / "run").exists()


def test_a_launcher_is_known_by_all_its_variables(monkeypatch):
    assert launched() == Launch()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launched() == Launch(), "a cluster's own variable is no launcher"
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert launched() == Launch(rank=1, count=2, local_rank=1, local_count=2)


# A base that is split over the processes

needs_cpu_events = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream(), "record_event"), reason="this torch splits a base over GPUs only (2.6 does)"
)


def check_split(tmp_path, whole, family, **sections):
    split = case(tmp_path, "split", family, memory={"shard": True, "gradient_checkpointing": True}, **sections)
    train_together(split)
    assert_close(last_state(split), last_state(whole), 1e-6)
    assert run_folder(split).read()["max_relative_error"] < 5e-3


@needs_cpu_events
def test_a_split_base_trains_the_same(tmp_path, straight):
    """With dropout, held-out loss and recomputed activations."""
    check_split(tmp_path, straight, "sd3")


PROMPTED = {"prompts": ["a cat"], "sample_steps": 1, "guidance_scale": 2.0}


@needs_cpu_events
def test_pictures_and_early_stopping_in_two_processes(tmp_path):
    """Both stop at the same step, and one writes the pictures, which are those of one process; so with a split base."""
    sections = {"validation": {**PROMPTED, "every": 1, "patience": 1}, "optimizer": {"learning_rate": 0.5}}
    alone = case(tmp_path, "alone", accumulation=2, training={"steps": 8, "save_every": 8, "batch_size": 1}, **sections)
    together = case(tmp_path, "together", training={"steps": 8, "save_every": 8, "batch_size": 1}, **sections)
    split = case(
        tmp_path, "split", training={"steps": 8, "save_every": 8, "batch_size": 1}, memory={"shard": True}, **sections
    )
    train(alone, SilentHost())
    stopped = run_folder(alone).read()["step"]
    assert stopped < 8, "such a learning rate only does harm"
    expected = pictures_of(alone)
    assert expected
    for config in (together, split):
        train_together(config)
        assert run_folder(config).read()["step"] == stopped
        found = pictures_of(config)
        assert found.keys() == expected.keys()
        for name, picture in found.items():
            assert np.abs(picture - expected[name]).max() <= 2, name


def pictures_of(config):
    files = (run_folder(config).path / "samples").iterdir()
    return {path.name: np.asarray(Image.open(path).convert("RGB")).astype(int) for path in files}


@needs_cpu_events
def test_text_encoders_are_trained_by_two_processes_as_by_one(tmp_path):
    # AdamW divides by the gradient's own size: where that is next to nothing, the order of a sum decides the step.
    plain = {"name": "sgd", "learning_rate": 0.1}
    sections = {"text": {"learning_rate": 0.05}, "validation": PROMPTED, "optimizer": plain}
    alone = case(tmp_path, "alone", "sd", accumulation=2, **sections)
    together = case(tmp_path, "together", "sd", **sections)
    train_together(together)
    check_equal_to_one(together, alone)
    assert any(name.startswith("adapter/te.") for name in last_state(together)[0])
    check_split(tmp_path, together, "sd", **sections)  # the encoders stay whole in every process


def test_processes_that_share_a_base_run_the_same_passes():
    """SD3 runs a batch once per length of its captions, which another process's batch may have fewer of: that would hang."""
    two, one = TrainingConfig(batch_size=2), TrainingConfig()
    with pytest.raises(
        ConfigError,
        match=r"training\.batch_size = 2 does not go with memory\.shard for sd3.*gradient_accumulation_steps = 2",
    ):
        check_passes(two, sharded=True, by_length=True, family="sd3")
    check_passes(one, sharded=True, by_length=True, family="sd3")
    check_passes(two, sharded=True, by_length=False, family="flux")
    check_passes(two, sharded=False, by_length=True, family="sd3")


@needs_cpu_events
@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_split_dora_too(tmp_path, family):
    """DoRA reads whole weights, when it starts and when it is saved."""
    sections = {"network": {"kind": "dora"}}
    whole = case(tmp_path, "whole", family, **sections)
    train_together(whole)
    check_split(tmp_path, whole, family, **sections)


def test_each_process_holds_its_part_only(tmp_path):
    def work(rank):
        config = case(tmp_path, "run")
        with joined("cpu") as processes:
            base = open_base(config.model)
            whole = base.load_denoiser(config.model, "float32").module
            split = base.load_denoiser(config.model, "float32", sharded=True).module
            all_bytes = sum(p.nbytes for p in whole.parameters())
            mine = sum(p.to_local().nbytes for p in split.parameters())
            assert mine < 0.6 * all_bytes, (mine, all_bytes)
            assert processes.sum(mine) == pytest.approx(all_bytes, rel=0.05)

    assert fork(2, work) == [0, 0]


def test_splitting_what_cannot_be_split(tmp_path):
    with pytest.raises(ConfigError, match=r"memory\.shard = true would do nothing in one process: leave it out, or"):
        train(case(tmp_path, "run", memory={"shard": True}), SilentHost())
    packed = case(tmp_path, "run", memory={"shard": True}, model={"quantize": "int8"})
    assert "quantized weights cannot be sharded; use one of the two" in failing(tmp_path, lambda rank: packed)[0]


# The launchers themselves


def write_toml(config, path):
    tables = {k: v for k, v in to_dict(config).items() if isinstance(v, dict) and k not in ("sweep", "objective", "schedule")}  # fmt: skip
    lines = [f"name = {config.name!r}", "[[dataset]]", f"folder = {config.dataset[0].folder!r}"]
    for name, table in tables.items():
        lines.append(f"[{name}]")
        lines += [f"{k} = {json.dumps(v)}" for k, v in table.items() if v is not None and v != {}]
    path.write_text("\n".join(lines))


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_real_launcher(tmp_path, launcher):
    config = case(tmp_path, "run")
    write_toml(config, tmp_path / "run.toml")
    command = [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "lora_loom.trainer"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "train", str(tmp_path / "run.toml"), "--json"], capture_output=True, text=True, check=False, env=environment)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [event["step"] for event in events if event["event"] == "step"] == [1, 2, 3, 4], "one process speaks"
    assert [event["state"] for event in events if event["event"] == "result"] == ["finished"]
    alone = case(tmp_path, "one", accumulation=2)
    train(alone, SilentHost())
    assert_close(last_state(config), last_state(alone), 1e-6)
    refused = subprocess.run([*command, "cache", str(tmp_path / "run.toml")], capture_output=True, text=True, check=False, env=environment)  # fmt: skip
    assert refused.returncode != 0
    assert "error: 2 processes were started: only train runs on several" in refused.stderr
