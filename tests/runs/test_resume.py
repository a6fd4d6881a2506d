"""Resume is exact: N steps, stop, M steps == N + M steps, bit for bit, whatever is combined; and after kill -9."""

import itertools
import json
import os
import random
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from lora_loom.trainer.diffusion.denoiser import Targets
from lora_loom.trainer.errors import StoppedError
from lora_loom.trainer.lora.targets import resolve_targets
from lora_loom.trainer.runs.checkpoint import list_checkpoints
from lora_loom.trainer.runs.headless import run_folder, train
from lora_loom.trainer.storage.atomic import TEMPORARY
from tests.conftest import FAMILIES, SilentHost, make_config, pictures

FACTORS = {
    "family": FAMILIES,
    "optimizer": ("adamw", "adamw8bit", "lion", "prodigy", "adafactor"),
    "kind": ("lora", "dora", "loha", "lokr"),
    "ema": (0.0, 0.9),
    "dropout": (0.0, 0.2),
    "accumulation": (1, 2),
    "checkpointing": (False, True),
    "caption_dropout": (0.0, 0.4),
    "flip": (False, True),
    "captions": ("plain", "varied", "live"),
}
VARIED = {
    "shuffle_tags": True,
    "keep_tokens": 1,
    "tag_dropout": 0.3,
    "wildcards": True,
    "lines": "each",
    "tag_separator": " ",
}
CAPTIONS = {
    "plain": {},
    "varied": {**VARIED, "caption_variants": 4, "crop": "random"},
    "live": {**VARIED, "caption_variants": 0},
    "joining": {
        **VARIED,
        "caption_variants": 4,
        "caption_dropout_every_n_epochs": 2,
        "token_warmup_step": 4,
        "random_hue": 20.0,
    },
}
JOINING = {"start_step": 1, "end_epoch": 9, "probability": 0.6}
TAUGHT = {
    "plain": [],
    "varied": [],
    "joining": [{"folder": str(pictures()), **JOINING}],
    "live": [{"folder": str(pictures()), "role": "regularisation", "teacher": "base"}],
}
"""Options of the data set: captions as they are, in several forms encoded in advance, and made anew at every visit; with a set that the base teaches."""


def allowed(case):
    return not (case["dropout"] and case["kind"] in ("loha", "lokr"))


def pairwise():
    """Few cases in which every pair of values of two factors meets (greedy, seeded)."""
    rng, names = random.Random(0), list(FACTORS)
    todo = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(names, 2)
        for x in FACTORS[a]
        for y in FACTORS[b]
        if not ({a, b} == {"kind", "dropout"} and (x, y) in (("loha", 0.2), ("lokr", 0.2)))
    }
    cases = []
    while todo:
        tries = []
        for _ in range(200):
            case = {name: rng.choice(FACTORS[name]) for name in names}
            if allowed(case):
                covered = sum(((a, case[a]), (b, case[b])) in todo for a, b in itertools.combinations(names, 2))
                tries.append((covered, len(tries), case))
        _, _, best = max(tries)
        cases.append(best)
        todo -= {((a, best[a]), (b, best[b])) for a, b in itertools.combinations(names, 2)}
    return cases


def every_family_optimizer_and_kind():
    for family, optimizer, kind, ema in itertools.product(
        *(FACTORS[n] for n in ("family", "optimizer", "kind", "ema"))
    ):
        for dropout in (0.0, 0.2):
            case = {"family": family, "optimizer": optimizer, "kind": kind, "ema": ema, "dropout": dropout,
                    "accumulation": 2, "checkpointing": bool(ema), "caption_dropout": 0.4, "flip": True,
                    "captions": "varied" if ema else "live"}  # fmt: skip
            if allowed(case):
                yield case


def shown(case):
    return "-".join(str(value) for value in case.values())


def config_of(case, output, **training):
    return make_config(
        case["family"],
        output,
        dataset=[
            {
                "folder": make_config("sd", output).dataset[0].folder,
                "caption_dropout": case["caption_dropout"],
                "flip": case["flip"],
                **CAPTIONS[case["captions"]],
            },
            *TAUGHT[case["captions"]],
        ],
        network={"kind": case["kind"], "dropout": case["dropout"], **case.get("network", {})},
        optimizer={
            "name": case["optimizer"],
            "learning_rate": 1.0 if case["optimizer"] == "prodigy" else 1e-3,
            "options": {"min_8bit_size": 16} if case["optimizer"] == "adamw8bit" else {},
        },
        schedule={"kind": "cosine", "warmup": 0.2},
        training={
            "steps": 5,
            "save_every": 5,
            "batch_size": 2,
            "ema": case["ema"],
            "accumulation": case["accumulation"],
            **training,
        },
        objective=case.get("objective", {}),
        memory={"gradient_checkpointing": case["checkpointing"]},
    )


