"""docs/coming-from.md is made of the tables."""

from scripts.write_import_docs import TARGET, page


def test_the_page_is_current():
    assert TARGET.read_text(encoding="utf-8") == page(), "run python -m scripts.write_import_docs"
