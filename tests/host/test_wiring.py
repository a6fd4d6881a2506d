"""Wiring mistakes are told before anything is encoded, however many images there are."""

import pytest
from PIL import Image

from .graphs import data, file, node, prompt, toy, train

pytestmark = pytest.mark.comfyui
IMAGES = 100


@pytest.fixture(scope="module")
def many(server):
    folder = server.base / "input" / "many"
    folder.mkdir()
    for number in range(IMAGES):
        Image.new("RGB", (64, 64), (number, 2 * number, 255 - number)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"colour {number}")
    checkpoint = server.base / "models" / "checkpoints" / "network.safetensors"
    checkpoint.symlink_to(server.base / "models" / "diffusion_models" / "sd1.safetensors")
    return "many"


def wired(base, folder, **changes):
    made = train(data(base, folder=folder), "never", **changes)
    made["cache"]["inputs"]["model"] = base["sources"]["model"]
    return made


def patched(graph):
    graph["patched"] = node("FreeU", model=graph["sources"]["model"], b1=1.1, b2=1.2, s1=0.9, s2=0.2)
    graph["cache"]["inputs"]["model"] = graph["train"]["inputs"]["model"] = ["patched", 0]
    return graph


def of_another(graph, socket, output):
    graph["other"] = toy("flux-dev")["model"]
    graph["cache"]["inputs"][socket] = ["other", output]
    return graph


def early(graph):
    graph["train"]["inputs"]["mode"] = "background"
    graph["loader"] = node(
        "LoraLoaderModelOnly", model=graph["sources"]["model"], lora_name=["train", 1], strength_model=1.0
    )
    graph["shown"] = node("LoomTestHash", model=["loader", 0], salt=0)
    return graph


def unlinked(graph):
    del graph["cache"]["inputs"]["model"]
    return graph


def with_train(graph, **changes):
    graph["train"]["inputs"] |= changes
    return graph


def named_elsewhere(graph):
    graph["text"] = node("PrimitiveString", value="a/b")
    return with_train(graph, name=["text", 0])


def other_model(graph):
    """LoomCache is linked to one model, LoomTrain to another."""
    graph["second"] = file("flux")["model"]
    return with_train(graph, model=["second", 0])


def without_encoders(graph, socket, output):
    graph["checkpoint"] = node("CheckpointLoaderSimple", ckpt_name="network.safetensors")
    graph["cache"]["inputs"][socket] = ["checkpoint", output]
    return graph


SAMPLES = {"vae": (2, "LoomValidation: vae makes latents with 16 channels, but the model reads 4"), "clip": (1, "LoomValidation: clip makes texts 64 numbers wide, but the model reads 768")}  # fmt: skip


@pytest.mark.parametrize("socket", SAMPLES)
def test_what_samples_are_made_with_belongs_to_the_model_too(server, socket):
    output, words = SAMPLES[socket]
    graph = train(data(file("sd1")), f"samples-{socket}")
    graph["other"] = toy("flux-dev")["model"]
    graph["validation"] = node("LoomValidation", vae=["encoders", 2], clip=["encoders", 1], prompts="a red thing", every=3, steps=2, width=64, height=64)  # fmt: skip
    graph["validation"]["inputs"][socket] = ["other", output]
    graph["train"]["inputs"]["validation"] = ["validation", 0]
    assert words in server.fail(prompt(graph))
    assert not (server.base / "output" / "lora_loom" / f"samples-{socket}").exists()


MISTAKES = {
    "vae": (lambda graph: of_another(graph, "vae", 2), "vae makes latents with 16 channels, but the model reads 4"),
    "clip": (lambda graph: of_another(graph, "clip", 1), "numbers wide, but the model reads"),
    "vae, model not linked": (
        lambda graph: unlinked(of_another(graph, "vae", 2)),
        "16 channels, but the model reads 4",
    ),
    "clip, model not linked": (
        lambda graph: unlinked(of_another(graph, "clip", 1)),
        "numbers wide, but the model reads 768",
    ),
    "model of LoomTrain": (other_model, "vae makes latents with 4 channels, but the model reads 16"),
    "no clip in the checkpoint": (
        lambda graph: without_encoders(graph, "clip", 1),
        "clip of Loom Cache holds no text encoder",
    ),
    "no vae in the checkpoint": (lambda graph: without_encoders(graph, "vae", 2), "vae of Loom Cache holds no VAE"),
    "name": (lambda graph: with_train(graph, name="a/b"), "name = 'a/b': use letters"),
    "name of a primitive node": (named_elsewhere, "name = 'a/b': use letters"),
    "rank": (lambda graph: with_train(graph, rank=0), "rank = 0: at least 1"),
    "patched model": (patched, "(it came through FreeU (node patched)): training needs the plain model"),
    "loader": (early, "link lora_name of Loom Wait for Run instead"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_and_nothing_is_encoded(server, many, mistake):
    wrong, words = MISTAKES[mistake]
    graph = prompt(wrong(wired(file("sd1"), many)))
    assert words in server.fail(graph)
    assert list((server.base / "output").rglob("*.safetensors")) == []