def last_state(output):
    """Every byte of the last checkpoint, and the losses on the way."""
    folder = Path(output) / "run"
    last = list_checkpoints(folder / "checkpoints")[-1].folder
    state = {path.name: path.read_bytes() for path in last.iterdir()}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [(line["step"], line["loss"], line["learning_rate"]) for line in lines if "loss" in line]
    return state, losses


def stop_after_two_steps(config):
    """A run that is stopped has its checkpoint; a LoRA file only if some module has moved by then, which images that the base
    teaches need not bring about."""
    with suppress(StoppedError):
        assert train(config, SilentHost(stop_at=2)).state == "stopped"
    assert [checkpoint.step for checkpoint in list_checkpoints(run_folder(config).checkpoints)] == [2]


def check_resume(case, tmp_path, **training):
    train(config_of(case, tmp_path / "straight", **training), SilentHost())
    stop_after_two_steps(config_of(case, tmp_path / "halved", **training))
    assert train(config_of(case, tmp_path / "halved", **training), SilentHost()).state == "finished"
    straight, halved = last_state(tmp_path / "straight"), last_state(tmp_path / "halved")
    assert straight[1] == halved[1]
    assert straight[0].keys() == halved[0].keys()
    for name in straight[0]:
        assert straight[0][name] == halved[0][name], name


@pytest.mark.parametrize("case", pairwise(), ids=shown)
def test_resume_is_exact(case, tmp_path):
    check_resume(case, tmp_path)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_resume_is_exact_in_half_precision(precision, tmp_path):
    """With the scale that float16 has found by then."""
    check_resume({**PLAIN, "ema": 0.0, "checkpointing": True}, tmp_path, precision=precision)
    state = json.loads(last_state(tmp_path / "halved")[0]["state.json"])
    assert (state["scaler"] is not None) == (precision == "float16")


@pytest.mark.parametrize(
    "network",
    [{"kind": "glora"}, {"kind": "oft", "rank": 8}, {"init": "pissa", "rank": 2}, {"init": "singular", "rank": 2}],
    ids=str,
)
def test_resume_is_exact_with_kinds_that_read_the_weight(network, tmp_path):
    check_resume({**PLAIN, "network": {"dropout": 0.0, **network}}, tmp_path)


def test_resume_is_exact_with_options_of_single_modules(tmp_path):
    """Dropouts are drawn by their place, rates are the optimizer's, and the limit acts between the steps."""
    options = {
        "rank_dropout": 0.3, "module_dropout": 0.3, "scale_weight_norms": 0.01, "init": "gaussian", "loraplus_lr_ratio": 8.0,
        "module_ranks": {"attn": 2}, "module_alphas": {"attn": 8.0}, "module_rates": {"attn": 0.5},
    }  # fmt: skip
    check_resume({**PLAIN, "network": options}, tmp_path)
    lines = (tmp_path / "halved" / "run" / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(line).get("keys_scaled", 0) for line in lines) > 0


def test_resume_is_exact_with_scheduled_sampling(tmp_path):
    options = {"scheduled_sampling_max_step_offset": 3, "scheduled_sampling_ramp_steps": 3}
    check_resume({**PLAIN, "objective": options}, tmp_path)


def test_resume_is_exact_with_token_routing(tmp_path):
    check_resume({**PLAIN, "checkpointing": True, "objective": {"tread_routes": "0:-1:0.5"}}, tmp_path)


