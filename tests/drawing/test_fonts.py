"""Writing that the shipped font lacks comes from the system's fonts, letter by letter; without one it is a box, never lost."""

import pytest
from PIL import Image, ImageDraw

from lora_loom.trainer.drawing import fonts
from lora_loom.trainer.drawing.text import wrap, write

SKY = "空"


@pytest.fixture
def block(tmp_path, monkeypatch):
    """A font file whose one letter, SKY, is a block that fills its square; the only font of the system."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 900), (1000, 900), (1000, 0)):
        pen.lineTo(corner)
    pen.closePath()
    built = FontBuilder(1000, isTTF=True)
    built.setupGlyphOrder([".notdef", "sky"])
    built.setupCharacterMap({ord(SKY): "sky"})
    built.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "sky": pen.glyph()})
    built.setupHorizontalMetrics({".notdef": (1000, 0), "sky": (1000, 0)})
    built.setupHorizontalHeader(ascent=900, descent=-100)
    built.setupPost()
    file = tmp_path / "block.ttf"
    built.save(file)
    damaged = tmp_path / "damaged.ttf"
    damaged.write_bytes(file.read_bytes()[:60])
    monkeypatch.setattr(fonts, "system_fonts", lambda: (str(damaged), str(file)))
    fonts._file_for.cache_clear()
    yield file
    fonts._file_for.cache_clear()


def drawn(text):
    page = Image.new("RGB", (200, 60), "white")
    write(ImageDraw.Draw(page), [text], 10, 10, 20, (0, 0, 0))
    return page.convert("L")


def test_a_missing_letter_comes_from_a_font_that_has_it(block):
    parts = fonts.runs(f"blue {SKY}{SKY}!", 20)
    assert [part for _, part in parts] == ["blue ", SKY * 2, "!"]
    assert parts[1][0].path == str(block)
    assert fonts.length(f"a{SKY}", 20) == fonts.length("a", 20) + 20
    blocks = drawn(SKY * 3).point(lambda value: 255 * (value < 128)).getbbox()
    assert blocks[2] - blocks[0] == pytest.approx(60, abs=1)


def test_letters_of_two_fonts_stand_on_one_line(block):
    base = drawn("x").point(lambda value: 255 * (value < 128)).getbbox()[3]
    assert drawn(SKY).point(lambda value: 255 * (value < 128)).getbbox()[3] == pytest.approx(base, abs=1)


def test_lines_are_as_wide_as_they_are_drawn(block):
    lines = wrap(SKY * 17, 100, 20)
    assert lines == [SKY * 5] * 3 + [SKY * 2]


def test_what_nobody_can_write_is_a_box(monkeypatch):
    monkeypatch.setattr(fonts, "system_fonts", tuple)
    fonts._file_for.cache_clear()
    [(face, part)] = fonts.runs(f"a {SKY}", 20)
    assert (face.path, part) == (fonts.font(20).path, f"a {SKY}")
    assert drawn(SKY).getextrema()[0] < 128
    fonts._file_for.cache_clear()


def test_usual_text_opens_no_other_font(monkeypatch):
    monkeypatch.setattr(fonts, "system_fonts", lambda: pytest.fail("the system was searched"))
    assert [part for _, part in fonts.runs("Größe, Ωμέγα, привет, → ·", 20)] == ["Größe, Ωμέγα, привет, → ·"]


@pytest.mark.parametrize("end", ["\r\n", "\r", "\n", "\x85", "\u2028", "\u2029", "\x1c", "\x1d", "\x1e", "\v", "\f"])
def test_every_kind_of_line_end_ends_a_line(end):
    assert wrap(f"a toad{end}on a log", 500, 20) == ["a toad", "on a log"]


def test_any_character_can_be_measured_and_drawn():
    pen = ImageDraw.Draw(Image.new("RGB", (64, 32)))
    for code in (*range(0x250), *range(0x2000, 0x2070), 0xD800, 0xDFFF, 0xFEFF, 0xFFFE, 0xFFFF, 0x10FFFF):
        text = f"a{chr(code)}b"
        assert fonts.length(text, 20) > 0
        write(pen, [text], 0, 0, 20, (0, 0, 0))
