"""Words of the demo world as tokens, and a small CLIP text model for them."""

import re
from typing import Any

from transformers import CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedTokenizerFast

from lora_loom.trainer.demo.scenes import BACKGROUNDS, COLOURS, CONCEPT, COUNTS, POSITIONS, SHAPES, SIZE_WORDS

MAX_TOKENS = 20
WIDTH = 64
SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")
SPARE = (
    CONCEPT, "robot", "fish", "house", "tree", "flower", "boat", "cat", "dog", "bird", "snowman", "lighthouse", "balloon",
    "sks", "zib", "wug", "loom", "style", "photo", "picture", "painting", "and", "with", "of", "one", "big", "tiny",
)  # fmt: skip
"""Words without a meaning in training, where they turn up as noise: free for a LoRA to give them one."""


def vocabulary() -> list[str]:
    plurals = [f"{shape}{'es' if shape == 'cross' else 's'}" for shape in SHAPES]
    phrases = [*(b.phrase for b in BACKGROUNDS.values()), *(phrase for phrase, _ in POSITIONS.values())]
    words = [*COUNTS, *SIZE_WORDS, *COLOURS, *SHAPES, *plurals, *SPARE, *re.findall(r"\w+", " ".join(phrases))]
    return [*SPECIAL, *sorted({word for word in words if word})]


def new_tokenizer() -> PreTrainedTokenizerFast:
    """Lower-case words; anything else is <unk>."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary())}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unk>",
        model_max_length=MAX_TOKENS,
    )


def new_text_encoder(tokenizer: PreTrainedTokenizerFast) -> Any:
    """Three layers, of which SD3 reads the one before the last."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=WIDTH,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return CLIPTextModelWithProjection(config)
