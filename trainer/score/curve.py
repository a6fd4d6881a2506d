"""The curve of image similarity over the checkpoints of a run: what a sweep of them showed, kept in the folder of the run."""

import time
from collections.abc import Sequence

from ..data.clip import ImageEncoder
from ..data.intervals import mean_interval
from ..data.sample_scores import recorded_likeness
from ..runs.run_folder import LIKENESS_FILE, RunFolder
from ..storage.atomic import write_json
from ..storage.records import read_record
from ..types import Cell, Record
from .candidates import BASE_KEY, Candidate, candidates
from .image_statistics import StatisticsEncoder
from .score import SIMILARITY, Score

PARTS = ("step", "likeness", "low", "high", "by")


def own_candidates(run: RunFolder, cells: Sequence[Cell]) -> list[Candidate]:
    """The candidates of a sweep that are checkpoints of this run at strength 1, and the base."""
    return [one for one in candidates(cells) if one.key == BASE_KEY or _is_own(run, one)]


def _is_own(run: RunFolder, candidate: Candidate) -> bool:
    file = candidate.cells[0].settings.get("lora_file", "")
    return candidate.step is not None and file == run.lora_file(candidate.step).name and candidate.key[1] == 1


def keep_curve(run: RunFolder, cells: Sequence[Cell], made: Score, encoder: ImageEncoder) -> None:
    """Keep the image similarity of the run's own checkpoints, if an encoder compared them; the newest score stands.

    Statistics of colours and edges are kept in the score alone: next to what an encoder says they would be misread.
    """
    points = []
    for one in own_candidates(run, cells):
        values = [made.cells[cell.id][SIMILARITY] for cell in one.cells if SIMILARITY in made.cells[cell.id]]
        if values:
            low, high = mean_interval(values) if len(values) > 1 else (None, None)
            mean = sum(values) / len(values)
            points.append({"step": one.step or 0, "likeness": mean, "low": low, "high": high, "by": encoder.name})
    if run.exists() and points and not isinstance(encoder, StatisticsEncoder):
        write_json(run.path / LIKENESS_FILE, {"points": points, "scored": time.time()})


def likeness_curve(run: RunFolder) -> list[Record]:
    """Every point that is known of a run: {"step", "likeness", "low", "high", "by", "source"}, first those of the samples made while
    training, then those of the last sweep that was scored with an encoder; each by step.

    `likeness` is the mean similarity to the training images; low and high are the ends of its 95 % interval over the images, by the
    bootstrap, None for a single image; `by` names the encoder: points of two encoders do not compare. `source` is samples or sweep.
    """
    samples = [{**point, "source": "samples"} for point in recorded_likeness(run.read_metrics())]
    try:
        kept = read_record(run.path / LIKENESS_FILE)["points"]
        swept = [{**{name: point[name] for name in PARTS}, "source": "sweep"} for point in kept]
        swept.sort(key=lambda point: point["step"])
    except (OSError, ValueError, RecursionError, KeyError, TypeError):  # there is none, or somebody has edited it
        swept = []
    return samples + swept
