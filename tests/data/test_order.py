"""Sets that join, leave or are drawn in part: every batch is still a function of its position."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_loom.nodes.sockets.values import example_from_json, example_to_json
from lora_loom.trainer.config.run import DataConfig, DatasetConfig
from lora_loom.trainer.data.batches import CachedBatches
from lora_loom.trainer.data.images.index import FileIndex
from lora_loom.trainer.data.order import Phases, Plan, make_plan
from lora_loom.trainer.data.report import make_report
from lora_loom.trainer.data.sets.dataset import build_dataset
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.types import Example, Geometry, Presence
from tests.conftest import pictures

PRESENCE = st.builds(
    Presence,
    start_step=st.integers(0, 12),
    end_step=st.sampled_from([0, 13, 20]),
    start_epoch=st.integers(0, 3),
    end_epoch=st.sampled_from([0, 4, 5]),
    probability=st.sampled_from([0.3, 0.5, 1.0]),
)


def example(number, presence=None, **options):
    geometry = Geometry(original=(64, 64), resized=(64, 64), crop_left=0, crop_top=0, target=(64, 64))
    return Example(
        path=Path(f"{number}.png"),
        digest=f"d{number}",
        captions=(f"caption {number}",),
        geometry=geometry,
        presence=presence,
        **options,
    )


def mixed(presence, of_one=3, of_other=4):
    return [example(i) for i in range(of_one)] + [example(i + of_one, presence) for i in range(of_other)]


@given(presence=PRESENCE, batch=st.integers(1, 3), per_step=st.integers(1, 3), seed=st.integers(0, 99))
def test_a_set_is_drawn_when_it_says_so_and_never_else(presence, batch, per_step, seed):
    examples = mixed(presence)
    plan = make_plan(examples, batch, seed, per_step)
    there = [plan.at(position) for position in range(60)]
    assert there == [plan.at(position) for position in reversed(range(60))][::-1], "positions have no memory"
    for position, draws in enumerate(there):
        for draw in draws:
            if draw.number >= 3:
                assert presence.at(position // per_step, draw.epoch)
    epochs = [draws[0].epoch for draws in there]
    assert all(later in (now, now + 1) for now, later in pairwise(epochs)), "epochs follow each other"
    whole = [epoch for epoch in set(epochs) if epoch not in (epochs[-1],)]
    for epoch in whole:
        uses = Counter(draw for draws in there for draw in draws if draw.epoch == epoch)
        assert max(uses.values()) == 1, "no draw twice in an epoch"


def test_from_a_step_and_to_a_step_on():
    plan = make_plan(mixed(Presence(start_step=4, end_step=7)), 1, 0, per_step=2)
    steps = {position // 2 + 1 for position in range(60) if plan.at(position)[0].number >= 3}
    assert steps <= {5, 6, 7}
    assert steps, "three steps of two batches of seven images"
    first = [draw.number for position in range(8) for draw in plan.at(position)]
    assert set(first) == {0, 1, 2}, "before that, epochs have the other set alone"


def test_from_an_epoch_and_to_an_epoch_on():
    plan = make_plan(mixed(Presence(start_epoch=2, end_epoch=3)), 1, 0)
    sizes = Counter(plan.at(position)[0].epoch for position in range(40))
    assert [sizes[epoch] for epoch in range(5)] == [3, 7, 7, 3, 3]
    assert [plan.batches_in(epochs) for epochs in (1, 2, 3, 4, 2.5)] == [3, 10, 17, 20, 13.5]
    for either in (plan, make_plan(mixed(Presence()), 2, 0)):
        for epochs in (0, 0.5, 1, 2, 2.5, 4, 9):
            assert either.epochs_in(either.batches_in(epochs)) == pytest.approx(epochs)


def test_a_share_of_a_set_is_others_in_each_epoch():
    examples = mixed(Presence(probability=0.5), 2, 8)
    plan = make_plan(examples, 2, 0)
    assert isinstance(plan, Plan)
    assert plan.per_epoch == 3
    seen = [
        {draw.number for i in range(3) for draw in plan.at(3 * epoch + i) if draw.number >= 2} for epoch in range(20)
    ]
    assert {len(numbers) for numbers in seen} == {4}
    assert len({frozenset(numbers) for numbers in seen}) > 5
    assert set.union(*seen) == set(range(2, 10))


def test_without_such_options_the_order_is_what_it_was():
    examples = mixed(None)
    assert make_plan(examples, 2, 5) == Plan((tuple(range(7)),), 2, 5)
    assert isinstance(make_plan(mixed(Presence(end_step=9)), 2, 5), Phases)


def test_a_part_of_the_run_without_any_set_is_refused():
    with pytest.raises(
        ConfigError, match=r"no set is trained on from step 5 \(epoch 3\); let one of them begin earlier"
    ):
        make_plan([example(i, Presence(end_step=4)) for i in range(3)], 2, 0)
    with pytest.raises(ConfigError, match="no set is trained on from step 1"):
        make_plan([example(i, Presence(start_epoch=2)) for i in range(3)], 1, 0)
    with pytest.raises(ConfigError, match="gives only 3 images per epoch"):
        make_plan(mixed(Presence(start_step=4)), 5, 0)


def test_every_so_many_epochs_one_is_without_captions():
    examples = [example(i, caption_dropout_every=3) for i in range(4)]
    plan = make_plan(examples, 2, 0)
    made = CachedBatches(examples, plan, None, "vae", normalise=None, condition=None, device=None)
    captions = [{bool(made.pick(draw).caption) for i in range(2) for draw in plan.at(2 * e + i)} for e in range(6)]
    assert captions == [{True}, {True}, {False}, {True}, {True}, {False}]


def build(tmp_path, **options):
    sets = [DatasetConfig(folder=str(pictures()), **options)]
    return build_dataset(sets, DataConfig(resolution=64), 16, 0, FileIndex(tmp_path / "files.json"), lambda *p: None)


COURSE = {"start_step": 3, "end_epoch": 9, "probability": 0.5, "max_num_samples": 4, "token_warmup_step": 6}


def test_options_reach_the_examples_and_the_report(tmp_path):
    data = build(tmp_path, **COURSE, caption_dropout_every_n_epochs=2)
    assert len(data.examples) == 4
    assert {one.presence for one in data.examples} == {Presence(start_step=3, end_epoch=9, probability=0.5)}
    assert {one.caption_dropout_every for one in data.examples} == {2}
    text = make_report(data).text()
    assert "4 of 6 images, drawn by the seed (max_num_samples), 50% of its uses in each epoch" in text
    assert "start_step = 3, end_epoch = 9" in text
    assert make_report(data).per_epoch == sum(max(1, round(b.images * 0.5)) for b in make_report(data).buckets)
    assert [example_from_json(example_to_json(one)) for one in data.examples] == list(data.examples)
    again = build(tmp_path, **COURSE, caption_dropout_every_n_epochs=2)
    assert again.digest == data.digest != build(tmp_path, **{**COURSE, "start_step": 4}).digest
    more = build(tmp_path, **{**COURSE, "max_num_samples": 5})
    assert {one.path for one in data.examples} < {one.path for one in more.examples}


def test_validation_images_never_change(tmp_path):
    data = build(tmp_path, **{**COURSE, "max_num_samples": 0}, random_hue=9.0)
    held = build_dataset(
        [DatasetConfig(folder=str(pictures()), random_hue=9.0, start_step=2)],
        DataConfig(resolution=64, validation_split=0.5),
        16,
        0,
        FileIndex(tmp_path / "files.json"),
        lambda *p: None,
    ).held_out
    assert {(one.variants, one.presence, one.warmup) for one in held} == {((), None, None)}
    assert data.examples[0].variants


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"probability": 0.0}, "probability = 0.0: use a number above 0, up to 1"),
        ({"probability": 1.5}, "probability = 1.5"),
        ({"start_step": 5, "end_step": 5}, "end_step = 5: it must be at least 6, since start_step = 5"),
        ({"start_epoch": 3, "end_epoch": 2}, "end_epoch = 2: it must be at least 3, since start_epoch = 3"),
        ({"start_step": -1}, "start_step = -1: use 0 or more"),
        ({"max_num_samples": -1}, "max_num_samples = -1"),
        ({"caption_dropout_every_n_epochs": 1}, "use 2 or more: with 1 no caption is trained"),
    ],
)
def test_what_cannot_be_is_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        DatasetConfig(folder="x", **options)


def test_a_set_that_ends_with_the_run_changes_nothing():
    """As many images as batches, so that the orders can be compared."""
    plain = make_plan(mixed(None), 1, 3)
    ended = make_plan(
        [replace(one, presence=Presence(end_epoch=9)) if one.digest == "d0" else one for one in mixed(None)], 1, 3
    )
    assert [plain.at(p) for p in range(40)] == [ended.at(p) for p in range(40)]
