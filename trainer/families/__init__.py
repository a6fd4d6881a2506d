"""Discovery: every module of this folder that defines FAMILY is a family. Nothing else names one."""

import importlib
import pkgutil
from functools import cache

from ..errors import ConfigError, ModelFileError, did_you_mean
from ..types import Shapes
from .common.family import EditPrompt, Family, Variant
from .common.source import Source


@cache
def all_families() -> dict[str, Family]:
    """Returns {name: family}, in alphabetical order."""
    modules = (importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    found = [module.FAMILY for module in modules if hasattr(module, "FAMILY")]
    return {family.name: family for family in sorted(found, key=lambda family: family.name)}


def get(name: str) -> Family:
    """Raises ConfigError on an unknown name."""
    families = all_families()
    if name not in families:
        raise ConfigError(f"model.family = {name!r}: {did_you_mean(name, list(families))}")
    return families[name]


def detect(shapes: Shapes, where: object) -> tuple[Family, str]:
    """The family and variant that tensors of these names and shapes belong to. Raises ModelFileError."""
    for family in all_families().values():
        if variant := family.detect(shapes):
            return family, variant
    some = ", ".join(sorted(shapes)[:3])
    known = ", ".join(all_families())
    raise ModelFileError(f"{where} is not a base model of a known family ({known}); its tensors begin with {some}")


def choose(name: str, variant: str, source: Source) -> tuple[Family, str]:
    """What the configuration asks for, checked against the base. Raises ConfigError or ModelFileError."""
    found, found_variant = detect(source.shapes, source.path)
    if name not in ("auto", found.name):
        get(name)
        raise ModelFileError(
            f"{source.path} is a {found.name} model, not {name}: set model.family = {found.name!r} or auto"
        )
    if variant == "auto":
        return found, found.told_variant(source, found_variant)
    if variant not in found.variants:
        raise ConfigError(f"model.variant = {variant!r}: {did_you_mean(variant, list(found.variants))}")
    return found, variant


def edit_variants() -> dict[str, tuple[Variant, EditPrompt]]:
    """Returns {variant: (its settings, how ComfyUI encodes its prompts)} of edit models whose text encoder sees the reference images."""
    return {
        name: (family.variants[name], edit)
        for family in all_families().values()
        for name, edit in family.comfy.edit_prompts.items()
    }
