"""Reference images from sockets: which are shown together, where they are kept, how prompts are read beside them."""

import pytest
import torch

from lora_loom.nodes.host.encoding.edit_prompts import chosen_reading, tokens_beside
from lora_loom.nodes.widgets import EDIT_PROMPTS
from lora_loom.trainer.config.run import SweepConfig
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.families import edit_variants
from lora_loom.trainer.sweep.run import make_axes


def images(*shades):
    return torch.stack([torch.full((8, 12, 3), shade) for shade in shades])


def test_image_n_of_every_socket_or_its_only_one(host):
    kept_references = host("encoding.reference_images").kept_references
    kept = kept_references([images(0.1, 0.5), images(0.9), None])
    assert [len(paths) for paths in kept] == [2, 2]
    assert kept[0][0] != kept[1][0]
    assert kept[0][1] == kept[1][1]
    assert kept_references([images(0.1, 0.5), images(0.9), None]) == kept, "the same images are the same files"
    axes = make_axes(SweepConfig(prompts=("a",), references=kept), (), 0)
    assert [reference.label for reference in axes.references] == [
        "reference 1.png + reference 2 1.png",
        "reference 2.png + reference 2 1.png",
    ]
    assert kept_references([None, None, None]) == ()


@pytest.mark.parametrize(
    ("sockets", "message"),
    [
        ([None, images(0.5), None], "reference is not connected, but reference_2 or reference_3 is"),
        ([images(0.1, 0.2), None, images(0.1, 0.2, 0.3)], "reference has 2 images and another reference input 3"),
    ],
)
def test_sockets_that_do_not_go_together(host, sockets, message):
    with pytest.raises(ConfigError, match=message):
        host("encoding.reference_images").kept_references(sockets)


class QwenImageTokenizer:
    pass


class Clip:
    def __init__(self, tokenizer):
        self.tokenizer, self.asked = tokenizer, []

    def tokenize(self, text, **options):
        self.asked.append((text, options))


@pytest.mark.parametrize(
    ("asked", "tokenizer", "shown", "reading"),
    [
        ("auto", QwenImageTokenizer(), 2, "qwen-image-edit-plus"),
        ("auto", QwenImageTokenizer(), 0, "captions alone"),
        ("auto", object(), 1, "captions alone"),
        ("captions alone", QwenImageTokenizer(), 3, "captions alone"),
        ("qwen-image-edit", QwenImageTokenizer(), 1, "qwen-image-edit"),
    ],
)
def test_how_prompts_are_read(asked, tokenizer, shown, reading):
    assert chosen_reading(asked, Clip(tokenizer), shown) == reading


def test_the_choices_of_the_form_are_the_edit_models_of_the_families():
    """The form is made before torch is loaded, so it holds the names by itself."""
    assert EDIT_PROMPTS[0] == ["auto", "captions alone", *edit_variants()]


@pytest.mark.parametrize(
    ("asked", "tokenizer", "shown", "message"),
    [
        ("qwen-image-edit", object(), 1, r"this text encoder \(object\) takes no images"),
        ("qwen-image-edit", QwenImageTokenizer(), 0, "there are no reference images"),
        (
            "qwen-image-edit",
            QwenImageTokenizer(),
            2,
            "a prompt has 2 reference images, and this model accepts 1 at most",
        ),
        ("qwen-image-edi", QwenImageTokenizer(), 1, "did you mean 'qwen-image-edit'"),
    ],
)
def test_readings_that_cannot_be(asked, tokenizer, shown, message):
    with pytest.raises(ConfigError, match=message):
        chosen_reading(asked, Clip(tokenizer), shown)


def test_pictures_are_announced_by_number():
    clip, pictures = Clip(QwenImageTokenizer()), [torch.zeros(3, 28, 56), torch.ones(3, 28, 28)]
    tokens_beside(clip, "qwen-image-edit-plus", "a cat", pictures)
    [(text, options)] = clip.asked
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    assert text == f"Picture 1: {picture}Picture 2: {picture}a cat"
    assert [tuple(image.shape) for image in options["images"]] == [(1, 28, 56, 3), (1, 28, 28, 3)]
    assert (options["images"][0] == 0.5).all()
    assert (options["images"][1] == 1.0).all()
