"""What the engine says, in the words of a graph: its options are inputs of nodes there, and its commands are nodes.

The engine knows no front end: its texts name options as a TOML file has them, and the command line's own remedies. Every text
that leaves for ComfyUI's page goes through `in_the_graph`. `tests/nodes/test_words.py` reads all texts of the engine for a
command that has no words here, and looks for each input in its node.
"""

import re
from typing import TypeVar

from ..trainer.errors import LoomError

INPUTS = {
    "training": {
        "Loom Train LoRA": "steps batch_size gradient_accumulation_steps seed save_every keep_checkpoints epochs save_every_epochs keep_loras keep_best ema_decay",
        "Loom Memory": "precision",
    },
    "optimizer": {"Loom Optimizer": "name weight_decay max_grad_norm options", "Loom Train LoRA": "learning_rate"},
    "schedule": {
        "Loom Optimizer": "warmup cycles power min_lr_ratio cycle_warmup cycle_decay cycle_growth decay timescale"
    },
    "network": {
        "Loom Network": "kind alpha rslora target_modules exclude_modules dropout lokr_factor lokr_factors lokr_full_matrix lokr_decompose_both conv_rank conv_alpha module_ranks module_alphas module_rates loraplus_lr_ratio rank_dropout module_dropout scale_weight_norms tucker dylora_unit init init_from train_norm",
        "Loom Train LoRA": "rank",
    },
    "objective": {
        "Loom Objective": "timestep_sampling logit_mean logit_std mode_scale shift min_timestep max_timestep timestep_spread loss huber_delta min_snr_gamma noise_offset masked_loss multires_noise_iterations multires_noise_discount ip_noise_gamma soft_min_snr debiased_loss scale_v_loss huber_schedule unmasked_probability unmasked_weight zero_terminal_snr guidance_scale guided_loss guided_scale scheduled_sampling_max_step_offset scheduled_sampling_probability scheduled_sampling_ramp_steps scheduled_sampling_strategy tread_routes timestep_list"
    },
    "memory": {
        "Loom Memory": "gradient_checkpointing prefetch base vram_gb checkpoint checkpoint_offload on_oom compile",
        "Loom Cache": "vae_batch_size vae_tiling",
    },
    "model": {"Loom Memory": "quantize matmul"},
    "validation": {
        "Loom Validation": "timesteps patience doctor prompts prompt_library sample_every negative_prompt seed sample_steps sampler scheduler guidance_rescale skip_layers skip_layer_scale skip_layer_start skip_layer_end clip_score sizes guidance_scale model_guidance width height same_seed"
    },
    "data": {
        "Loom Cache": "resolution buckets bucket_step min_side max_side upscale strict validation_split",
    },
    "dataset": {
        "Loom Dataset": "folder recursive layout captions caption metadata only_listed caption_extension empty_captions caption_field file_field caption_lines trigger prefix suffix wildcards shuffle_tags keep_tokens keep_separator tag_separator secondary_separator tag_dropout caption_variants repeats role weight teacher class_prompt teacher_weight teacher_share slider_positive slider_negative slider_scale strength caption_dropout caption_dropout_every_n_epochs token_warmup_step token_warmup_min max_num_samples probability start_step end_step start_epoch end_epoch timestep_range flip random_brightness random_contrast random_saturation random_hue random_rotation image_variants masks references background resolutions buckets aspects crop min_size max_size min_aspect max_aspect downsample size_metric aspect_choice"
    },
    "output": {"Loom Validation": "report_to tracker_project tracker_run"},
    "sweep": {
        "Loom Sweep": "prompts prompt_library negative_prompt wildcards seeds strengths guidance width height steps sampler scheduler sizes step_counts samplers model_guidance max_cells"
    },
}
"""{table of the configuration: {title of a node: options that it shows under the same name}}."""
RENAMED = {
    "schedule.kind": "schedule in Loom Optimizer",
    "schedule.options": "schedule_options in Loom Optimizer",
    "objective.beta": "beta_a, beta_b in Loom Objective",
    "training.goal": "length in Loom Train LoRA",
    "text.learning_rate": "text_learning_rate in Loom Train LoRA",
    "text.learning_rate_2": "text_learning_rate_2 in Loom Train LoRA",
    "text.alone": "text_alone in Loom Train LoRA",
    "model.base_lora": "lora in Loom Base LoRA",
    "output.dtype": "lora_dtype in Loom Train LoRA",
    "validation.every": "measure_every in Loom Validation",
    "validation.model": "preview_model in Loom Validation",
    "validation.references": "reference in Loom Validation",
    "sweep.references": "reference in Loom Sweep",
    "sweep.base": "include_base in Loom Checkpoints",
}
"""Options that nodes show under another name."""
ELSEWHERE = {
    "name": "name of Loom Train LoRA",
    "dataset_files": "Loom Dataset (file)",
    "model.base": "the loader of the MODEL",
    "model.family": "what ComfyUI has loaded says it",
    "model.variant": "what ComfyUI has loaded says it; ModelSampling nodes change prediction type and shift",
    "model.encoders": "the loader of the CLIP",
    "model.tokenizers": "the loader of the CLIP",
    "model.vae": "the loader of the VAE",
    "model.dtype": "weight_dtype of the loader: training uses the weights as they are loaded",
    "model.device": "the device that ComfyUI computes on",
    "model.attention": "how ComfyUI was started (--use-pytorch-cross-attention, --use-flash-attention …)",
    "text.clip_tokens": "ComfyUI's CLIP reads as many tokens as a caption has",
    "text.clip_skip": "CLIPSetLastLayer before Loom Cache",
    "text.prompt_weights": "ComfyUI's CLIP reads weights in parentheses",
    "text.system_prompt": "prefix of Loom Dataset, and before the prompts, as CLIPTextEncodeLumina2 does it",
    "text.t5_attention_mask": "T5TokenizerOptions (both 0) between CLIP loader and Loom nodes",
    "text.dtype": "dtype of the file that the CLIP loader loads",
    "text.quantize": "an fp8 or GGUF text encoder in the CLIP loader",
    "dataset.megapixels": "resolutions of Loom Dataset, as sides of squares",
    "dataset.bucket_step": "bucket_step of Loom Cache, for all datasets",
    "dataset.min_side": "min_side of Loom Cache, for all datasets",
    "dataset.max_side": "max_side of Loom Cache, for all datasets",
    "dataset.upscale": "upscale of Loom Cache, for all datasets",
    "output.directory": "ComfyUI's output directory",
    "output.loras": "the first folder of models/loras",
    "output.cache": "ComfyUI's output directory",
}
"""{option: what says it in a graph}, of those that no input of these nodes stands for."""
ONLY_THERE = {
    "memory.cache": "encoders belong to ComfyUI, and a run does not hold them while other prompts use them",
    "memory.shard": "ComfyUI is one process",
    "output.format": "runs write native names, which alone ComfyUI loads for every kind; Loom LoRA Convert writes the others",
    "output.hub_repo": "a workflow may come from anybody, and must not upload: lora-loom push RUN does it for runs of the graph, too",
    "output.hub_checkpoints": "as hub_repo",
    "output.hub_private": "as hub_repo",
    "output.tracker_dir": "a workflow may come from anybody, and writes where runs lie: tensorboard --logdir on output/lora_loom finds all",
}
"""{option: why a graph has none}."""
COMMANDS = (
    (r" \(--clip-model FOLDER\)", ", and a CLIP_VISION is without"),
    (r" \(give --config RUN\.toml\)", ""),
    (r"confirm it \(--yes\), raise", "raise"),
    (r"--skip-missing merges", "skip_missing in Loom LoRA Merge into Base merges"),
    (r"--family \(", "family in Loom LoRA Convert ("),
    (r": encode on the CPU before the run, with text\.dtype.*", ""),
    (r"\(lora-loom convert\)", "(Loom LoRA Convert)"),
    (r"\(lora-loom merge-base\)|lora-loom merge-base", "Loom LoRA Merge into Base"),
    (r"Run `lora-loom sweep` and `lora-loom score` for", "Loom Sweep and Loom Score give"),
)  # fmt: skip
"""(pattern of a remedy of the command line, the remedy in a graph)."""

