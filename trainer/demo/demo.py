"""The demo: train the tiny base model on a concept that it has never seen, and fail unless it was learnt.

Eight drawn toadstools and a few scenes of the base's own world become a LoRA in 200 steps; the sweep shows base and
checkpoints side by side. Two numbers decide: the validation loss must fall, and a judge must find toadstools.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from ..errors import RunError
from ..runs.headless import run_folder
from ..runs.headless import train as run_training
from ..runs.session import Host
from ..score.report import verdict
from ..score.run import score_sheet
from ..storage.atomic import write_json
from ..sweep.run import Sheet, sweep, write_grid, write_strips
from ..sweep.strip import panels
from ..types import Cell, Json
from .concept import mean_score
from .scenes import BACKGROUNDS, CONCEPT, ConceptScene, Scene, random_concept_scene, random_scene

ASSETS = Path(__file__).resolve().parents[2] / "assets" / "demo"
MEASURED = ("water", "cave", "desert", "carpet")
"""Backgrounds of the validation images."""
IMAGES, SCENES, HELD_OUT = len(BACKGROUNDS) - len(MEASURED), 6, len(MEASURED)
LEARNING_RATE = 2e-3
MADE_WITH = "made_with.json"
"""Tells a run of this version from one of an earlier version, which had another base or other settings."""
LOSS_MARGIN = 0.6
"""The validation loss must fall by this share at least. Seeds 0 and 1 fell by 0.90 and 0.87 (bench/demo.py)."""
SCORE_MARGIN = 0.8
"""The judge's score must rise by this much at least. Seeds 0 and 1 rose by 0.99, to 0.93."""

TEMPLATE = """\
# Written by `lora-loom demo`. Try: lora-loom train {file} --set name="mine" --set network.rank=16
name = "demo"

[model]
base = {base}

[[dataset]]                      # what is taught
folder = {images}
caption_dropout = 0.1

[[dataset]]                      # the base's own world, so that it is not forgotten
folder = {scenes}
role = "regularisation"

[[dataset]]                      # measured, never trained on
folder = {held_out}
role = "validation"

[data]
resolution = 128

[network]
rank = 16
target_modules = "all"

[optimizer]
learning_rate = {learning_rate}

[schedule]
kind = "cosine"
warmup = 0.05

[training]
steps = 200
batch_size = 8
save_every = 50
seed = {seed}

[memory]
gradient_checkpointing = false
vae_batch_size = 4

[validation]
timesteps = 8

[output]
directory = {output}

[sweep]
prompts = ["a toadstool on a meadow", "a toadstool in the fog"]
seeds = "1,2"
guidance = [{{ label = "CFG 2", scale = 2.0 }}, {{ label = "APG 4", method = "apg", scale = 4.0, norm_threshold = 12.0, momentum = -0.3 }}]
steps = 20
"""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """The results of one demo."""

    losses: dict[int, float]
    """{step: validation loss}; 0 is the base."""
    scores: dict[str, float]
    """{checkpoint: mean score of its images}, base first."""
    strips: tuple[Path, ...]
    verdict: str
    """Which checkpoint the scores recommend, and why."""

    @property
    def loss_fall(self) -> float:
        """Share of the base's validation loss that is gone at the end."""
        return 1 - self.losses[max(self.losses)] / self.losses[0]

    @property
    def score_rise(self) -> float:
        """Increase of the mean concept score from the base model to the last checkpoint."""
        return list(self.scores.values())[-1] - self.scores["base"]

    @property
    def learned(self) -> bool:
        """Whether validation loss and score have improved enough."""
        return self.loss_fall >= LOSS_MARGIN and self.score_rise >= SCORE_MARGIN

    def values(self) -> Json:
        """The results as a JSON object."""
        return {
            "held_out_base": self.losses[0],
            "held_out_final": self.losses[max(self.losses)],
            "loss_fall": self.loss_fall,
            "scores": self.scores,
            "score_rise": self.score_rise,
            "verdict": self.verdict,
            "strips": [str(path) for path in self.strips],
        }


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """The results of a demo as text and as a JSON object."""

    text: str
    values: Json


def write_data(folder: Path, seed: int, *, wide: bool = False) -> None:
    """PNG files with captions next to them: images/, scenes/ and held_out/.

    Every toadstool has a background of its own, so that none that is measured resembles one that is trained on. `wide` draws
    the images of version 0.1, with which the figures of bench/ compare.
    """
    rng = random.Random(seed)
    backgrounds = list(BACKGROUNDS)
    if wide:
        images = 16
        concepts = [random_concept_scene(rng, backgrounds[i % len(backgrounds)], wide=True) for i in range(22)]
        rng.shuffle(concepts)
    else:
        images = IMAGES
        trained = [name for name in backgrounds if name not in MEASURED]
        rng.shuffle(trained)
        concepts = [random_concept_scene(rng, name) for name in (*trained, *MEASURED)]
    _write_all(folder / "images", CONCEPT, concepts[:images])
    _write_all(folder / "held_out", CONCEPT, concepts[images:])
    _write_all(folder / "scenes", "scene", [random_scene(rng) for _ in range(SCENES)])


