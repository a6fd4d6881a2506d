"""The HTML page and the table of a sweep: everything is in them, and nothing in them is read as markup."""

import base64
import csv
import hashlib
import html
import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lora_loom.trainer.sweep import html_page as sheet_page
from lora_loom.trainer.sweep.html_page import inert, to_csv, to_html
from lora_loom.trainer.sweep.run import Sheet, write_tables
from lora_loom.trainer.sweep.strip import arrange
from tests.sweep.test_strip import cell, sheet

EVIL = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)> & \u2028 @@DATA@@ \"'"


def page(cells, title="t", **options):
    return to_html(arrange(cells, columns=("checkpoint",), rows=("prompt", "seed"), title=title, **options), title)


def data_of(text):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found[1])


def test_the_page_holds_every_cell_in_its_place(tmp_path):
    cells = sheet(tmp_path)
    data = data_of(page(cells, best={cells[5].id}))
    [only] = data["pages"]
    assert only["columns"] == ["base", "step 50", "step 100"]
    assert only["rows"][0] == "a cat\nseed 1"
    for row, ids in zip(only["rows"], only["cells"], strict=True):
        for column, cell_id in zip(only["columns"], ids, strict=True):
            recipe = data["cells"][cell_id]["recipe"]
            assert recipe["checkpoint"] == column
            assert f"{recipe['prompt']}\nseed {recipe['seed']}" == row
    assert only["best"] == [cells[5].id]


def test_the_pictures_in_it_are_the_files_bit_for_bit(tmp_path):
    cells = sheet(tmp_path)
    data = data_of(page(cells))
    for one in cells:
        kind, content = data["cells"][one.id]["image"].split(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(content) == one.image.read_bytes()


def test_many_pictures_become_webp_and_the_page_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sheet_page, "LOSSLESS_BYTES", 0)
    data = data_of(page(sheet(tmp_path)))
    first = next(iter(data["cells"].values()))
    image = Image.open(io.BytesIO(base64.b64decode(first["image"].split(",")[1])))
    assert image.format == "WEBP"
    assert "lossless" in data["note"]


def test_it_works_offline_and_runs_nothing_but_its_own_script(tmp_path):
    text = page(sheet(tmp_path))
    assert not re.search(r"(src|href)\s*=", text.split("<script", 1)[0]), "nothing is fetched"
    assert "http" not in text.replace("http-equiv", "")
    [script] = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text
    assert "innerHTML" not in script
    assert "eval" not in script


@pytest.mark.parametrize("where", ["checkpoint", "prompt", "guidance", "title"])
def test_nothing_of_a_sheet_becomes_markup(tmp_path, where):
    values = {"checkpoint": "c", "prompt": "p", "guidance": "g", "title": "t", where: EVIL}
    title = values.pop("title")
    cells = [cell(tmp_path, values["checkpoint"], values["prompt"], seed, values["guidance"]) for seed in (1, 2)]
    text = page(cells, title)
    plain = page([cell(tmp_path, "c", "p", seed, "g") for seed in (1, 2)])
    assert [tag.lower() for tag in re.findall(r"</?[a-zA-Z!][^\s>]*", text)] == [
        tag.lower() for tag in re.findall(r"</?[a-zA-Z!][^\s>]*", plain)
    ]
    data = data_of(text)
    if where == "title":
        assert data["title"] == EVIL
        assert f"<title>{html.escape(EVIL)}</title>" in text
    else:
        assert all(cell_id["recipe"][where] == EVIL for cell_id in data["cells"].values())


@given(text=st.text(max_size=60))
def test_inert_json_reads_back_and_has_no_bracket(text):
    assert json.loads(inert({text: [text]})) == {text: [text]}
    assert not set(inert(text)) & set("<>&\u2028\u2029")


def test_the_table_has_a_line_for_every_cell_and_computes_nothing(tmp_path):
    cells = [cell(tmp_path, "base", "=1+1", 1, strength=-0.5), cell(tmp_path, "a,b", 'say "x"\nnow', 2)]
    lines = list(csv.DictReader(io.StringIO(to_csv(cells))))
    assert [line["prompt"] for line in lines] == ["'=1+1", 'say "x"\nnow']
    assert [line["checkpoint"] for line in lines] == ["base", "a,b"]
    assert [line["strength"] for line in lines] == ["-0.5", "1.0"]
    assert lines[0]["image"] == cells[0].image.name


def test_the_files_lie_beside_the_strip(tmp_path):
    cells = sheet(tmp_path)
    written = write_tables(
        Sheet(folder=tmp_path, cells=tuple(cells), rendered=0), columns=("checkpoint",), rows=("seed",), title="t"
    )
    assert [path.name for path in written] == ["strip.html", "strip.csv", "strip.json"]
    assert len(data_of(written[0].read_text())["pages"]) == 2
    data = json.loads(written[2].read_text())
    assert {cell_id for page in data["pages"] for row in page["cells"] for cell_id in row} == set(data["cells"])
    assert {recipe["image"] for recipe in data["cells"].values()} == {one.image.name for one in cells}
    assert written[1].read_bytes().startswith(b"\xef\xbb\xbfcheckpoint,")