_PLACES = {
    f"{table}.{name}": title
    for table, nodes in INPUTS.items()
    for title, names in nodes.items()
    for name in names.split()
}
_VALUE = r"""'[^']*'|"[^"]*"|-?\d+(?:\.\d+)?(?:e-?\d+)?(?: with gradient_accumulation_steps = \d+)?|\w+"""
_OPTION = re.compile(
    rf"\b({'|'.join(re.escape(name) for name in sorted([*_PLACES, *RENAMED], key=len, reverse=True))})\b(?!\.\w)(?: = ({_VALUE}))?"
)
_SAME_PLACE = re.compile(r" in (Loom [A-Z]\w+(?: [A-Z]\w*)*)(?=(?:,| and) \w+ in \1\b)")
"""The place of an input, where the next one of a list has the same."""
E = TypeVar("E", bound=LoomError)


def in_the_graph(text: str) -> str:
    """A text in which options and commands are inputs and nodes: `memory.base = "stream"` is "base = stream in Loom Memory"."""
    for pattern, words in COMMANDS:
        text = re.sub(pattern, words, text)
    return _SAME_PLACE.sub("", _OPTION.sub(_as_input, text))


def said_in_the_graph(error: E) -> E:
    """The same error, whose message is from now on as `in_the_graph` has it."""
    error.args = (in_the_graph(str(error)),)
    return error


def _as_input(match: re.Match[str]) -> str:
    option, value = match[1], (match[2] or "").strip("'\"")
    name, place = RENAMED.get(option, f"{option.partition('.')[2]} in {_PLACES.get(option)}").split(" in ")
    return f"{name} = {value} in {place}" if value else f"{name} in {place}"
