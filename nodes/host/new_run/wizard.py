"""What the page's wizard asks: which models and folders there are, what one model needs, and the graph of a run."""

from typing import Any, get_args

import folder_paths

from ....trainer.errors import ConfigError
from ....trainer.known_models.row import warning_of
from ....trainer.storage.names import check_name
from ....trainer.types import Record
from ..paths import resolve_folder, run_folder
from ..sweep.sampler_names import base_names, lora_names
from .graphs import DEMO, Goal, Wish, make_graph, resolution_of
from .loaders import Loaders, likely, loaders_for
from .models import Seen, previews_of, seen_in

ADAPTERS = {
    "Z-Image Turbo": r"z.?image.*turbo.*adapter",
    "Krea 2 Turbo": r"krea.*turbo.*adapter",
    "Flux schnell": r"schnell.*adapter",
    "Qwen-Image 2.1": r"qwen.?image.?2.?1.*adapter",
}
"""{name of a row: what its training adapter is called among ComfyUI's LoRAs}."""
GOALS: tuple[Goal, ...] = get_args(Goal)


def choices() -> Record:
    """Returns {"models": names as Loom lists base models, "demo" last, "goals", "name": a free one}."""
    return {"models": [*base_names(), DEMO], "goals": list(GOALS), "name": _free_name("my-lora")}


def facts(model: str) -> Record:
    """What a model is and needs: {"title", "resolution", "rank", "warning", "trap", "parts": [{"label", "files", "value"}], "adapter",
    "previews": names of models that can make its samples}.

    Raises LoomError for a name that is not listed, and for a damaged file.
    """
    seen, loaders = _read(model)
    row = seen.told.row if seen.told else None
    adapter = likely(ADAPTERS[row.name], lora_names()) if row and row.name in ADAPTERS else ""
    return {
        "title": "Demo model" if model == DEMO else row.name if row else seen.model_class,
        "resolution": resolution_of(model, seen),
        "rank": row.rank.value if row and row.rank else None,
        "warning": warning_of(seen.told, seen.names, seen.model_class, adapter=bool(adapter)),
        "trap": row.trap if row else "",
        "parts": _parts(model, loaders),
        "adapter": adapter,
        "previews": previews_of(model, seen),
    }


def new_graph(asked: Record) -> Record:
    """Returns {"graph", "places", "groups", "name"} for the choices of the wizard. Raises LoomError for one that cannot be."""
    model, goal = _text(asked, "model"), _text(asked, "goal")
    if goal not in GOALS:
        raise ConfigError(f"goal = {goal!r}: one of {', '.join(GOALS)}")
    seen, loaders = _read(model)
    folder, references = _text(asked, "folder"), _text(asked, "references")
    if folder or model != DEMO:
        resolve_folder(folder, "folder")
    if goal == "edit":
        resolve_folder(references, "references")
    preview = _text(asked, "preview")
    if preview and goal == "edit":
        raise ConfigError(f"preview = {preview!r}: a run of edits has no samples, leave it empty")
    if preview and preview not in previews_of(model, seen):
        raise ConfigError(f"preview = {preview!r}: choose one of the models that can make samples of {model}")
    files = [
        _file(part, chosen) for part, chosen in zip(_parts(model, loaders), _chosen(asked, model, loaders), strict=True)
    ]
    wish = Wish(
        model=model, goal=_goal(goal), name=check_name(_text(asked, "name")), trigger=_text(asked, "trigger"), folder=folder,
        references=references, texts=tuple(files[:-1]), vae=files[-1] if files else "", adapter=facts(model)["adapter"],
        preview=preview,
    )  # fmt: skip
    made = make_graph(wish, seen, loaders)
    return {"graph": made.graph, "places": made.places, "groups": made.groups, "name": wish.name}


def _goal(text: str) -> Goal:
    return next(goal for goal in GOALS if goal == text)


def _read(model: str) -> tuple[Seen, Loaders]:
    seen = Seen() if model == DEMO else seen_in(model)
    return seen, loaders_for(seen.model_class, seen.config)


def _parts(model: str, loaders: Loaders) -> list[Record]:
    """The files that have to be chosen besides the model; none for a checkpoint, which holds them."""
    if not model.startswith("diffusion_models/"):
        return []
    texts, vaes = (list(folder_paths.get_filename_list(kind)) for kind in ("text_encoders", "vae"))
    label = "Text encoder" if len(loaders.texts) == 1 else "Text encoder {}"
    found = [
        {"label": label.format(place), "files": texts, "value": likely(pattern, texts)}
        for place, pattern in enumerate(loaders.texts, 1)
    ]
    vaes += ["pixel_space"] if "pixel_space" in loaders.vae else []  # ComfyUI's loader has it without a file
    return [*found, {"label": "VAE", "files": vaes, "value": likely(loaders.vae, vaes)}]


def _chosen(asked: Record, model: str, loaders: Loaders) -> list[Any]:
    parts = _parts(model, loaders)
    given = asked.get("parts", [])
    if not isinstance(given, list) or len(given) != len(parts):
        raise ConfigError(f"parts = {given!r}: name {len(parts)} files for {model}")
    return given


def _file(part: Record, chosen: object) -> str:
    if not isinstance(chosen, str) or chosen not in part["files"]:
        raise ConfigError(f"{part['label']} = {chosen!r}: choose a file that ComfyUI lists")
    return chosen


def _text(asked: Record, name: str) -> str:
    value = asked.get(name, "")
    if not isinstance(value, str):
        raise ConfigError(f"{name} = {value!r}: send a text")
    return value.strip()


def _free_name(stem: str) -> str:
    """The name, or the first with a number behind it that no run has."""
    number = 1
    while run_folder(name := stem if number == 1 else f"{stem}-{number}").exists():
        number += 1
    return name
