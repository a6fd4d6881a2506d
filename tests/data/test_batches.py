"""Batches by position: each image as often as it repeats, one bucket per batch, nothing dropped, nothing remembered."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_loom.trainer.data.batches import CachedBatches, Singles
from lora_loom.trainer.data.cache.keys import views
from lora_loom.trainer.data.cache.store import Cache, text_key
from lora_loom.trainer.data.order import Draw, Plan, make_plan
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.types import CaptionForms, EncoderIdentity, Example, Geometry

IDENTITY = EncoderIdentity(vae="vae", text="text")


def example(number, width=64, **options):
    geometry = Geometry(original=(width, 64), resized=(width, 64), crop_left=0, crop_top=0, target=(width, 64))
    return Example(
        path=Path(f"{number}.png"), digest=f"d{number}", captions=(f"caption {number}",), geometry=geometry, **options
    )


plans = st.builds(
    lambda repeats, widths, batch, seed: make_plan(
        [example(i, w, repeats=r) for i, (r, w) in enumerate(zip(repeats, widths, strict=False))], batch, seed
    ),
    repeats=st.lists(st.integers(1, 4), min_size=4, max_size=12),
    widths=st.lists(st.sampled_from([64, 96, 128]), min_size=4, max_size=12),
    batch=st.integers(1, 4),
    seed=st.integers(0, 1000),
)


@given(plan=plans, epoch=st.integers(0, 3))
def test_an_epoch_sees_each_example_as_often_as_it_repeats(plan: Plan, epoch):
    seen = Counter()
    for position in range(epoch * plan.per_epoch, (epoch + 1) * plan.per_epoch):
        batch = plan.at(position)
        assert 1 <= len(batch) <= plan.batch_size
        [bucket] = [b for b in plan.buckets if batch[0].number in b]
        assert {draw.number for draw in batch} <= set(bucket), "one bucket per batch"
        seen.update(batch)
    assert max(seen.values()) == 1, "no draw twice"
    times = Counter(number for bucket in plan.buckets for number in bucket)
    assert {(number, turn) for number, _, turn in seen} == {(n, turn) for n in times for turn in range(times[n])}
    assert {draw.epoch for draw in seen} == {epoch}


@given(plan=plans)
def test_positions_have_no_memory(plan: Plan):
    there = [plan.at(position) for position in range(12)]
    back = [plan.at(position) for position in reversed(range(12))]
    assert there == back[::-1]


def test_epochs_and_seeds_differ():
    examples = [example(i) for i in range(12)]
    plan, other = make_plan(examples, 3, 0), make_plan(examples, 3, 1)
    first, second = ([plan.at(e * plan.per_epoch + i) for i in range(4)] for e in (0, 1))
    assert first != second
    assert first != [other.at(i) for i in range(4)]


def test_last_partial_batches_stay():
    plan = make_plan([example(0), example(1), example(2), example(3, 96)], 2, 0)
    assert sorted(len(plan.at(i)) for i in range(plan.per_epoch)) == [1, 1, 2]


def test_a_batch_larger_than_the_set():
    with pytest.raises(
        ConfigError, match=r"batch_size = 8: the dataset gives only 3 images per epoch; use at most 3, or raise"
    ):
        make_plan([example(i) for i in range(3)], 8, 0)


@pytest.fixture
def batches(tmp_path):
    def make(examples, batch_size, seed=0, masks=None):
        cache = Cache(tmp_path)
        items = {}
        for number, one in enumerate(examples):
            for view in views(one):
                fill = -float(number + 1) if view.geometry.flip else float(number + 1)
                items[view.key(IDENTITY.vae)] = {"latents": torch.full((4, 8, one.geometry.target[0] // 8), fill)}
            for caption in one.captions:
                items[text_key(caption, IDENTITY.text)] = {"text": torch.full((3, 2), float(number + 1))}
        items[text_key("", IDENTITY.text)] = {"text": torch.zeros(3, 2)}
        for number, value in (masks or {}).items():
            items[views(examples[number])[0].key(IDENTITY.vae)]["mask"] = torch.full((1, 8, 8), value)
        cache.put(items)
        return CachedBatches(
            examples,
            make_plan(examples, batch_size, seed),
            cache,
            IDENTITY.vae,
            normalise=lambda raw: raw * 10,
            condition=lambda picks: {
                "text": torch.stack([cache.get(text_key(p.caption, "text"))["text"] for p in picks])
            },
            device=torch.device("cpu"),
        )

    return make


def test_latents_and_captions_stay_together(batches):
    made = batches([example(i) for i in range(6)], 3)
    for position in range(8):
        batch = made.at(position)
        assert batch.size == made.size(position) == 3
        assert torch.equal(batch.latents_BCHW[:, 0, 0, 0] / 10, batch.conditioning["text"][:, 0, 0])


def test_caption_dropout_uses_the_empty_prompt_at_its_rate(batches):
    made = batches([example(i, caption_dropout=0.3) for i in range(8)], 8)
    dropped = [(made.at(p).conditioning["text"][:, 0, 0] == 0).sum().item() for p in range(100)]
    assert sum(dropped) / 800 == pytest.approx(0.3, abs=0.05)
    assert dropped == [(made.at(p).conditioning["text"][:, 0, 0] == 0).sum().item() for p in range(100)]


def test_flips_are_half_of_the_visits(batches):
    made = batches([example(i, may_flip=True) for i in range(8)], 8)
    flipped = sum((made.at(p).latents_BCHW[:, 0, 0, 0] < 0).sum().item() for p in range(100))
    assert flipped / 800 == pytest.approx(0.5, abs=0.06)


def test_several_captions_take_turns(batches):
    one = example(0)
    two = Example(**{**one.__dict__, "captions": ("x", "y", "z")})
    made = batches([two], 1)
    picks = Counter(made.pick(Draw(0, epoch, 0)).caption for epoch in range(300))
    assert set(picks) == {"x", "y", "z"}
    assert min(picks.values()) > 60


@given(seed=st.integers(0, 1000), sizes=st.tuples(st.integers(1, 6), st.integers(1, 6)), more=st.integers(0, 3))
def test_what_is_seen_in_an_epoch_depends_on_the_example_alone(seed, sizes, more):
    """Neither on the batch size, nor on its place in the folder, nor on which others are there."""

    def seen(numbers, size):
        forms = CaptionForms(texts=("a, b, c, {d|e|f}", "g, h, i"), wildcards=True, shuffle=True, tag_dropout=0.2)
        options = {"repeats": 2, "may_flip": True, "caption_dropout": 0.2, "live": forms}
        plan = make_plan(examples := [example(i, **options) for i in numbers], min(size, 2 * len(numbers)), seed)
        made = CachedBatches(examples, plan, None, "vae", normalise=None, condition=None, device=None)
        draws = [draw for position in range(2 * plan.per_epoch) for draw in plan.at(position)]
        picks = [(draw, made.pick(draw)) for draw in draws]
        return {
            (examples[draw.number].digest, draw.epoch, draw.turn): (pick.caption, pick.view.geometry.flip)
            for draw, pick in picks
        }

    one, other = seen([0, 1, 2, 3], sizes[0]), seen([*range(4, 4 + more), 3, 1, 0, 2], sizes[1])
    assert one == {key: other[key] for key in one}
    assert len(set(one.values())) > 4


def test_weights_and_masks(batches, tmp_path):
    made = batches([example(0, weight=0.5), example(1)], 2)
    batch = made.at(0)
    assert sorted(batch.weight_B.tolist()) == [0.5, 1.0]
    assert batch.mask_B1HW is None
    mask = batches([example(2), example(3)], 2, masks={0: 0.25}).at(0).mask_B1HW
    assert sorted(mask.flatten(1).mean(1).tolist()) == [0.25, 1.0], "images without a mask train whole"


def test_samples_taught_by_the_base_are_marked(batches):
    made = batches([example(0), example(1, role="regularisation", teacher="base")], 2)
    batch = made.at(0)
    assert [name == "1.png" for name in batch.names] == batch.by_base_B.tolist()
    assert batches([example(0), example(1)], 2).at(0).by_base_B is None


def test_an_example_alone_is_upright_with_its_first_caption(batches):
    """As the validation loss measures it: neither mirrored nor in another wording, whatever may vary in training."""
    many = replace(example(0), captions=("caption 0", "caption 2"), may_flip=True, caption_dropout=1.0)
    singles = Singles(batches([example(1), many, example(2)], 1))
    assert len(singles) == 3
    assert singles[1].latents_BCHW.unique().item() == 20.0
    assert singles[1].conditioning["text"].shape == (1, 3, 2)
    assert [one.names for one in singles[0:2]] == [("1.png",), ("0.png",)]
    assert singles[1].conditioning["text"].unique().item() == 2.0
    assert singles[-1].names == ("2.png",)
    with pytest.raises(IndexError):
        singles[3]


def test_the_mask_of_a_lone_sample(batches):
    made = batches([example(0)], 1, masks={0: 0.25})
    mask = made.at(0).mask_B1HW
    assert mask.shape == (1, 1, 8, 8)
    assert mask.unique().item() == 0.25