def _write_all(folder: Path, name: str, scenes: Sequence[Scene | ConceptScene]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, scene in enumerate(scenes):
        path = folder / f"{name}_{index + 1:02d}.png"
        scene.draw().save(path)
        path.with_suffix(".txt").write_text(scene.caption + "\n", encoding="utf-8")


def write_config(folder: Path, *, seed: int, learning_rate: float) -> Path:
    """Write demo.toml for the images in a folder. Returns its path."""
    import json

    def quoted(path: Path) -> str:
        return json.dumps(str(path))  # a JSON string is a TOML string

    file = folder / "demo.toml"
    paths = {name: quoted(folder / name) for name in ("images", "scenes", "held_out")}
    text = TEMPLATE.format(
        file=file, base=quoted(ASSETS), output=quoted(folder / "runs"), seed=seed, learning_rate=learning_rate, **paths
    )
    file.write_text(text, encoding="utf-8")
    return file


def run_demo(directory: Path, host: Host, *, seed: int = 0, learning_rate: float = 0.0) -> DemoResult:
    """Draw the images, train, sweep and score. Raises RunError if the LoRA did not learn the concept."""
    lesson = teach(directory, host, seed=seed, learning_rate=learning_rate)
    text = _to_text(lesson)
    if not lesson.learned:
        raise RunError(f"{text}\nthe demo's LoRA did not learn the {CONCEPT}")
    return DemoResult(text=text, values=lesson.values())


def teach(directory: Path, host: Host, *, seed: int = 0, learning_rate: float = 0.0) -> Lesson:
    """Draw the images, train, sweep and score, without deciding. `learning_rate` 0 means the demo's own."""
    from ..config.toml import load

    if not (ASSETS / "transformer").is_dir():
        raise RunError(f"{ASSETS} does not hold the demo base: run this from a clone of the repository")
    directory.mkdir(parents=True, exist_ok=True)
    _make_way(directory, host)
    write_data(directory, seed)
    config = load(write_config(directory, seed=seed, learning_rate=learning_rate or LEARNING_RATE))
    outcome = run_training(config, host)
    if outcome.state != "finished":
        raise RunError("the demo was stopped before its end; run it again to continue")
    scored = score_sheet(sweep(config, host).folder, host, config=config, triggers=[CONCEPT])
    sheet = scored.sheet
    strips = write_strips(sheet, columns=("checkpoint",), rows=("prompt", "seed"), title="LoRA Loom demo")
    last = sheet.cells[-1].checkpoint
    titles = {("base", "CFG 2"): "Base", (last, "CFG 2"): "LoRA", (last, "APG 4"): "LoRA + APG"}
    panel = write_grid(panels(sheet.cells, titles, title="Base, LoRA, LoRA with APG"), sheet.folder / "panels.png")
    losses = {line["step"]: line["held_out"] for line in run_folder(config).read_metrics() if "held_out" in line}
    scores = {name: mean_score([cell.image for cell in cells]) for name, cells in _by_checkpoint(sheet)}
    return Lesson(losses=losses, scores=scores, strips=(*strips, panel), verdict=verdict(scored.score))


def _make_way(directory: Path, host: Host) -> None:
    """Move the run of an earlier version aside: it was trained on another base or with other settings, and cannot be continued."""
    marker, run = directory / MADE_WITH, directory / "runs" / "demo"
    digest = hashlib.sha256(TEMPLATE.encode())
    for file in sorted(ASSETS.rglob("*.safetensors")):
        digest.update(file.read_bytes())
    is_mine = marker.is_file() and digest.hexdigest().encode() in marker.read_bytes()
    if run.is_dir() and not is_mine:
        aside = next(path for number in count(1) if not (path := run.with_name(f"demo-{number}")).exists())
        run.rename(aside)
        host.log(f"the demo's run of an earlier version is now {aside}; this one starts anew")
    write_json(marker, {"sha256": digest.hexdigest()})


def _to_text(lesson: Lesson) -> str:
    lines = [f"{'':10}  validation loss  {CONCEPT} score"]
    for name, score in lesson.scores.items():
        loss = lesson.losses.get(0 if name == "base" else int(name.removeprefix("step ")))
        lines.append(f"{name:10}  {loss:15.5f}  {score:15.3f}")
    lines.append(
        f"validation loss fell by {lesson.loss_fall:.1%} (needed {LOSS_MARGIN:.1%}), the score rose by {lesson.score_rise:.3f} (needed {SCORE_MARGIN})"
    )
    return "\n".join([*lines, lesson.verdict, *(f"strip: {path}" for path in lesson.strips)])


def _by_checkpoint(sheet: Sheet) -> Iterator[tuple[str, list[Cell]]]:
    """Returns (checkpoint, its cells with plain CFG), base first."""
    for name in dict.fromkeys(cell.checkpoint for cell in sheet.cells):
        yield name, [cell for cell in sheet.cells if cell.checkpoint == name and cell.guidance.startswith("CFG")]
