"""Guided losses: what a LoRA for a CFG-distilled model minimises, so that the distillation stays.

A CFG-distilled model predicts at guidance 1 what its teacher predicts at guidance s: p = u + s (c - u), with c the teacher's
prediction for the caption and u its prediction for the empty text. Trained on the plain target v, which is what c should be,
it unlearns the factor s. Both forms ask for c = v instead. The prediction for the empty text is the model's own, with the LoRA, without
gradient (sg), for the same noisy latents, noise level and reference images.

- target form: |p - t|^2 with t = sg(u) + s (v - sg(u)). ostris/ai-toolkit 27a03a91, SDTrainer.py:730-783 ("contrastive guidance");
  kohya-ss/musubi-tuner#1045, docs/minimax_h3.md ("guidance loss").
- output form: |r - v|^2 with r = (p + (s - 1) sg(u)) / s. tdrussell/diffusion-pipe 8f83dbf, models/minimax_h3.py:731-742
  ("CFG-augmented"); modelscope/DiffSynth-Studio#1650.

r - v = (p - t) / s, so the optimum is the same, and the squared loss of the output form and its gradient are those of the target form
over s^2. Adam does not see the factor; clipping, the logged loss and its comparison with other runs do.
"""

from torch import Tensor

from ..choices import GUIDED_LOSSES


def guided_pair(
    form: str, scale: float, predicted: Tensor, target: Tensor, unconditional: Tensor
) -> tuple[Tensor, Tensor]:
    """The two tensors whose difference is minimised, fp32, in the shape of `predicted`. `form` is a name in `choices.GUIDED_LOSSES`.

    Raises ValueError for another name.
    """
    if form not in GUIDED_LOSSES:
        raise ValueError(f"guided loss {form!r}: known are {', '.join(GUIDED_LOSSES)}")
    pair: tuple[Tensor, Tensor] = GUIDED_LOSSES[form].load()(
        predicted.float(), target.float(), unconditional.detach().float(), scale
    )
    return pair


def plain(predicted: Tensor, target: Tensor, unconditional: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """p and v: `unconditional` and `scale` have no part in it."""
    return predicted, target


def target_form(predicted: Tensor, target: Tensor, unconditional: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """p and t = u + s (v - u)."""
    return predicted, unconditional + scale * (target - unconditional)


def output_form(predicted: Tensor, target: Tensor, unconditional: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """r = (p + (s - 1) u) / s and v."""
    return (predicted + (scale - 1) * unconditional) / scale, target
