"""What keeps a run from being continued, as a person can read it."""

import pytest

from lora_loom.trainer.runs.changes import changed_sets, in_words

ONE, OTHER = "0123456789abcdef" * 4, "fedcba9876543210" * 4


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"facts.text: {ONE!r} -> {OTHER!r}", "the CLIP is another one"),
        (f"facts.text: '{ONE} beside 384 px' -> '{ONE} beside 1024 px'", "facts.text: beside 384 px -> beside 1024 px"),
        (f"facts.text: '{ONE}' -> '{ONE} beside 384 px'", "facts.text: nothing -> beside 384 px"),
        (
            f"facts.text: '{ONE} beside 384 px' -> {OTHER!r}",
            "the CLIP is another one, beside 384 px -> nothing",
        ),
        (f"facts.init: '' -> {ONE!r}", "network.init_from is another LoRA"),
        ("network.rank: 8 -> 16", "network.rank: 8 -> 16"),
    ],
)
def test_a_digest_is_said_in_words_and_what_stands_beside_it_is_shown(line, said):
    assert in_words(line) == said


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (6, 7, "(6 -> 7 images)"),
        (6, 6, "(images, captions or masks in the folders changed)"),
        (None, 7, "(images, captions or masks in the folders changed)"),
    ],
)
def test_a_run_of_the_graph_says_how_many_images_it_had(before, after, said):
    old, new = ({"cache": {"folder": "x", **({"images": n} if n else {})}} for n in (before, after))
    assert changed_sets(old, new) == [said]
