"""Draws the icon and the banner of the Comfy registry: `python -m scripts.draw_banner` writes them to docs/images.

The mark is plain weave: the frozen base is the warp (cool threads that stand still), the adapter the weft (warm threads
that are woven through it).
"""

from pathlib import Path

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "images"
GROUND, GAP = (22, 25, 34), (13, 15, 21)
WARP = [(84, 120, 196), (111, 153, 232), (137, 183, 255), (111, 153, 232), (84, 120, 196)]
WEFT = [(255, 196, 110), (255, 168, 84), (244, 132, 74), (224, 98, 76), (198, 72, 84)]
SHARP = 4
"""Everything is drawn this much larger and scaled down, which smooths the edges."""


def thread(draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float], colour: tuple[int, int, int]) -> None:
    """One piece of thread with a lit middle and shaded edges; `box` is left, top, right, bottom."""
    left, top, right, bottom = box
    upright = bottom - top > right - left
    width = (right - left) if upright else (bottom - top)
    for inset, light in ((0, 0.62), (0.1, 0.86), (0.24, 1.0), (0.38, 1.12)):
        shade = tuple(min(255, round(part * light)) for part in colour)
        d = inset * width
        draw.rectangle(
            (left + d, top, right - d, bottom) if upright else (left, top + d, right, bottom - d), fill=shade
        )


def weave(size: int) -> Image.Image:
    """The mark on a transparent square of `size` pixels: five threads each way, over and under in turn."""
    side = size * SHARP
    image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    pitch = side / 5.6
    width, first = 0.74 * pitch, (side - 5 * pitch) / 2 + 0.13 * pitch
    at = [first + index * pitch for index in range(5)]
    for x, colour in zip(at, WARP, strict=True):
        thread(draw, (x, 0.02 * side, x + width, 0.98 * side), colour)
    for row, (y, colour) in enumerate(zip(at, WEFT, strict=True)):
        thread(draw, (0.02 * side, y, 0.98 * side, y + width), colour)
        for column, x in enumerate(at):
            if (row + column) % 2:  # here the warp lies on top: a shadow on the weft, then the warp's own piece
                draw.rectangle((x - 0.07 * pitch, y, x + 1.07 * width, y + width), fill=(*GAP, 255))
                thread(draw, (x, y - 0.13 * pitch, x + width, y + width + 0.13 * pitch), WARP[column])
    return image.resize((size, size), Image.Resampling.LANCZOS)


def icon() -> Image.Image:
    """400 x 400: the mark on a dark tile with round corners."""
    size, border = 400, 56
    tile = Image.new("RGBA", (size * SHARP, size * SHARP), (0, 0, 0, 0))
    ImageDraw.Draw(tile).rounded_rectangle((0, 0, size * SHARP - 1, size * SHARP - 1), 84 * SHARP, fill=GROUND)
    tile = tile.resize((size, size), Image.Resampling.LANCZOS)
    tile.alpha_composite(weave(size - 2 * border), (border, border))
    return tile


def banner() -> Image.Image:
    """1680 x 720, the 21:9 of the registry: the mark, the name, and what the pack is for."""
    image = Image.new("RGBA", (1680, 720), GROUND)
    image.alpha_composite(weave(440), (130, 140))
    draw = ImageDraw.Draw(image)
    bold = font_manager.findfont(font_manager.FontProperties(family="DejaVu Sans", weight="bold"))
    plain = font_manager.findfont("DejaVu Sans")
    draw.text((680, 196), "LoRA Loom", font=ImageFont.truetype(bold, 124), fill=(238, 241, 248))
    for line, text in enumerate(
        ("Train LoRAs inside ComfyUI, in the background,", "then see which checkpoint is best.")
    ):
        draw.text((686, 376 + 58 * line), text, font=ImageFont.truetype(plain, 38), fill=(168, 178, 198))
    for index, colour in enumerate(WEFT):
        draw.rounded_rectangle((688 + 92 * index, 540, 688 + 92 * index + 76, 550), 5, fill=colour)
    return image.convert("RGB")


if __name__ == "__main__":
    icon().save(FOLDER / "icon.png", optimize=True)
    banner().save(FOLDER / "banner.png", optimize=True)
    print(f"drew icon.png and banner.png in {FOLDER}")
