"""A real server per module, with toy files in its folders; skipped with a reason where there is no ComfyUI."""

import os
import random
import subprocess

import pytest

from .browsing import browser, page, page_server  # noqa: F401 - fixtures
from .graphs import base_hash, file, toy
from .server import COMFYUI, PYTHON, ROOT, Server, need_comfyui

PICTURES = 4


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Folder of diffusion-model files, written through the host's own classes."""
    need_comfyui()
    folder = tmp_path_factory.mktemp("models")
    done = subprocess.run(
        [PYTHON, str(ROOT / "tests" / "host" / "make_checkpoints.py"), str(folder)],
        capture_output=True, text=True, check=False, env={**os.environ, "COMFYUI_PATH": str(COMFYUI)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def add_pictures(folder, count=PICTURES, seed=0):
    from lora_loom.trainer.demo.scenes import random_scene

    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    for number in range(count):
        scene = random_scene(rng)
        scene.draw().resize((64, 64)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(scene.caption)


def new_server(tmp_path_factory, checkpoints, *arguments, **options):
    base = tmp_path_factory.mktemp("comfyui")
    (base / "models").mkdir()
    (base / "models" / "diffusion_models").symlink_to(checkpoints)
    add_pictures(base / "input" / "pics")
    return Server(base, *arguments, **options)


@pytest.fixture(scope="module")
def server(tmp_path_factory, checkpoints):
    running = new_server(tmp_path_factory, checkpoints).start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def bases(server):
    """{family: graph of its loaders}: through the stock loader, unless this version refuses the toy."""
    flux = file("flux")
    record = server.finish(server.queue(base_hash(flux, 0)))
    return {"sd1": file("sd1"), "sd3": file("sd3"), "flux": flux if record["status"]["status_str"] == "success" else toy("flux-dev")}  # fmt: skip
