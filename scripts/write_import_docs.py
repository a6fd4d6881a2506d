"""Write docs/coming-from.md from trainer/importers/tables: python -m scripts.write_import_docs"""

from pathlib import Path

from lora_loom.trainer.importers.table import TRAINERS, Row, rows

TARGET = Path(__file__).resolve().parents[1] / "docs" / "coming-from.md"
BY_OPTION = ("simpletuner", "sd_scripts")
"""Trainers that the page treats option by option; of the others it counts them."""
PARTS = {
    "config": "config.json, config.toml, config.env", "data": "multidatabackend.json", "lycoris": "the LyCORIS file",
    "args": "command line and TOML of a run", "flux": "more of flux_train_network.py", "sd3": "more of sd3_train_network.py",
    "lumina": "more of lumina_train_network.py", "network_args": "--network_args", "dataset": "dataset TOML",
    "lora_easy": "tables of LoRA_Easy_Training_Scripts",
}  # fmt: skip
SHOWN = {"exact": "the same", "converted": "the same, calculated", "nearly": "with a difference", "none": "not here"}
INTRO = """# Coming from another trainer

`lora-loom import FILE` reads a configuration of another trainer and writes a TOML file for `lora-loom train`. Behind each option of that file stands what it was made of. The list
that is printed says of every option whether it was taken exactly, with a difference (and which), is not needed here, or has no counterpart. `lora-loom train` with such a
file says that it has to be imported. In ComfyUI, Loom Dataset (file) takes the datasets of the same files, and Loom Import Settings gives their settings to Loom Train LoRA.

```bash
lora-loom import config/config.json                    # SimpleTuner; writes NAME.toml
lora-loom import train_cat.bat --out cat.toml          # a script with kohya's or musubi-tuner's command
lora-loom import - < pasted.txt                        # a command that was copied from somewhere
```

Files are recognised by what they hold, not by their names:

| trainer | files |
|---|---|
| SimpleTuner | config.json, config.toml, config.env; the multidatabackend.json, the LyCORIS file and the prompt library that they name, or each alone |
| kohya's sd-scripts | a command line (bash, cmd, PowerShell; with variables), the TOML of a run, a dataset TOML, LoRA_Easy_Training_Scripts' TOML |
| musubi-tuner | a command line, the TOML of a run, a dataset TOML |
| ai-toolkit | a job as YAML or JSON |
| OneTrainer | the JSON of a run, of earlier versions too; the concepts and samples that it names |
| diffusion-pipe | the TOML of a run and the dataset TOML that it names |
| accelerate | the YAML that says how processes are started |

Defaults of the other trainer are written out where they differ from ours: kohya's `network_alpha` is 1 where it is left out, SimpleTuner's `lora_dropout` is 0.1. Options that would do nothing
are left out and said. Paths are looked for from the file's folder and the folders above it, because these trainers start them from the folder that they run in. Hub ids become a
folder, with the command that downloads it. Tokens, keys and addresses are never written.

## How much is taken

Options that the tables know, by what becomes of them where they are set:

"""


def page() -> str:
    """The text of docs/coming-from.md."""
    return INTRO + "\n".join([*_counts(), *(line for trainer in BY_OPTION for line in _trainer(trainer))]) + "\n"


def _counts() -> list[str]:
    lines = [
        "| trainer | options | exactly | with a difference | not needed | no counterpart |",
        "|---|---|---|---|---|---|",
    ]
    for trainer, title in TRAINERS.items():
        every = [row.how for row in rows(trainer)]
        exact = every.count("exact") + every.count("converted")
        counts = (len(every), exact, *(every.count(how) for how in ("nearly", "needless", "none")))
        lines.append(f"| {title} | {' | '.join(map(str, counts))} |")
    return lines


def _trainer(trainer: str) -> list[str]:
    lines = ["", f"## {TRAINERS[trainer]}, option by option"]
    parts = dict.fromkeys(row.part for row in rows(trainer))
    for part in parts:
        of = [row for row in rows(trainer) if row.part == part]
        lines += ["", f"### {PARTS[part]}", ""]
        taken = [row for row in of if row.how not in ("needless", "none")]
        if taken:
            lines += ["| option | here | |", "|---|---|---|", *map(_line, taken)]
        for how, title in (("needless", "Not needed here"), ("none", "Without a counterpart")):
            names = [f"`{row.option}`" for row in of if row.how == how]
            if names:
                lines += ["", f"{title}: {', '.join(names)}."]
    return lines


def _line(row: Row) -> str:
    ours = ", ".join(f"`{one}`" for one in row.ours) or "-"
    value = f" = `{row.value}`" if row.value else ""
    text = f"{SHOWN[row.how]}{f': {row.note}' if row.note else ''}".replace("|", "\\|")
    return f"| `{row.option}` | {ours}{value} | {text} |"


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
    print(f"wrote {TARGET}")
