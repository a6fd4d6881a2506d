"""Every node has a name in every language of ComfyUI's page, from one table."""

import re

import pytest

from lora_loom.nodes import NODE_CLASS_MAPPINGS
from scripts.locale_inputs import DESCRIPTIONS, INPUTS
from scripts.locale_page import PAGE
from scripts.locale_texts import COMMANDS, LANGUAGES, NODES, SETTINGS
from scripts.write_locales import FOLDER, TEXTS, files, page_files

WEB = FOLDER.parent / "web" / "workbench"


def test_the_files_are_made_of_the_present_texts():
    found = {path.relative_to(FOLDER).as_posix(): path.read_text(encoding="utf-8") for path in FOLDER.rglob("*.json")}
    assert found == files(), "run python -m scripts.write_locales"


def test_no_name_is_missing_and_none_is_left_over():
    assert set(NODES) == set(NODE_CLASS_MAPPINGS)
    assert all(
        len(forms) == len(LANGUAGES) and all(forms) for table in (NODES, COMMANDS, SETTINGS) for forms in table.values()
    )


@pytest.mark.parametrize("name", sorted(INPUTS))
def test_a_node_that_is_translated_has_every_input_in_every_language(name):
    groups = NODE_CLASS_MAPPINGS[name].INPUT_TYPES()
    inputs = {**groups.get("required", {}), **groups.get("optional", {})}
    assert set(INPUTS[name]) == set(inputs), "add the input's texts to scripts/locale_inputs.py"
    assert name in DESCRIPTIONS
    for key, forms in INPUTS[name].items():
        assert len(forms) == len(LANGUAGES)
        for form in forms:
            label, _, tooltip = form.partition("|")
            assert label, key
            assert tooltip, key
    for place, language in enumerate(LANGUAGES):
        labels = [forms[place].partition("|")[0] for forms in INPUTS[name].values()]
        assert len(set(labels)) == len(labels), f"two inputs have one name in {language}"


def test_values_that_a_tooltip_names_are_those_of_the_input():
    """A translation names the same values, numbers and files as the English text."""
    for name, texts in INPUTS.items():
        groups = NODE_CLASS_MAPPINGS[name].INPUT_TYPES()
        inputs = {**groups.get("required", {}), **groups.get("optional", {})}
        for key, forms in texts.items():
            kind, options = inputs[key]
            values = [value for value in kind if f"{value}:" in options["tooltip"]] if isinstance(kind, list) else []
            for form in forms:
                assert all(value in form for value in values), (name, key)


@pytest.mark.parametrize(("file", "table"), [("commands.js", COMMANDS), ("settings.js", SETTINGS)])
def test_commands_and_settings_are_those_of_the_page(file, table):
    source = (WEB / file).read_text(encoding="utf-8")
    assert set(table) == set(re.findall(r'"(lora_loom\.\w+)"', source))


def test_two_nodes_have_two_names():
    for place in range(len(LANGUAGES)):
        names = [forms[place] for forms in NODES.values()]
        assert len(set(names)) == len(names)


SOURCES = {path.name: path.read_text(encoding="utf-8") for path in (FOLDER.parent / "web").rglob("*.js")}
CALL = re.compile(r'\bt\(\s*"((?:[^"\\]|\\.)*)"')
"""A text of the page that is translated."""
RAW = re.compile(
    r"""make(?:Button|Link)\((?:[^,"]|\([^)]*\))*, "[^"]*[a-z]{2}|\bmake\("\w+", "[^"]*", [\w.]+, "[^"]*[a-z]{2}"""
    r"""|aria-label", "[^"]*[a-z]{2}|(?:placeholder|textContent|title|alt)(?::| =) "[^"]*[a-z]{2}|new Error\("[^"]*[a-z]{2}"""
)
"""A text that a person reads and that is not."""
SAME_EVERYWHERE = {"LoRA Loom", "loom-note"}


def test_every_text_of_the_page_is_in_the_table_and_no_other_is():
    used = {text for source in SOURCES.values() for text in CALL.findall(source)}
    assert used == set(PAGE), "add the text to scripts/locale_page.py, in four languages"
    assert len(used) > 250


def test_no_text_goes_into_the_page_past_the_table():
    for name, source in SOURCES.items():
        found = [match for match in RAW.findall(source) if not any(one in match for one in SAME_EVERYWHERE)]
        assert found == [], name


def test_a_translation_has_the_same_words_in_braces_and_the_same_space_at_its_ends():
    for text, forms in PAGE.items():
        assert len(forms) == len(LANGUAGES), text
        for form in forms:
            assert form.strip(), text
            assert sorted(re.findall(r"\{\w+\}", form)) == sorted(re.findall(r"\{\w+\}", text)), form
            assert (form[-1] == " ") == (text[-1] == " "), form


def test_the_tables_of_the_page_are_made_of_the_present_texts():
    found = {path.name: path.read_text(encoding="utf-8") for path in TEXTS.glob("*.json")}
    assert found == page_files(), "run python -m scripts.write_locales"
    assert set(found) == {f"{language}.json" for language in LANGUAGES}
    assert set(re.findall(r'"(\w\w)"', re.search(r"LANGUAGES = \[(.*)\]", SOURCES["texts.js"])[1])) == set(LANGUAGES)