def test_resume_is_exact_where_sets_join_and_captions_grow(tmp_path):
    case = {**PLAIN, "accumulation": 2, "captions": "joining"}
    check_resume(case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", list(every_family_optimizer_and_kind()), ids=shown)
def test_resume_is_exact_everywhere(case, tmp_path):
    check_resume(case, tmp_path)


PLAIN = {"family": "sd3", "optimizer": "adamw", "kind": "lora", "ema": 0.9, "dropout": 0.2, "accumulation": 2,
         "checkpointing": False, "caption_dropout": 0.4, "flip": True, "captions": "varied"}  # fmt: skip


@pytest.mark.parametrize("place", ["run.json", "checkpoint"])
def test_a_run_goes_on_with_its_modules_when_a_preset_comes_to_mean_others(tmp_path, monkeypatch, place):
    def config(name):
        return config_of(PLAIN, tmp_path / name)

    train(config("straight"), SilentHost())
    train(config("halved"), SilentHost(stop_at=2))
    folder = run_folder(config("halved"))
    modules = folder.read()["modules"]
    if place == "checkpoint":  # all that runs of earlier versions have
        folder.update(modules=None)

    def narrower(module, presets, wanted, exclude):
        changed = {**presets, wanted: Targets(pattern=r"blocks\.0\.ff\.net\.0\.proj$")}
        return resolve_targets(module, changed, wanted, exclude)

    monkeypatch.setattr("lora_loom.trainer.runs.modules.resolve_targets", narrower)
    assert train(config("halved"), SilentHost()).state == "finished"
    assert last_state(tmp_path / "halved") == last_state(tmp_path / "straight")
    assert folder.read()["modules"] == modules
    train(config("new"), SilentHost())
    assert run_folder(config("new")).read()["modules"] == ["transformer_blocks.0.ff.net.0.proj"]


def test_extending_a_finished_run(tmp_path):
    """More steps may be asked for later: the same as asking for them at once, under a schedule without an end."""

    def config(steps):
        made = config_of(PLAIN, tmp_path / str(steps if steps == 6 else "grown"), steps=steps, save_every=0)
        return made.__class__(**{**made.__dict__, "schedule": made.schedule.__class__()})

    train(config(6), SilentHost())
    train(config(4), SilentHost())
    train(config(6).__class__(**{**config(6).__dict__, "output": config(4).output}), SilentHost())
    assert last_state(tmp_path / "6") == last_state(tmp_path / "grown")


def test_two_runs_are_equal_and_seeds_differ(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(config_of(PLAIN, tmp_path / name, seed=seed), SilentHost())
    a, b, c = (last_state(tmp_path / name) for name in "abc")
    assert a == b
    assert a[1] != c[1]


def test_another_thread_neither_disturbs_nor_is_disturbed(tmp_path):
    """A second thread that seeds torch and draws all the time changes nothing, and gets its own numbers."""
    train(config_of(PLAIN, tmp_path / "alone"), SilentHost())
    torch.manual_seed(123)
    expected = [torch.randn(3) for _ in range(400)]
    drawn, stop, first_done = [], threading.Event(), threading.Event()

    def noisy():
        torch.manual_seed(123)
        for _ in range(400):
            drawn.append(torch.randn(3))
            time.sleep(0.001)
        first_done.set()
        while not stop.is_set():
            torch.manual_seed(7)
            torch.randn(5)

    thread = threading.Thread(target=noisy)
    thread.start()
    try:
        train(config_of(PLAIN, tmp_path / "disturbed"), SilentHost())
        first_done.wait(60)
    finally:
        stop.set()
        thread.join()
    assert last_state(tmp_path / "alone") == last_state(tmp_path / "disturbed")
    assert all(torch.equal(a, b) for a, b in zip(drawn, expected, strict=True))


class SlowHost(SilentHost):
    """Gives the parent time to kill at any moment of a run, saving included."""

    def between_steps(self):
        time.sleep(0.002)


def train_in_child(config):
    """A real process, forked from this one, which has everything imported: killing it is real, starting it is cheap."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            train(config, SlowHost())
            os._exit(0)
        except BaseException:  # noqa: BLE001 - whatever happened, the child must not go on as a test run
            import traceback

            traceback.print_exc()
            os._exit(1)
    return child


def check_kills(tmp_path, kills, seed):
    """Kill living runs `kills` times; every run that gets to its end must equal the undisturbed one."""
    rng, options = random.Random(seed), {"steps": 12, "save_every": 2}
    train(config_of(PLAIN, tmp_path / "straight", **options), SilentHost())
    expected = last_state(tmp_path / "straight")
    started = time.monotonic()
    assert os.waitpid(train_in_child(config_of(PLAIN, tmp_path / "timing", **options)), 0)[1] == 0
    whole = time.monotonic() - started
    died = runs = 0
    while died < kills:
        config = config_of(PLAIN, tmp_path / f"killed-{runs}", **options)
        child = train_in_child(config)
        time.sleep(rng.uniform(0, whole))
        os.kill(child, signal.SIGKILL)
        outcome = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert outcome in (0, -signal.SIGKILL)
        died += outcome != 0
        check_no_broken_file(run_folder(config).path)
        if outcome == 0:
            assert last_state(tmp_path / f"killed-{runs}") == expected
            runs += 1
    train(config, SilentHost())
    assert last_state(config.output.directory) == expected


def check_no_broken_file(folder):
    from safetensors.torch import load_file

    for checkpoint in list_checkpoints(folder / "checkpoints"):
        assert {path.name for path in checkpoint.folder.iterdir()} == {
            "adapter.safetensors",
            "optimizer.safetensors",
            "state.json",
        }
        json.loads((checkpoint.folder / "state.json").read_text())
    for path in folder.rglob("*.safetensors"):
        if TEMPORARY not in str(path):
            assert load_file(path)
    if (folder / "run.json").exists():
        json.loads((folder / "run.json").read_text())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kill_at_any_moment(tmp_path):
    check_kills(tmp_path, kills=6, seed=0)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("seed", range(10))
def test_kill_at_any_moment_often(tmp_path, seed):
    check_kills(tmp_path, kills=20, seed=seed + 1)
