"""How well samples show their prompts, while training: CLIP-T of each, the cosine of image and prompt, by a CLIP in a folder."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..data.clip import ClipFiles, check_clip

OPTION = "validation.clip_score"


class PromptScores:
    """Scores samples by the prompt that their files say. The CLIP is loaded when it is used first, on the CPU, where it takes no
    memory from the run."""

    def __init__(self, folder: str) -> None:
        """Raises ModelFileError for a folder that holds no CLIP; nothing is loaded."""
        self._folder = Path(folder).expanduser()
        check_clip(self._folder, OPTION)
        self._clip: ClipFiles | None = None

    def of(self, files: Sequence[Path]) -> list[float]:
        """Cosines of images and their prompts, one a file. Raises ModelFileError for a CLIP that cannot be used."""
        self._clip = self._clip or ClipFiles(self._folder, OPTION)
        prompts = [_prompt_of(file) for file in files]
        images, texts = self._clip.images(files), self._clip.texts(prompts)
        return [float(image @ text) for image, text in zip(images, texts, strict=True)]


def _prompt_of(file: Path) -> str:
    with Image.open(file) as image:
        return str(image.info.get("prompt", ""))


def metrics(scores: Sequence[float], kind: str) -> dict[str, float]:
    """What the metrics and the tracker get of the samples of a step; `kind` is "" or "ema"."""
    return {f"clip_score{f'_{kind}' if kind else ''}": round(sum(scores) / len(scores), 6)}
