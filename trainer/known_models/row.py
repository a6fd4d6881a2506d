"""A row of the table of known models: what training needs to know of one model beyond the structure of its network.

Members of one architecture differ in nothing that a structure shows (Z-Image and its Turbo, FLUX.2 Klein and its base). A row says
which member it is for, how that is told, and the numbers that trainers use for it, each with its source. `rows.py` holds the rows.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from ..diffusion.timesteps import ResolutionShift

T = TypeVar("T")
V_PREDICTION = re.compile(r"v[-_ ]?pred", re.IGNORECASE)
"""What files of v-prediction models are called."""
FEW_STEPS = r"turbo|lightning|lightx2v|schnell|hyper(?!real|ion|det)|few[-_ ]?steps?|(?<!\d)[48][-_ ]?steps?|dmd2|(^|[-_. ])(lcm|dmd)([-_. \d]|$)"
"""What files of few-step models, and of merges with a few-step LoRA, are called."""
UNDONE = r"de[-_ ]?(turbo|distill)"
"""What files are called from which few steps were trained out again."""
WITHOUT = "the model without it; put the few-step LoRA on for samples alone"
WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z](?!\d))|(?<=[A-Za-z])(?=[vV]\d)")
"""Where a word begins in a name without separators: myZIT, ZImageTurbo, ZITv2."""
Distilled = Literal["no", "guidance", "steps"]
"""guidance: it samples at CFG 1, the guidance is inside. steps: it samples in a few steps, at CFG 1."""


@dataclass(frozen=True)
class Sourced(Generic[T]):
    """A value and where it was read."""

    value: T
    source: str


@dataclass(frozen=True, kw_only=True)
class ModelRow:
    """One model that people train."""

    name: str
    model_class: str
    """The class of comfy.model_base that holds it, by exact name."""
    config: Mapping[str, object] = field(default_factory=dict)
    """What ComfyUI has read off its weights: entries of its network's configuration that must have these values."""
    named: str = ""
    """Regular expression that its file name or the title in its metadata matches, where weights do not tell it from its relatives.
    A row without one is the member that is meant if the name says nothing."""
    ask: bool = False
    """Its relatives are as common: where nothing told it from them, that is said."""
    distilled: Distilled = "no"
    instead: str = ""
    """What to train on instead of a distilled model, or besides it."""
    trap: str = ""
    """What else goes wrong, in a sentence."""
    unsaid: str = ""
    """What neither weights nor name tell of it, and what to set: said before it is trained."""
    shift: Sourced[float] | Sourced[ResolutionShift] | None = None
    """Shift of the trained noise levels; None takes the family's, else the one that the model samples with."""
    guidance: Sourced[float] | None = None
    """The guidance value that the network is fed while training; None for a network that takes none, or keeps ComfyUI's."""
    cfg: Sourced[float] | None = None
    """Usual classifier-free guidance scale of samples."""
    guided: Sourced[float] | None = None
    """Scale of the guided loss; None takes 4."""
    bucket_step: Sourced[int] | None = None
    """Bucket sides are multiples of this many pixels, at least."""
    leave_out: Sourced[str] | None = None
    """Regular expression of modules inside of the blocks that no preset trains. {last} stands for the number of the last block."""
    rank: Sourced[int] | None = None
    rate: Sourced[float] | None = None
    """Usual learning rate of AdamW for a LoRA of that rank."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """The row of a model, and whether anything has told it from its relatives."""

    row: ModelRow
    by: Literal["weights", "name", "nothing"]
    """weights: no relative has these weights. name: file name or metadata name it. nothing: it is the likeliest one."""
    relatives: tuple[str, ...] = ()
    """Names of the rows that the same weights could be of."""


def tell(rows: Sequence[ModelRow], model_class: str, config: Mapping[str, object], names: Sequence[str]) -> Told | None:
    """The row of a model of this class with this configuration, or None if no row is for it.

    `names` are the file's name and what its metadata call it. Rows are tried in order, those with a name first.
    """
    alike = [row for row in rows if row.model_class == model_class and _holds(config, row.config)]
    if not alike:
        return None
    most = max(len(row.config) for row in alike)
    alike = [row for row in alike if len(row.config) == most]
    if len(alike) == 1 and not alike[0].named:
        return Told(row=alike[0], by="weights")
    named = next((row for row in alike if row.named and _is_called(names, row.named)), None)
    plain = next((row for row in alike if not row.named), None)
    row = named or plain
    others = tuple(dict.fromkeys(one.name for one in alike if row and one.name != row.name))
    return Told(row=row, by="name" if named else "nothing", relatives=others) if row else None


def _is_called(names: Sequence[str], pattern: str) -> bool:
    """Whether one of the names, as it is or in its words, matches."""
    spelled = [*names, *(WORDS.sub(" ", name) for name in names)]
    return any(re.search(pattern, name, re.IGNORECASE) for name in spelled)


def has_few_steps(names: Sequence[str]) -> bool:
    """Whether the names of a file say that it is distilled to few steps."""
    return _is_called(names, FEW_STEPS) and not _is_called(names, UNDONE)


def _holds(config: Mapping[str, object], wanted: Mapping[str, object]) -> bool:
    return all(config.get(name) == value for name, value in wanted.items())


def warning_of(
    told: Told | None, names: Sequence[str] = (), name: str = "", *, adapter: bool = False, guided: bool = False
) -> str:
    """What must be said before a model is trained: that it is distilled, or that it may be. "" where nothing must.

    `names` are those of `tell`; `name` is what a model without a row is called. `adapter`: it has a base LoRA for training only;
    `guided`: it is trained with a guided loss.
    """
    row = told.row if told else ModelRow(name=name, model_class="")
    if row.distilled != "steps" and has_few_steps(names):
        few = f"{names[0]}, by its name a {row.name} with few steps,"
        return distillation_note(few, "steps", takes_guidance=False, instead=WITHOUT, adapter=adapter, guided=guided)
    if told and told.by == "nothing" and row.ask:
        return _asked(told)
    takes_guidance = row.guidance is not None
    about = (row.name, row.distilled)
    note = distillation_note(*about, takes_guidance=takes_guidance, instead=row.instead, adapter=adapter, guided=guided)
    return "; ".join(filter(None, [row.unsaid, note]))


def _asked(told: Told) -> str:
    return (
        f"neither weights, file name nor metadata say which member of its family this is; taken for {told.row.name}. If it is {' or '.join(told.relatives)}, "
        "put that into the file's name: the weights are alike, and what has to be set is not (docs/models.md)"
    )


def distillation_note(
    name: str,
    distilled: Distilled,
    *,
    takes_guidance: bool,
    instead: str = "",
    adapter: bool = False,
    guided: bool = False,
) -> str:
    """What must be said of a model's distillation before it is trained; "" where nothing must. `adapter`: it has a base LoRA for
    training only; `guided`: it is trained with a guided loss."""
    if adapter and guided:
        return "a training adapter and a guided loss are two remedies for the same: with the adapter the model is not distilled, and the guided loss distorts it; use one of them"
    if adapter and distilled == "no":
        return f"{name} is not known to be distilled: a training adapter then takes back nothing, and the LoRA is trained on a base that it will not be used on; leave the adapter out"
    if guided and takes_guidance:
        return f"{name} takes its guidance as an input, and objective.guidance_scale = 1 keeps the distillation without a guided loss: leave guided_loss off"
    if guided and distilled == "no":
        return f"{name} is not known to be distilled: a guided loss distils guidance into it, so that it is overdone at the usual CFG; leave guided_loss off"
    if guided and distilled == "steps":
        return (
            f"{name} is distilled to few steps, which a guided loss does not keep: use a training adapter or train on its base"
            + (f" ({instead})" if instead else "")
        )
    handled = adapter or guided
    return "" if handled else distilled_warning(name, distilled, takes_guidance=takes_guidance, instead=instead)


def distilled_warning(name: str, distilled: Distilled, *, takes_guidance: bool, instead: str = "") -> str:
    """What must be said before a distilled model is trained; "" for one that is not, or whose guidance is an input, which 1 keeps."""
    if distilled == "no" or (distilled == "guidance" and takes_guidance):
        return ""
    remedy = "train on its base" if distilled == "steps" else "use the guided loss"
    return f"{name} is distilled ({distilled}), and plain training undoes that: add a training adapter or {remedy}" + (
        f" ({instead})" if instead else ""
    )
