"""What a LoRA for a CFG-distilled model keeps of the guidance: the plain loss against the two guided ones, sampled at guidance 1.

A student of the demo base, distilled at CFG 4 (scripts/demo_base/student.py), learns the demo's toadstool with each loss, from the
same images with the same seeds. Then, with the LoRA on:

- guidance: how many times c - u of the teacher the student's p - u holds, on scenes that are not trained on, as a regression over
  latents and noise levels. 4 is what was distilled, 1 is what the plain loss asks for.
- scenes: share of right colours, counts and shapes in images of scenes at guidance 1, by the judge (scripts/demo_base/judge.py).
- toadstool: mean score of the concept's images at guidance 1 (trainer/demo/concept.py).

    python -m bench guided_loss                    three seeds; LOOM_BENCH=5 for five
"""

import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from lora_loom.trainer.base_model import open_base
from lora_loom.trainer.cli.console import QuietHost
from lora_loom.trainer.config.run import ModelConfig, TrainConfig
from lora_loom.trainer.config.toml import parse
from lora_loom.trainer.demo.concept import concept_score
from lora_loom.trainer.demo.demo import write_data
from lora_loom.trainer.lora.patch import patched
from lora_loom.trainer.runs.headless import train
from lora_loom.trainer.storage.tensor_file import read_lora
from scripts.demo_base.denoiser import draw_sigma, generate, held_out_scenes, rate
from scripts.demo_base.judge import judge
from scripts.demo_base.student import conditioning, distil, scene_latents

from .common import RESULTS, keep, report, two_blocks

STEPS, SCALE = 200, 4.0
SCENES, PROMPTS = (
    32,
    ("a toadstool on a meadow", "a toadstool in the fog", "a toadstool at night", "a toadstool on sand"),
)
LOSSES = ("off", "target", "output")
NAMES = {"off": "plain loss", "target": "guided, target form", "output": "guided, output form"}


def load(folder: Path) -> tuple[Any, Any]:
    """(denoiser, encoders) of a base."""
    config = ModelConfig(base=str(folder), device="cpu")
    base = open_base(config)
    return base.load_denoiser(config, "float32"), base.load_encoders()


def config_of(student: Path, folder: Path, loss: str, seed: int) -> TrainConfig:
    """A run on the concept's images with one of the losses."""
    return parse(
        {
            "name": f"{loss}-{seed}",
            "model": {"base": str(student)},
            "dataset": [{"folder": str(folder / "images"), "caption_dropout": 0.1}],
            "data": {"resolution": 128},
            "network": {"rank": 16},
            "optimizer": {"learning_rate": "auto"},
            "objective": {"guided_loss": loss},
            "training": {"steps": STEPS, "batch_size": 1, "save_every": STEPS, "seed": seed, "precision": "float32"},
            "memory": {"gradient_checkpointing": False},
            "output": {"directory": str(folder / "runs"), "dtype": "float32"},
        },
        TrainConfig,
    )


class Measure:
    """The three figures of a network that samples at guidance 1."""

    def __init__(self, teacher: Path, student: Path, scenes: int = SCENES) -> None:
        self.teacher, encoders = load(teacher)
        self.student, _ = load(student)
        self.text, self.codec = encoders.text, encoders.image
        self.latents, self.captions = scene_latents(self.codec, scenes, seed=77)
        self.scenes = held_out_scenes(scenes)

    @torch.no_grad()
    def guidance(self, denoiser: Any) -> float:
        """The factor s that minimises |(p - u) - s (c - u)|^2, with c and u the teacher's, p and the first u of `denoiser`."""
        generator = torch.Generator().manual_seed(5)
        sigma = draw_sigma(len(self.latents), generator)
        objective = self.teacher.objective
        noisy = objective.add_noise(self.latents, torch.randn(self.latents.shape, generator=generator), sigma)
        said, nothing = (conditioning(self.text, texts) for texts in (self.captions, [""] * len(self.captions)))
        mine, theirs = (
            one.predict(noisy, sigma, said) - one.predict(noisy, sigma, nothing) for one in (denoiser, self.teacher)
        )
        return float((mine * theirs).sum() / theirs.square().sum())

    def images(self, denoiser: Any, scale: float = 1.0) -> dict[str, float]:
        """The judge's share and the concept's score of images."""
        pictures = generate(denoiser, self.text, self.codec, [one.caption for one in self.scenes], scale=scale)
        concepts = generate(denoiser, self.text, self.codec, list(PROMPTS) * 2, scale=scale)
        shares = rate([judge(picture) for picture in pictures], self.scenes)
        return {
            "scenes": statistics.mean(shares.values()),
            "toadstool": statistics.mean(map(concept_score, concepts)),
        }

    def of(self, lora: Path | None) -> dict[str, float]:
        """All figures of the student with a LoRA file, or without."""
        with patched(self.student, read_lora(lora) if lora else {}, 1.0 if lora else 0.0):
            return {"guidance": self.guidance(self.student), **self.images(self.student)}


def student_folder() -> Path:
    """The student, distilled once; LOOM_STUDENT names one that exists."""
    folder = Path(os.environ.get("LOOM_STUDENT", RESULTS / "student"))
    if not (folder / "model_index.json").is_file():
        distil(two_blocks(), folder, scale=SCALE)
    return folder


def main() -> None:
    seeds = int(os.environ.get("LOOM_BENCH", "3"))
    student = student_folder()
    measure = Measure(two_blocks(), student)
    rows: dict[str, list[dict[str, float]]] = {
        "base at CFG 1": [{"guidance": 1.0, **measure.images(measure.teacher)}],
        "base at CFG 4": [{"guidance": SCALE, **measure.images(measure.teacher, SCALE)}],
        "student": [measure.of(None)],
        **{NAMES[loss]: [] for loss in LOSSES},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, seed=0, wide=True)
        for seed in range(seeds):
            for loss in LOSSES:
                done = train(config_of(student, folder, loss, seed), QuietHost())
                rows[NAMES[loss]].append(measure.of(done.lora))
                keep("guided_loss", {"rows": rows})
    report("guided_loss", {f"{row}, {what}": _text([one[what] for one in found]) for row, found in rows.items() for what in found[0]})  # fmt: skip


def _text(values: list[float]) -> str:
    spread = f" +- {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


if __name__ == "__main__":
    main()
