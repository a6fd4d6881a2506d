"""Texts as Qwen-Image and Qwen-Image-Edit read them: Qwen2.5-VL's last hidden state of a template with the prompt in it.

The edit models' template shows the language model the reference images before the prompt. L tokens, D width, N patches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor, nn

from ..encoders import device_of
from ..family import Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

TEMPLATE_HEAD = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial"
    " relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
EDIT_HEAD = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, background),"
    " then explain how the user's text instruction should alter or modify the image. Generate a new image that meets the"
    " user's requirements while maintaining consistency with the original input where appropriate.<|im_end|>\n"
    "<|im_start|>user\n"
)
TEMPLATE_TAIL = "<|im_end|>\n<|im_start|>assistant\n"
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of CLIP's images in [0, 1]; Qwen2.5-VL was trained with them."""


@dataclass(frozen=True, kw_only=True)
class Patches:
    """An image as the vision part of the language model takes it."""

    pixels_NP: Tensor
    grid_13: Tensor
    """Frames, rows and columns of patches."""
    tokens: int
    """How many tokens it becomes."""


class VisionConfig(Protocol):
    """The settings of the vision part, under transformers' names: pixels per patch, patches per token's side, frames per patch."""

    patch_size: int
    spatial_merge_size: int
    temporal_patch_size: int


def template_tokens(tokenizer: "PreTrainedTokenizerBase", head: str = TEMPLATE_HEAD) -> int:
    """Tokens of the template's head, 34 in Qwen's tokenizer; counted as what two prompts have in common."""
    first, second = (tokenizer([f"{head}{letter}"])["input_ids"][0] for letter in "xy")
    return next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)


def patches_of(pixels_CHW: Tensor, config: VisionConfig) -> Patches:
    """Patches of RGB pixels in [-1, 1], in groups of `spatial_merge_size` squared, as `config` (the vision part's) says.

    An image is a film whose first frame is repeated. Sides must be multiples of the patch times the group's side.
    """
    patch, merge, frames = config.patch_size, config.spatial_merge_size, config.temporal_patch_size
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    image = ((pixels_CHW.float() + 1) / 2 - mean) / std
    rows, columns = image.shape[1] // patch, image.shape[2] // patch
    cut = image.reshape(3, rows // merge, merge, patch, columns // merge, merge, patch)
    cut = cut.permute(1, 4, 2, 5, 0, 3, 6).unsqueeze(5).expand(-1, -1, -1, -1, -1, frames, -1, -1)
    return Patches(
        pixels_NP=cut.reshape(rows * columns, -1),
        grid_13=torch.tensor([[1, rows, columns]]),
        tokens=rows * columns // merge**2,
    )


def positions(parts: Sequence[int | Patches], merge: int) -> Tensor:
    """Returns time, row and column of every token of texts, given by their lengths, and of images among them, (3, 1, L).

    Text counts up, an image's tokens keep its time and spread over rows and columns, and what is behind goes on after
    its longer side (Qwen2-VL, arXiv 2409.12191, M-RoPE).
    """
    start, placed = 0, []
    for part in parts:
        if isinstance(part, int):
            placed.append(start + torch.arange(part).expand(3, -1))
            start += part
        else:
            _, rows, columns = (part.grid_13[0] // torch.tensor([1, merge, merge])).tolist()
            row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            placed.append(start + torch.stack([torch.zeros_like(row), row, column]).flatten(1))
            start += max(rows, columns)
    return torch.cat(placed, dim=1).unsqueeze(1)


class QwenText:
    """The language model's last hidden state of the template and the prompt, without the template's head."""

    def __init__(
        self,
        module: nn.Module,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        max_tokens: int,
        head_tokens: int,
        announce: str = "",
    ) -> None:
        """`announce` is what stands before a reference image in the template: "Picture {}: " with its number, from 1, in
        the later edit models."""
        self.module, self.tokenizer, self.head_tokens = module, tokenizer, head_tokens
        self.max_tokens, self.announce = max_tokens, announce

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[Text]:
        """One at a time, so that nothing depends on what it is batched with."""
        texts: list[Text] = []
        for prompt in prompts:
            wording = f"{TEMPLATE_HEAD}{prompt}{TEMPLATE_TAIL}"
            tokens = self.tokenizer(
                [wording], max_length=self.max_tokens + self.head_tokens, truncation=True, return_tensors="pt"
            )
            model = self._model()
            hidden = model.model(
                input_ids=tokens["input_ids"].to(device_of(model)),
                attention_mask=tokens["attention_mask"].to(device_of(model)),
            ).last_hidden_state
            texts.append({"text": hidden[0, self.head_tokens :].float().cpu()})
        return texts

    @torch.no_grad()
    def encode_beside(self, prompts: Sequence[str], images: Sequence[Sequence[Tensor]]) -> list[Text]:
        """Prompts, each with its reference images (3, H, W) in [-1, 1], sides multiples of 28 pixels."""
        return [self._beside(prompt, shown) for prompt, shown in zip(prompts, images, strict=True)]

    def _beside(self, prompt: str, images_CHW: Sequence[Tensor]) -> Text:
        model = self._model()
        config, device = model.config, device_of(model)
        head = self._ids(EDIT_HEAD)
        parts: list[list[int] | Patches] = [head]
        for number, image_CHW in enumerate(images_CHW, start=1):
            parts.append([*self._ids(self.announce.format(number)), config.vision_start_token_id])
            parts += [patches_of(image_CHW, config.vision_config), [config.vision_end_token_id]]
        parts.append([*self._ids(prompt)[: self.max_tokens], *self._ids(TEMPLATE_TAIL)])
        ids_1L = torch.tensor([[token for part in parts for token in _tokens(part, config.image_token_id)]])
        seen = [part for part in parts if isinstance(part, Patches)]
        merge = config.vision_config.spatial_merge_size
        place = positions([part if isinstance(part, Patches) else len(part) for part in parts], merge)
        hidden = model.model(
            input_ids=ids_1L.to(device),
            attention_mask=torch.ones_like(ids_1L, device=device),
            position_ids=place.to(device),
            pixel_values=torch.cat([part.pixels_NP for part in seen]).to(device, next(model.parameters()).dtype),
            image_grid_thw=torch.cat([part.grid_13 for part in seen]).to(device),
        ).last_hidden_state
        return {"text": hidden[0, len(head) :].float().cpu()}

    def _model(self) -> "Qwen2_5_VLForConditionalGeneration":
        return cast("Qwen2_5_VLForConditionalGeneration", self.module)

    def _ids(self, wording: str) -> list[int]:
        if not wording:
            return []
        ids: list[int] = self.tokenizer([wording], add_special_tokens=False)["input_ids"][0]
        return ids


def _tokens(part: list[int] | Patches, image: int) -> list[int]:
    """Returns the tokens of a text;  an image is as many times the token `image`."""
    return [image] * part.tokens if isinstance(part, Patches) else part
