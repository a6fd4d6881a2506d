"""How samples are scored while training: how well they show their prompts, and how alike they are to the training images.

CLIP-T and CLIP-I (arXiv 2208.12242, 5.1), by a CLIP in a folder; the second also by an encoder that a front end has connected.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from ..types import Record
from .clip import ClipFiles, Feature, ImageEncoder, check_clip
from .intervals import LEVEL, mean_interval

OPTION = "validation.clip_score"
MOST = 200
"""Training images that samples are compared with: more of them, evenly chosen, would only cost time."""
CURRENT = "current"


class SampleScores:
    """Scores samples by what their files say of themselves. A CLIP is loaded when it is used first, on the CPU, where it takes no
    memory from the run."""

    def __init__(self, folder: str = "", encoder: ImageEncoder | None = None, training: Sequence[Path] = ()) -> None:
        """`folder`: a CLIP; `encoder` compares images in its place; `training`: the images that samples are compared with. Without a
        folder and an encoder nothing is scored. Raises ModelFileError for a folder that holds no CLIP; nothing is loaded."""
        self._folder = Path(folder).expanduser() if folder else None
        if self._folder is not None:
            check_clip(self._folder, OPTION)
        self._clip: ClipFiles | None = None
        self._encoder, self._training = encoder, evenly(training, MOST)
        self._features: list[Feature] | None = None

    def of(self, files: Sequence[Path]) -> Record:
        """The scores as the metrics have them; {} where nothing is scored. Each is a mean over the samples, "_ema" behind its name is
        for those of the average:

        clip_score, the cosine with the prompt; likeness, the mean similarity to the training images, with the ends likeness_low and
        likeness_high of its 95 % interval over the samples (from two samples on), and likeness_by, the encoder's name.
        Raises ModelFileError for a CLIP that cannot be used.
        """
        if not files or (self._folder is None and self._encoder is None):
            return {}
        return self._of_prompts(files) | self._of_training_images(files)

    def _of_prompts(self, files: Sequence[Path]) -> Record:
        if self._folder is None:
            return {}
        clip = self._loaded(self._folder)
        said = [_said(file) for file in files]
        images, texts = clip.images(files), clip.texts([prompt for prompt, _ in said])
        cosines = [float(image @ text) for image, text in zip(images, texts, strict=True)]
        return {f"clip_score{end}": round(_mean(values), 6) for end, values in _by_weights(files, cosines).items()}

    def _of_training_images(self, files: Sequence[Path]) -> Record:
        encoder = self._encoder or (self._loaded(self._folder) if self._folder else None)
        training = [path for path in self._training if path.is_file()]
        if encoder is None or not training:
            return {}
        self._features = self._features or encoder.images(training)
        alike = [float(row.mean()) for row in encoder.compare(encoder.images(files), self._features)]
        found: Record = {"likeness_by": encoder.name}
        for end, values in _by_weights(files, alike).items():
            found[f"likeness{end}"] = round(_mean(values), 6)
            if len(values) > 1:
                ends = zip(("low", "high"), mean_interval(values), strict=True)
                found |= {f"likeness_{which}{end}": round(value, 6) for which, value in ends}
        return found

    def _loaded(self, folder: Path) -> ClipFiles:
        self._clip = self._clip or ClipFiles(folder, OPTION)
        return self._clip


def scalars_of(scores: Record) -> dict[str, float]:
    """The numbers among the scores."""
    return {name: value for name, value in scores.items() if isinstance(value, float)}


def scores_text(scores: Record) -> str:
    """The scores for a log, without the ends of intervals."""
    shown = {name: value for name, value in scalars_of(scores).items() if "_low" not in name and "_high" not in name}
    return ", ".join(f"{name} {value:.4f}" for name, value in shown.items())


def likeness_at(line: Mapping[str, object]) -> Record | None:
    """Returns {"step", "likeness", "low", "high", "by"} of a line of metrics: of what the LoRA file holds, the average where there is
    one. low and high are None for a single sample. None for a line without it."""
    end = "_ema" if "likeness_ema" in line else ""
    if not isinstance(value := line.get(f"likeness{end}"), float):
        return None
    low, high = line.get(f"likeness_low{end}"), line.get(f"likeness_high{end}")
    return {"step": line["step"], "likeness": value, "low": low, "high": high, "by": line.get("likeness_by", "")}


def recorded_likeness(lines: Sequence[Record]) -> list[Record]:
    """`likeness_at` of the lines of a run, by step; of a step that was sampled twice the last one counts."""
    found = {point["step"]: point for line in lines if (point := likeness_at(line))}
    return [found[step] for step in sorted(found)]


def likeness_text(point: Record) -> str:
    """A point of the curve for a sentence."""
    sure = f" ({LEVEL:.0%} interval {point['low']:.3f} to {point['high']:.3f})" if point["low"] is not None else ""
    return f"{point['likeness']:.3f}{sure}"


def evenly(paths: Sequence[Path], most: int) -> list[Path]:
    """At most `most` of the paths, evenly chosen, each once."""
    different = list(dict.fromkeys(paths))
    count = min(most, len(different))
    return [different[place * len(different) // count] for place in range(count)]


def _by_weights(files: Sequence[Path], values: Sequence[float]) -> dict[str, list[float]]:
    """Values by the ending of their names in metrics: "" for the current weights, "_ema" for the average."""
    found: dict[str, list[float]] = defaultdict(list)
    for file, value in zip(files, values, strict=True):
        weights = _said(file)[1]
        found["" if weights == CURRENT else f"_{weights}"].append(value)
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _said(file: Path) -> tuple[str, str]:
    """A sample's prompt, and whose weights made it: "current" or "ema"."""
    with Image.open(file) as image:
        return str(image.info.get("prompt", "")), str(image.info.get("weights", CURRENT))
