"""Captions that vary: nothing is invented or lost, every text is known in advance, and the seed decides."""

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_loom.trainer.config.run import DatasetConfig
from lora_loom.trainer.data.sets.captions import (
    PlainCaption,
    RandomCaption,
    caption_at,
    forms_of,
    plain,
    render,
    split_tags,
    variants,
    warming_caption,
    warmup_of,
)
from lora_loom.trainer.types import CaptionForms, Example, Geometry

words = st.text("abcdefgh ", min_size=1, max_size=6).filter(lambda w: w.strip() == w)
tags = st.lists(words, min_size=1, max_size=8, unique=True)
forms = st.builds(
    CaptionForms,
    texts=tags.map(lambda t: (", ".join(t),)),
    before=st.sampled_from(["", "sks"]),
    after=st.sampled_from(["", "the end"]),
    shuffle=st.booleans(),
    keep_tokens=st.integers(0, 4),
    tag_dropout=st.sampled_from([0.0, 0.5]),
)


def made(text, choice=None, **options):
    return render(text, CaptionForms(texts=(text,), **options), choice or PlainCaption())


@given(forms=forms, key=st.integers(0, 1000))
def test_tags_are_only_moved_and_dropped(forms: CaptionForms, key):
    [text] = forms.texts
    before, bare = split_tags(text, ","), CaptionForms(**{**forms.__dict__, "before": "", "after": ""})
    after = split_tags(render(text, bare, RandomCaption(key)), ",")
    assert not Counter(after) - Counter(before), "nothing is invented"
    assert after[: forms.keep_tokens] == before[: forms.keep_tokens], "the first ones stay, and in their order"
    if not forms.tag_dropout:
        assert Counter(after) == Counter(before), "nothing is lost"
    if not forms.shuffle:
        assert after == [tag for tag in before if tag in after], "the order stays"


@given(forms=forms, key=st.integers(0, 1000))
def test_trigger_and_ending_stay_around_everything(forms: CaptionForms, key):
    text = render(forms.texts[0], forms, RandomCaption(key))
    assert text.startswith(forms.before)
    assert text.endswith(forms.after)


@given(forms=forms, key=st.integers(0, 1000))
def test_the_same_place_gives_the_same_text(forms: CaptionForms, key):
    text = forms.texts[0]
    assert render(text, forms, RandomCaption(3, "x", key)) == render(text, forms, RandomCaption(3, "x", key))
    assert render(text, forms, PlainCaption()) == plain(forms)[0]


@given(forms=forms, limit=st.integers(2, 30), seed=st.integers(0, 5))
def test_texts_in_advance(forms: CaptionForms, limit, seed):
    texts, complete = variants(forms, limit, seed)
    assert texts[0] == plain(forms)[0], "the plain form first"
    assert len(texts) <= limit
    assert (texts, complete) == variants(forms, limit, seed)
    if complete:
        assert all(render(forms.texts[0], forms, RandomCaption(key)) in texts for key in range(50))
    elif forms.tag_dropout:
        assert len(texts) == limit
    else:
        assert len(set(texts)) == limit, "another one each time"


def test_every_form_is_found_as_often_as_it_is_likely():
    shuffled = CaptionForms(texts=("a, b, c",), shuffle=True)
    found = forms_of("a, b, c", shuffled, 6)
    assert sorted(found) == ["a, b, c", "a, c, b", "b, a, c", "b, c, a", "c, a, b", "c, b, a"]
    assert forms_of("a, b, c", shuffled, 5) is None
    wild = CaptionForms(texts=("x",), wildcards=True)
    assert forms_of("{a|b} {c|c|d}", wild, 6) == ["a c", "a c", "a d", "b c", "b c", "b d"]
    both = CaptionForms(texts=("x",), wildcards=True, shuffle=True, keep_tokens=1)
    assert sorted(forms_of("{a|b}, c, d", both, 4)) == ["a, c, d", "a, d, c", "b, c, d", "b, d, c"]


def test_too_many_forms_are_not_counted_out():
    """Twenty tags have more orders than could be tried; the answer comes at once."""
    text = ", ".join(f"t{i}" for i in range(20))
    forms = CaptionForms(texts=(text,), shuffle=True)
    texts, complete = variants(forms, 16, 0)
    assert (len(set(texts)), complete) == (16, False)


def test_all_orders_are_equally_likely():
    counts = Counter(made("a, b, c", RandomCaption(0, key), shuffle=True) for key in range(3000))
    assert len(counts) == 6
    assert min(counts.values()) > 400


def test_dropout_has_its_rate_and_spares_what_is_kept():
    texts = [made("a, b, c, d", RandomCaption(0, key), tag_dropout=0.25, keep_tokens=1) for key in range(2000)]
    assert all(text.startswith("a") for text in texts)
    assert sum(len(split_tags(text, ",")) - 1 for text in texts) / 6000 == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a {red|blue} cat", "a red cat"),
        ("{a|{b|c} d} x", "a x"),
        ("{{a|b}}", "{a|b}"),
        ("{one}", "one"),
        ("{a|b", "{a|b"),
        ("a}b", "a}b"),
        ("{|a}", ""),
        ("{" * 50 + "}" * 50, "{" * 25 + "}" * 25),
    ],
)
def test_wildcards(text, expected):
    assert made(text, wildcards=True).strip() == expected
    assert made(text) == text, "off by default: braces are text"


