"""python -m scripts.demo_base autoencoder | decoder | denoiser | refine | grow | pack | score, in this order. student is apart."""

from pathlib import Path
from typing import Annotated

import typer

from . import ASSETS, TWO_BLOCKS

WORK, LATENTS = Path(".demo_base"), "latents.safetensors"

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Make the base model of assets/demo.")
Work = Annotated[Path, typer.Option(help="Folder for what is not shipped: full-precision weights, latents.")]


def _note(work: Path, stage: str, **settings: float) -> None:
    """What a stage was made with, for the model card."""
    text = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in settings.items())
    (work / f"{stage}.txt").write_text(text + "\n", encoding="utf-8")


@app.command()
def autoencoder(
    work: Work = WORK, steps: int = 4500, batch: int = 8, side: int = 64, learning_rate: float = 1e-3, seed: int = 0
) -> None:
    """Stage 1: three quarters of an hour on one core with bf16 arithmetic."""
    from .autoencoder import train

    train(work / "vae", steps=steps, batch=batch, side=side, learning_rate=learning_rate, seed=seed)
    _note(work, "autoencoder", steps=steps, batch=batch, side=side, learning_rate=learning_rate, seed=seed)


@app.command()
def decoder(
    work: Work = WORK, steps: int = 1500, batch: int = 8, side: int = 64, learning_rate: float = 5e-4, seed: int = 1
) -> None:
    """Stage 1b: sharpen the decoder alone; may run beside or after stage 2."""
    from .autoencoder import sharpen

    sharpen(work / "vae", steps=steps, batch=batch, side=side, learning_rate=learning_rate, seed=seed)
    _note(work, "decoder", steps=steps, batch=batch, side=side, learning_rate=learning_rate, seed=seed)


@app.command()
def denoiser(
    work: Work = WORK, steps: int = 9000, batch: int = 32, pool: int = 6000, learning_rate: float = 2e-3, seed: int = 0
) -> None:
    """Stage 2: denoiser and text encoder on the latents of stage 1; three quarters of an hour on one core."""
    from .denoiser import train

    train(
        work,
        work / "vae",
        steps=steps,
        batch=batch,
        pool=pool,
        kept=work / LATENTS,
        learning_rate=learning_rate,
        seed=seed,
    )
    _note(work, "denoiser", steps=steps, batch=batch, pool=pool, learning_rate=learning_rate, seed=seed)


@app.command()
def refine(
    work: Work = WORK, steps: int = 6000, batch: int = 32, pool: int = 6000, learning_rate: float = 1e-3, seed: int = 2
) -> None:
    """Stage 2b: go on from stage 2 with a second, lower learning-rate cycle."""
    from .denoiser import train

    target = work / "refined"
    target.mkdir(exist_ok=True)
    train(
        target, work / "vae", steps=steps, batch=batch, pool=pool, kept=work / LATENTS, learning_rate=learning_rate, seed=seed,
        start=work,
    )  # fmt: skip
    _note(work, "refine", steps=steps, batch=batch, pool=pool, learning_rate=learning_rate, seed=seed)


@app.command()
def grow(
    work: Work = WORK,
    start: Path = TWO_BLOCKS,
    steps: int = 8000,
    batch: int = 32,
    pool: int = 6000,
    learning_rate: float = 1e-3,
    seed: int = 3,
) -> None:
    """Stage 2c: a third block and half as many channels again, grown out of the two blocks and trained on; an hour and a quarter on one core."""
    from .denoiser import train

    target = work / "grown"
    target.mkdir(exist_ok=True)
    kept = work / LATENTS
    train(
        target, ASSETS / "vae", steps=steps, batch=batch, pool=pool, kept=kept, learning_rate=learning_rate, seed=seed,
        blocks=3, start=start,
    )  # fmt: skip
    _note(work, "grow", steps=steps, batch=batch, pool=pool, learning_rate=learning_rate, seed=seed)


@app.command()
def pack(work: Work = WORK, trained: str = "grown", assets: Path = ASSETS) -> None:
    """Store the stages in fp16 as a diffusers folder; `--trained refined` the base of two blocks."""
    from .pack import pack as write

    write(work, work / trained, assets)


@app.command()
def score(assets: Path = ASSETS, prompts: int = 64) -> None:
    """Measure the shipped base with the judge; write scores.json beside it."""
    from .pack import measure

    typer.echo(measure(assets, prompts))


@app.command()
def student(
    directory: Path, assets: Path = ASSETS, scale: float = 4.0, steps: int = 500, batch: int = 16, seed: int = 0
) -> None:
    """A student of the shipped base that is distilled at CFG 4, for experiments; a few minutes on one core."""
    from .student import distil

    share = distil(assets, directory, scale=scale, steps=steps, batch=batch, seed=seed)
    typer.echo(f"wrote {directory}; the student's error is {share:.1%} of what guidance changes")


if __name__ == "__main__":
    app()
