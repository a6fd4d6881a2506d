"""How well samples show their prompts, while training: CLIP-T, the cosine of an image and its prompt, by a CLIP in a folder."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from .clip import ClipFiles, check_clip

OPTION = "validation.clip_score"


class SampleScores:
    """Scores samples by the prompt that their files say. The CLIP is loaded when it is used first, on the CPU, where it takes no
    memory from the run."""

    def __init__(self, folder: str) -> None:
        """Without a folder nothing is scored. Raises ModelFileError for one that holds no CLIP; nothing is loaded."""
        self._folder = Path(folder).expanduser() if folder else None
        if self._folder is not None:
            check_clip(self._folder, OPTION)
        self._clip: ClipFiles | None = None

    def of(self, files: Sequence[Path]) -> dict[str, float]:
        """The mean cosines as the metrics have them: clip_score, and clip_score_ema of the average's samples; {} where nothing is
        scored. Raises ModelFileError for a CLIP that cannot be used."""
        if self._folder is None or not files:
            return {}
        self._clip = self._clip or ClipFiles(self._folder, OPTION)
        said = [_said(file) for file in files]
        images, texts = self._clip.images(files), self._clip.texts([prompt for prompt, _ in said])
        found: dict[str, list[float]] = defaultdict(list)
        for (_, weights), image, text in zip(said, images, texts, strict=True):
            found["clip_score" if weights == "current" else f"clip_score_{weights}"].append(float(image @ text))
        return {name: round(sum(values) / len(values), 6) for name, values in found.items()}


def scores_text(scores: Mapping[str, float]) -> str:
    """The scores for a log."""
    return ", ".join(f"{name} {value:.4f}" for name, value in scores.items())


def _said(file: Path) -> tuple[str, str]:
    """A sample's prompt, and whose weights made it: "current" or "ema"."""
    with Image.open(file) as image:
        return str(image.info.get("prompt", "")), str(image.info.get("weights", "current"))