def test_separators():
    options = {"shuffle": True, "keep_separator": "|||"}
    texts = {made("a, b ||| c, d ||| e", RandomCaption(0, key), **options) for key in range(30)}
    assert texts == {"a, b, c, d, e", "a, b, d, c, e"}
    texts = {made("a;;;b, c", RandomCaption(0, key), shuffle=True, secondary_separator=";;;") for key in range(30)}
    assert texts == {"a, b, c", "c, a, b"}, "tied together"
    assert made("b a", RandomCaption(1), shuffle=True, tag_separator=" ") in ("a b", "b a")
    assert made("a. b", shuffle=True, tag_separator=".") == "a. b"


def test_a_new_image_changes_no_text_of_the_others():
    one = CaptionForms(texts=("a, b, c, d, e",), shuffle=True)
    two = CaptionForms(texts=("a, b, c, d, e", "f, g, h, i, j"), shuffle=True)
    assert variants(two, 8, 0)[0][:8] == variants(one, 8, 0)[0]
    assert variants(one, 8, 1)[0] != variants(one, 8, 0)[0]


def test_a_visit_takes_one_of_the_captions_or_makes_one():
    geometry = Geometry(original=(8, 8), resized=(8, 8), crop_left=0, crop_top=0, target=(8, 8))
    forms = CaptionForms(texts=("a, b", "x"), shuffle=True)
    fixed = Example(path="p", digest="d", captions=("one", "two"), geometry=geometry)
    live = Example(path="p", digest="d", captions=("a, b", "x"), geometry=geometry, live=forms)
    assert {caption_at(fixed, 0, "item", i, 0) for i in range(40)} == {"one", "two"}
    assert {caption_at(live, 0, "item", i, 0) for i in range(40)} == {"a, b", "b, a", "x"}
    assert [caption_at(live, 0, "item", i, 0) for i in range(9)] == [
        caption_at(live, 0, "item", i, 0) for i in range(9)
    ]


def test_what_the_keep_separator_parts_into_three():
    """Front, middle, end; a further separator belongs to the end as it stands. Without an end the middle moves alone."""
    options = {"keep_separator": "|||", "tag_dropout": 1.0, "shuffle": True}
    assert made("a, b ||| c, d ||| e, f", RandomCaption(1), **options) == "a, b, e, f"
    assert made("a ||| c, d", RandomCaption(1), **options) == "a"
    assert made("a ||| b ||| c ||| d", RandomCaption(3), keep_separator="|||", shuffle=True) == "a, b, c ||| d"


def test_the_plain_form_drops_nothing():
    assert not PlainCaption().chance(1.0)
    assert made("a, b, c", PlainCaption(), tag_dropout=1.0) == "a, b, c"


def kohyas_tags(flexible, step, steps, least):
    """The formula of sd-scripts' token warm-up."""
    count = math.floor(step * ((len(flexible) - least) / steps)) + least
    return flexible[:count]


@given(st.integers(1, 9), st.integers(1, 30), st.integers(0, 5), st.integers(0, 3))
def test_captions_grow_as_in_sd_scripts(count, steps, least, keep):
    names = [f"t{i}" for i in range(count)]
    config = DatasetConfig(folder="x", token_warmup_step=steps, token_warmup_min=least, keep_tokens=keep)
    texts = CaptionForms(texts=(", ".join(names),), before="sks", keep_tokens=keep)
    geometry = Geometry(original=(8, 8), resized=(8, 8), crop_left=0, crop_top=0, target=(8, 8))
    one = Example(path=None, digest="d", captions=plain(texts), geometry=geometry, warmup=warmup_of(texts, config, 0))
    for step in range(steps):
        wanted = names[:keep] + kohyas_tags(names[keep:], step, steps, least)
        assert warming_caption(one, step, 0, "x") == " ".join(part for part in ("sks", ", ".join(wanted)) if part)
        assert warming_caption(one, step, 0, "x") in one.texts


def test_growing_captions_are_shuffled_and_dropped_too():
    config = DatasetConfig(folder="x", token_warmup_step=10, shuffle_tags=True, tag_dropout=0.2)
    texts = CaptionForms(texts=("a, b, c, d, e", "f, g"), shuffle=True, tag_dropout=0.2)
    geometry = Geometry(original=(8, 8), resized=(8, 8), crop_left=0, crop_top=0, target=(8, 8))
    made, _ = variants(texts, 16, 0)
    cached = Example(path=None, digest="d", captions=made, geometry=geometry, warmup=warmup_of(texts, config, 0))
    live = replace(config, caption_variants=0)
    fresh = replace(cached, captions=plain(texts), live=texts, warmup=warmup_of(texts, live, 0))
    assert fresh.warmup.stages == ()
    for one in (cached, fresh):
        short = [warming_caption(one, 5, 0, key) for key in range(60)]
        assert {tag for text in short for tag in split_tags(text, ",")} <= set("abcfg"), (
            "the first three, the first one"
        )
        assert len(set(short)) > 4
    assert {warming_caption(cached, 5, 0, key) for key in range(60)} <= set(cached.texts)


def test_without_movable_tags_nothing_grows():
    config = DatasetConfig(folder="x", token_warmup_step=10, keep_tokens=2)
    texts = CaptionForms(texts=("a, b",), keep_tokens=2)
    assert warmup_of(texts, config, 0).stages == ((),)
