"""Write docs/configuration.md from the fields and texts of trainer/config/run.py and dataset.py: python -m scripts.write_config_docs"""

import dataclasses
from pathlib import Path

from lora_loom.trainer.config import run as config_module
from lora_loom.trainer.config.help_texts import texts
from lora_loom.trainer.config.run import Section, TrainConfig

TARGET = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
INTRO = """# Configuration

Every option of a run's TOML file. Written by `python -m scripts.write_config_docs` from `trainer/config/`; a test keeps
it true. Any option can be given on the command line too: `lora-loom train run.toml --set training.steps=500`. Relative
paths start from the folder the command is run in.

An unknown option is an error with the nearest known name. A run can be continued after changing `training.steps`,
`training.save_every`, `training.keep_checkpoints` and anything in `memory` (but `vae_tiling`, which changes the latents), `validation`, `sweep` and `output`; other changes need a new name.

```toml
name = "my-cat"

[model]
base = "models/sd3.5-medium"        # a diffusers folder, or one .safetensors file

[[dataset]]
folder = "photos/my-cat"            # with cat.jpg and cat.txt side by side
caption_dropout = 0.1

[training]
steps = 1200
```
"""


def shown_type(field: dataclasses.Field[object]) -> str:
    if isinstance(field.type, type):
        return field.type.__name__
    text = str(field.type)
    for noise in ("typing.Literal", "typing.", "lora_loom.trainer.config.run.", "lora_loom.trainer.config.dataset."):
        text = text.replace(noise, "")
    return (
        text.replace("|", "or").removeprefix("[").removesuffix("]") if text.startswith("[") else text.replace("|", "or")
    )


def shown_default(field: dataclasses.Field[object]) -> str:
    if field.default is not dataclasses.MISSING:
        if isinstance(field.default, tuple):
            return (
                "see below"
                if field.default and dataclasses.is_dataclass(field.default[0])
                else f"`{list(field.default)}`"
            )
        return {"None": "—", "True": "`true`", "False": "`false`"}.get(
            repr(field.default), f"`{field.default!r}`".replace("'", '"')
        )
    return "`{}`" if field.default_factory is not dataclasses.MISSING else "required"


def table(title: str, cls: type) -> str:
    told = texts(cls)
    rows = [f"## {title}", "", "| option | default | type | what it does |", "|---|---|---|---|"]
    rows += [
        f"| `{field.name}` | {shown_default(field)} | {shown_type(field)} | {told[field.name]} |"
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
        if field.name in told
    ]
    return "\n".join(rows) + "\n"


def page() -> str:
    sections = {
        name: cls for name, cls in vars(config_module).items() if isinstance(cls, type) and issubclass(cls, Section)
    }
    titles = {"DatasetConfig": "[[dataset]]", "GuidanceConfig": "[[sweep.guidance]]", "TrainConfig": "top level"}
    parts = [table("top level", TrainConfig)]
    for name, cls in sections.items():
        if cls not in (Section, TrainConfig):
            parts.append(table(titles.get(name, f"[{name.removesuffix('Config').lower()}]"), cls))
    return INTRO + "\n" + "\n".join(parts)


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
    print(f"wrote {TARGET}")
