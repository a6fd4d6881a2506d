"""Strips: every cell stands under its labels, text fits, sizes add up."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from lora_loom.trainer.drawing.fonts import font
from lora_loom.trainer.drawing.text import BEST, wrap
from lora_loom.trainer.sweep.strip import FRAME, MAX_SIDE, MIN_CELL, arrange, draw, panels, split
from lora_loom.trainer.types import Cell


def cell(tmp_path, checkpoint, prompt="a cat", seed=0, guidance="CFG 4", strength=1.0, size=(64, 64), colour=None):
    colour = colour or (
        hash((checkpoint, prompt, seed, guidance, strength)) % 256,
        seed * 40 % 256,
        len(prompt) * 9 % 256,
    )
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.png"
    Image.new("RGB", size, colour).save(path)
    settings = {"sampler": "euler", "scheduler": "normal", "steps": 20, "size": list(size)}
    return Cell(
        id=path.stem,
        image=path,
        checkpoint=checkpoint,
        strength=strength,
        prompt=prompt,
        negative="",
        seed=seed,
        guidance=guidance,
        settings=settings,
    )


def sheet(tmp_path):
    return [
        cell(tmp_path, checkpoint, prompt, seed, strength=0.0 if checkpoint == "base" else 1.0)
        for checkpoint in ("base", "step 50", "step 100")
        for prompt in ("a cat", "a dog")
        for seed in (1, 2)
    ]


def test_axes_go_where_they_are_told(tmp_path):
    [grid] = arrange(sheet(tmp_path), columns=("checkpoint", "strength"), rows=("prompt", "seed"), title="t")
    assert grid.columns == ("base", "step 50", "step 100"), "a strength that does not vary is no label"
    assert grid.rows == ("a cat\nseed 1", "a cat\nseed 2", "a dog\nseed 1", "a dog\nseed 2")
    assert len(grid.cells) == 12
    assert "CFG 4" in grid.legend
    assert "euler, normal, 20 steps, 64 x 64" in grid.legend
    assert "strength 1" in grid.legend or "strength" not in grid.legend


def drawn_words(monkeypatch, grid):
    """[(text, y)] of everything that is written on a page, and the page."""
    words = []
    real = ImageDraw.ImageDraw.text

    def text(self, xy, text, **options):
        words.append((text, xy[1]))
        return real(self, xy, text, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return words, draw(grid)


@pytest.mark.parametrize("name", ["meadow", "library", "Toadstool", "W", "fog"])
def test_a_row_label_that_has_room_is_not_broken(tmp_path, monkeypatch, name):
    cells = [cell(tmp_path, "base", prompt) for prompt in (name, "x")]
    [grid] = arrange(cells, columns=("checkpoint",), rows=("prompt",), title="t")
    words, _ = drawn_words(monkeypatch, grid)
    assert name in [text for text, _ in words]


def test_a_long_row_label_does_not_run_into_the_next_row(tmp_path, monkeypatch):
    prompts = [f"{word} " + "in a garden full of flowers and birds " * 12 for word in ("alpha", "omega")]
    [grid] = arrange(
        [cell(tmp_path, "base", prompt) for prompt in prompts], columns=("checkpoint",), rows=("prompt",), title="t"
    )
    words, page = drawn_words(monkeypatch, grid)
    starts = [next(y for text, y in words if text.startswith(word)) for word in ("alpha", "omega")]
    ends = max(y for text, y in words if y < starts[1])
    assert len({y for _, y in words}) == len(words), "no two lines stand at one height"
    assert starts[0] < ends < starts[1] < page.height


def test_axes_left_out_make_pages(tmp_path):
    grids = arrange(sheet(tmp_path), columns=("checkpoint",), rows=("seed",), title="t")
    assert [(grid.title, grid.caption) for grid in grids] == [("t", "a cat"), ("t", "a dog")]
    assert all(len(grid.cells) == 6 for grid in grids)
    with pytest.raises(KeyError):
        arrange(sheet(tmp_path), columns=("nonsense",), rows=(), title="t")


def test_every_cell_is_drawn_in_its_place(tmp_path):
    """Each picture has its own colour; the page must show them in reading order."""
    cells = [
        cell(tmp_path, f"step {c}", seed=s, colour=(40 + 60 * c, 60 + 100 * s, 10)) for c in range(3) for s in range(2)
    ]
    [grid] = arrange(cells, columns=("checkpoint",), rows=("seed",), title="t")
    page = np.asarray(draw(grid))
    centres = {}
    for c in range(3):
        for s in range(2):
            where = np.argwhere((page == (40 + 60 * c, 60 + 100 * s, 10)).all(-1))
            assert len(where) >= MIN_CELL**2, "small pictures are enlarged"
            centres[c, s] = where.mean(0)
    assert centres[0, 0][1] < centres[1, 0][1] < centres[2, 0][1]
    assert centres[0, 0][0] < centres[0, 1][0]
    assert abs(centres[0, 0][0] - centres[2, 0][0]) < 1


def test_missing_cells_leave_a_frame(tmp_path):
    cells = sheet(tmp_path)[:-1]
    [grid] = arrange(cells, columns=("checkpoint",), rows=("prompt", "seed"), title="t")
    assert (
        draw(grid).size
        == draw(arrange(sheet(tmp_path), columns=("checkpoint",), rows=("prompt", "seed"), title="t")[0]).size
    )


def test_three_panels(tmp_path):
    cells = [
        cell(tmp_path, c, seed=s, guidance=g) for c in ("base", "step 9") for s in (1, 2) for g in ("CFG 4", "APG 4")
    ]
    titles = {("base", "CFG 4"): "Base", ("step 9", "CFG 4"): "LoRA", ("step 9", "APG 4"): "LoRA + APG"}
    grid = panels(cells, titles, title="t")
    assert grid.columns == ("Base", "LoRA", "LoRA + APG")
    assert grid.rows == ("seed 1", "seed 2")
    assert len(grid.cells) == 6
    assert draw(grid).width > 3 * MIN_CELL


@given(
    text=st.text(st.characters(codec="utf-8", exclude_categories=("C",)), max_size=120),
    width=st.integers(60, 400),
    size=st.integers(10, 30),
)
def test_wrapped_lines_fit_and_lose_nothing(text, width, size):
    lines = wrap(text, width, size)
    assert all(font(size).getlength(line) <= width or len(line) == 1 for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_mixed_sizes_fit_the_largest_cell(tmp_path):
    cells = [
        cell(tmp_path, "a", size=(64, 128), colour=(250, 0, 0)),
        cell(tmp_path, "b", size=(128, 64), colour=(0, 0, 250)),
    ]
    [grid] = arrange(cells, columns=("checkpoint", "size"), rows=(), title="t")
    page = np.asarray(draw(grid))
    red, blue = ((page == colour).all(-1).sum() for colour in ((250, 0, 0), (0, 0, 250)))
    assert red > 0
    assert blue > 0


def test_long_titles_and_labels_stay_on_the_page(tmp_path):
    cells = [
        cell(tmp_path, "a checkpoint with a very long name " * 3, prompt="a prompt that goes on " * 8, seed=s)
        for s in (1, 2)
    ]
    [grid] = arrange(cells, columns=("checkpoint",), rows=("prompt", "seed"), title="a title " * 30)
    page = np.asarray(draw(grid))
    assert (page[:, :8] == 255).all(), "nothing touches the left edge"
    assert (page[:, -8:] == 255).all(), "nothing is cut at the right edge"


def test_a_single_strip_has_its_prompt_under_it(tmp_path):
    cells = [cell(tmp_path, f"step {n}", colour=(9, 9, 250)) for n in range(3)]
    [grid] = arrange(cells, columns=("checkpoint",), rows=(), title="t")
    assert grid.caption == "a cat"
    assert "a cat" not in grid.legend
    page = np.asarray(draw(grid))
    below = np.argwhere((page == (9, 9, 250)).all(-1))[:, 0].max() + 1
    assert (page[below:] < 128).any(), "there is text below the pictures"


def test_the_best_cell_is_framed(tmp_path):
    cells = [cell(tmp_path, f"step {n}", colour=(9, 9, 250)) for n in range(3)]
    [grid] = arrange(cells, columns=("checkpoint",), rows=(), title="t", best={cells[1].id})
    assert "framed: recommended by the scores" in grid.legend
    frame = np.argwhere((np.asarray(draw(grid)) == BEST).all(-1))
    middle = (np.asarray(draw(grid)) == (9, 9, 250)).all(-1)
    assert np.ptp(frame[:, 1]) == np.ptp(frame[:, 0])
    assert len(frame) == 4 * FRAME * (np.ptp(frame[:, 0]) + 1 - FRAME)
    assert middle[frame[:, 0].min() + FRAME : frame[:, 0].max() - FRAME, frame[:, 1].min() + FRAME].all()


@pytest.mark.parametrize(("count", "rows", "pages"), [(5, 1, 1), (30, 1, 3), (3, 20, 2), (14, 14, 4)])
def test_wide_and_tall_pages_are_split_and_keep_their_cells(tmp_path, count, rows, pages):
    path = tmp_path / "one.png"
    Image.new("RGB", (640, 640), (1, 2, 3)).save(path)
    first = cell(tmp_path, "x")
    cells = [
        Cell(**{**vars(first), "id": f"{c}-{s}", "checkpoint": f"step {c}", "seed": s, "image": path})
        for c in range(count)
        for s in range(rows)
    ]
    [grid] = arrange(cells, columns=("checkpoint",), rows=("seed",), title="t")
    parts = split(grid)
    assert len(parts) == pages
    assert sorted(place for part in parts for place in part.cells) == sorted(grid.cells)
    assert sum(len(part.cells) for part in parts) == count * rows
    for part in parts:
        size = draw(part).size
        assert max(size) <= MAX_SIDE
        assert size[0] >= len(part.columns) * 640, "pictures keep their size"
    assert parts[0].title == ("t" if pages == 1 else f"t (1 of {pages})")
