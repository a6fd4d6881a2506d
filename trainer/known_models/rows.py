"""What is known of models that people train, one row each. Every number says where it was read.

Short names of sources: AK ostris/ai-toolkit, DP tdrussell/diffusion-pipe, MT kohya-ss/musubi-tuner, FZ
shootthesound/Fizgig, CU ComfyUI v0.33, DF diffusers 0.42. Numbers of an issue follow a #. Files are named as ComfyUI's own
templates name them. Of rows for one class and configuration, those with a name are tried from the top.
"""

from dataclasses import replace

from ..diffusion.timesteps import ResolutionShift
from .row import FEW_STEPS, UNDONE, WITHOUT, ModelRow, Sourced

BY_16 = Sourced(16, "CU: latents of 1/8 in patches of 2x2, or of 1/16")
BY_32 = Sourced(32, "CU: latents of 1/32, or of 1/16 in patches of 2x2")

Z_IMAGE = ModelRow(
    name="Z-Image",
    model_class="Lumina2",
    config={"z_image_modulation": True},
    named=r"z[-_ ]?image(?!.*(turbo|de.?distill))|(?<![a-z])zib(?![a-z])",
    trap="A LoRA of the base acts weakly on Turbo (MT#908).",
    shift=Sourced(3.0, "CU supported_models.ZImage; FZ trains at 3 with logit-normal timesteps"),
    cfg=Sourced(4.0, "CU template, 25 steps"),
    bucket_step=BY_16,
    rank=Sourced(32, "MT docs/zimage.md"),
    rate=Sourced(1e-4, "MT docs/zimage.md; FZ"),
)
Z_IMAGE_ROWS = (
    replace(
        Z_IMAGE,
        name="Z-Image De-Turbo",
        named=UNDONE,
        trap="Look at samples with CFG and 20 steps or more; use the LoRA on Turbo (OneTrainer#1195).",
    ),
    replace(
        Z_IMAGE,
        name="Z-Image Turbo",
        named=r"turbo|(?<![a-z])zit(?![a-z])",
        distilled="steps",
        instead="ostris/zimage_turbo_training_adapter v2, or the De-Turbo base",
        trap="Without an adapter samples of 8 steps become blurred (DP#462).",
        cfg=Sourced(1.0, "CU template, 8 steps"),
    ),
    Z_IMAGE,
    replace(Z_IMAGE, named="", ask=True),
)

FLUX2 = ModelRow(
    name="FLUX.2 dev",
    model_class="Flux2",
    config={"guidance_embed": True},
    distilled="guidance",
    shift=Sourced(
        ResolutionShift(patch=1), "OneTrainer#1516: Flux's law; OneTrainer#1698: latents are packed, a token each"
    ),
    guidance=Sourced(1.0, "MT flux_2_train_network.py:316; DP flux2.py:127"),
    bucket_step=BY_16,
    rank=Sourced(32, "MT docs/flux_2.md"),
    rate=Sourced(1e-4, "MT docs/flux_2.md"),
)
KLEIN_BASE = replace(
    FLUX2,
    name="FLUX.2 Klein base",
    config={"guidance_embed": False},
    named="(?<!data)base(?!d)",
    distilled="no",
    trap="Use the LoRA on the distilled Klein (4 steps, CFG 1): it works there as it is.",
    guidance=None,
    cfg=Sourced(4.0, "MT flux2_utils.py:70-113"),
)
FLUX2_ROWS = (
    FLUX2,
    KLEIN_BASE,
    replace(
        KLEIN_BASE,
        name="FLUX.2 Klein",
        named="klein",
        distilled="steps",
        instead="FLUX.2 Klein base; there is no adapter",
        trap="Training this file gives grey or generic images (modelscope/DiffSynth-Studio#1313).",
        cfg=Sourced(1.0, "MT flux2_utils.py:70-113"),
    ),
    replace(KLEIN_BASE, named="", ask=True),
)

KREA2 = ModelRow(
    name="Krea 2 RAW",
    model_class="Krea2",
    named=r"krea.*(raw|base)|(raw|base).*krea",
    trap="Train on RAW, use on Turbo. A noise pattern on Turbo is reported (MT#1053).",
    shift=Sourced(ResolutionShift(max_tokens=6400), "MT trainer_base.py:604; DF Krea2 scheduler"),
    cfg=Sourced(5.5, "MT krea2_train_network.py:180"),
    bucket_step=BY_16,
    rank=Sourced(32, "MT docs/krea2.md"),
    rate=Sourced(1e-4, "MT docs/krea2.md; FZ"),
)
KREA2_ROWS = (
    KREA2,
    replace(
        KREA2,
        name="Krea 2 Turbo",
        named="turbo",
        distilled="steps",
        instead="Krea 2 RAW, or ostris/krea2_turbo_training_adapter",
        trap="",
        shift=Sourced(3.1582, "DF pipeline_krea2.py:615: mu 1.15 at every size"),
        cfg=Sourced(1.0, "MT krea2_train_network.py"),
    ),
    replace(KREA2, named="", ask=True),
)

QWEN = ModelRow(
    name="Qwen-Image",
    model_class="QwenImage",
    bucket_step=BY_16,
    cfg=Sourced(4.0, "CU template of 2512, 50 steps"),
    rank=Sourced(16, "MT docs/qwen_image.md"),
    rate=Sourced(5e-5, "MT docs/qwen_image.md"),
)
QWEN_EDIT_2511 = replace(QWEN, name="Qwen-Image-Edit 2511", config={"default_ref_method": "index_timestep_zero"})
_FAST_QWEN = replace(
    QWEN,
    named=f"{FEW_STEPS}|distill",
    distilled="steps",
    instead="the file without Lightning; put the Lightning LoRA on for samples alone",
    cfg=Sourced(1.0, "CU templates"),
)
QWEN_ROWS = (
    replace(_FAST_QWEN, name="Qwen-Image with a few-step LoRA merged"),
    replace(QWEN, name="Qwen-Image-Edit 2509", named="edit.*2509"),
    replace(QWEN, name="Qwen-Image-Edit", named="edit"),
    replace(QWEN, name="Qwen-Image 2512", named="2512"),
    replace(QWEN, named=r"qwen[-_ ]?image"),
    QWEN,
    replace(_FAST_QWEN, name="Qwen-Image-Edit 2511 with a few-step LoRA merged", config=QWEN_EDIT_2511.config),
    replace(QWEN_EDIT_2511, named=r"2511|edit"),
    QWEN_EDIT_2511,
    replace(QWEN, name="Qwen-Image-Layered", config={"use_additional_t_cond": True}),
    ModelRow(
        name="Qwen-Image 2.1",
        model_class="QwenImage21",
        distilled="guidance",
        instead="fizgig_qwen_image_2.1_training_adapter.safetensors of ShootTheSound/Fizgig-Qwen-Image-2.1-Training-Adapter",
        trap="Plain training collapses into texture: likeness 56 instead of 77 (FZ).",
        shift=Sourced(
            ResolutionShift(max_tokens=8192, max_shift=0.9, patch=1), "FZ sampling.py; a token for each latent"
        ),
        cfg=Sourced(1.0, "FZ QWEN_IMAGE.md"),
        bucket_step=Sourced(32, "FZ"),
        rank=Sourced(16, "FZ families/qwen_image.py"),
        rate=Sourced(1e-4, "FZ families/qwen_image.py"),
    ),
)

ANIMA = ModelRow(
    name="Anima",
    model_class="Anima",
    named=r"anima(?!.*turbo)",
    trap="An fp8 base trains badly, and noise offset washes it out (FZ anima.py).",
    shift=Sourced(3.0, "FZ and SimpleTuner anima/model.py:336: 3, logit-normal"),
    cfg=Sourced(4.0, "CU template, 30 steps"),
    bucket_step=BY_16,
    leave_out=Sourced(r"(^|\.)adaln_modulation|^llm_adapter\.", "sd-scripts networks/lora_anima.py:45; FZ"),
    rank=Sourced(16, "FZ families/anima.py"),
    rate=Sourced(1e-4, "FZ families/anima.py: characters; 5e-5 for styles"),
)
ANIMA_ROWS = (
    ANIMA,
    replace(
        ANIMA,
        name="Anima Turbo",
        named="turbo",
        distilled="steps",
        instead="Anima base",
        cfg=Sourced(1.0, "CU templates"),
    ),
    replace(ANIMA, named=""),
)

CHROMA = ModelRow(
    name="Chroma",
    model_class="Chroma",
    named="chroma(?!.*(flash|turbo))",
    trap="Its guidance embedding stays 0, as ComfyUI feeds it.",
    shift=Sourced(ResolutionShift(), "DP chroma.py, option flux_shift"),
    cfg=Sourced(3.5, "CU template"),
    bucket_step=BY_16,
    rank=Sourced(32, "AK"),
    rate=Sourced(1e-4, "AK"),
)
CHROMA_ROWS = (
    CHROMA,
    replace(CHROMA, name="Chroma Flash", named="flash|turbo", distilled="steps", instead="Chroma HD or Base"),
    replace(CHROMA, named=""),
    replace(CHROMA, name="Chroma Radiance", model_class="ChromaRadiance", named="", shift=None),
)

HIDREAM = ModelRow(
    name="HiDream I1 Full",
    model_class="HiDream",
    named="full",
    shift=Sourced(3.0, "AK; CU's own 3.0 is lost, and it samples at 1.0 (supported_models.py:1655-1660)"),
    cfg=Sourced(5.0, "CU template, 50 steps"),
    bucket_step=BY_16,
    rank=Sourced(32, "AK"),
    rate=Sourced(2e-4, "AK"),
)
HIDREAM_ROWS = (
    HIDREAM,
    replace(
        HIDREAM,
        name="HiDream I1 Dev or Fast",
        named="dev|fast",
        distilled="guidance",
        instead="HiDream I1 Full",
        cfg=Sourced(1.0, "CU templates, 28 and 16 steps"),
        guided=Sourced(5.0, "the guidance of Full, CU template"),
    ),
    replace(HIDREAM, named="", ask=True),
    ModelRow(
        name="HiDream O1",
        model_class="HiDreamO1",
        trap="It works on pixels: there is no VAE.",
        shift=Sourced(1.0, "MT: uniform timesteps, no shift"),
        bucket_step=Sourced(32, "CU: patches of 32 pixels"),
        rank=Sourced(32, "MT docs of HiDream-O1"),
        rate=Sourced(4e-5, "MT docs of HiDream-O1"),
    ),
)

HUNYUAN = ModelRow(
    name="HunyuanImage 2.1",
    model_class="HunyuanImage21",
    shift=Sourced(5.0, "CU supported_models.HunyuanImage21; DP leaves it to the user"),
    bucket_step=BY_32,
    rank=Sourced(32, "AK's default"),
    rate=Sourced(1e-4, "AK's default"),
)
HUNYUAN_ROWS = (
    HUNYUAN,
    replace(
        HUNYUAN,
        name="HunyuanImage 2.1 distilled",
        config={"meanflow": True},
        distilled="steps",
        instead="the HunyuanImage 2.1 that is not distilled",
    ),
)

WAN = ModelRow(
    name="Wan 2.1",
    model_class="WAN21",
    named=r"wan[-_ ]?2[._]?1",
    trap="Images are films of one frame.",
    shift=Sourced(3.0, "MT docs/wan.md:177"),
    cfg=Sourced(6.0, "CU template, 20 steps"),
    bucket_step=BY_16,
    rank=Sourced(32, "MT docs/wan.md"),
    rate=Sourced(2e-4, "MT docs/wan.md"),
)
WAN_ROWS = (
    replace(
        WAN,
        name="Wan with a few-step LoRA merged",
        named=f"{FEW_STEPS}|causvid|rapid",
        distilled="steps",
        instead="the plain Wan",
    ),
    replace(
        WAN,
        name="Wan 2.2, high noise",
        named=r"high[-_ ]?noise|2[._]?2.*(?<![a-z])high(?![a-z])",
        trap="Its half begins at sigma 0.875 (AK wan22_14b_model.py:34): with shift 3 set min_timestep = 0.7, and train a second LoRA on the other expert.",
    ),
    replace(
        WAN,
        name="Wan 2.2, low noise",
        named=r"low[-_ ]?noise|2[._]?2.*(?<![a-z])low(?![a-z])",
        trap="Its half ends at sigma 0.875 (AK wan22_14b_model.py:34): with shift 3 set max_timestep = 0.7, and train a second LoRA on the other expert.",
    ),
    replace(
        WAN,
        name="Wan 2.2, one of its experts",
        named=r"wan[-_ ]?2[._]?2",
        unsaid="neither weights nor name say which of Wan 2.2's experts this is: with shift 3, set min_timestep = 0.7 for the one of high noise, max_timestep = 0.7 for the one of low noise, or put high_noise or low_noise into the file's name",
    ),
    WAN,
    replace(WAN, named="", ask=True),
    replace(WAN, name="Wan 2.2 5B", model_class="WAN22", named="", bucket_step=BY_32),
)

SDXL = ModelRow(
    name="SDXL",
    model_class="SDXL",
    bucket_step=Sourced(64, "SDXL's report, appendix I (arXiv 2307.01952)"),
    rank=Sourced(32, "AK's default"),
    rate=Sourced(1e-4, "AK's default"),
)
SDXL_ROWS = (
    replace(
        SDXL,
        name="SDXL with few steps",
        named=FEW_STEPS,
        distilled="steps",
        instead=WITHOUT,
    ),
    SDXL,
)

FLUX_ROWS = (
    ModelRow(name="Flux dev", model_class="Flux", config={"guidance_embed": True}, distilled="guidance", guidance=Sourced(1.0, "as the family's file"),
             bucket_step=BY_16, rank=Sourced(16, "OneTrainer training_presets"), rate=Sourced(1e-4, "AK's default")),
    ModelRow(
        name="Flux schnell",
        model_class="Flux",
        config={"guidance_embed": False},
        distilled="steps",
        instead="ostris/FLUX.1-schnell-training-adapter",
        bucket_step=BY_16,
        rank=Sourced(32, "AK's default"),
        rate=Sourced(1e-4, "AK's default"),
    ),
)  # fmt: skip

OTHER_ROWS = (
    ModelRow(
        name="Kandinsky 5 image",
        model_class="Kandinsky5Image",
        shift=Sourced(5.0, "MT docs/kandinsky5.md:240"),
        cfg=Sourced(3.5, "CU template, 50 steps"),
        bucket_step=BY_16,
        rank=Sourced(32, "MT docs/kandinsky5.md"),
        rate=Sourced(1e-4, "MT docs/kandinsky5.md"),
    ),
    ModelRow(
        name="Omnigen2",
        model_class="Omnigen2",
        trap="It takes guidance by text and by image; only that of the text is dropped while training.",
        shift=Sourced(2.6, "CU supported_models.Omnigen2; DP's Flux law is an option there"),
        bucket_step=BY_16,
        rank=Sourced(32, "AK's default"),
        rate=Sourced(1e-4, "AK's default"),
    ),
    ModelRow(
        name="Lens",
        model_class="Lens",
        named="lens(?!.*turbo)",
        leave_out=Sourced(r"^transformer_blocks\.{last}\.(txt_mlp\.|attn\.to_add_out$)", "CU ldm/lens/model.py: the last text output is dropped"),
    ),
    ModelRow(
        name="Lens Turbo",
        model_class="Lens",
        named="turbo",
        distilled="steps",
        instead="Lens",
        leave_out=Sourced(r"^transformer_blocks\.{last}\.(txt_mlp\.|attn\.to_add_out$)", "CU ldm/lens/model.py: the last text output is dropped"),
    ),
    ModelRow(
        name="Mage-Flow",
        model_class="MageFlow",
        leave_out=Sourced(r"^transformer_blocks\.{last}\.(txt_mlp\.|attn\.(to_add_out|add_q_proj)$)", "CU ldm/mage_flow/model.py: the last text output is dropped"),
    ),
    ModelRow(
        name="HunyuanVideo 1.5",
        model_class="HunyuanVideo15",
        leave_out=Sourced(r"^double_blocks\.{last}\.(txt_mlp\.|txt_attn\.proj$)", "CU ldm/hunyuan_video/model.py: without single blocks nothing reads the last text output"),
    ),
)  # fmt: skip
ERNIE = ModelRow(
    name="ErnieImage",
    model_class="ErnieImage",
    named="ernie(?!.*turbo)",
    shift=Sourced(ResolutionShift(patch=1), "OneTrainer#1698: Flux's law, a token for each latent; DP 3"),
    cfg=Sourced(4.0, "CU template, 20 steps"),
    bucket_step=BY_16,
    rank=Sourced(32, "AK's default"),
    rate=Sourced(1e-4, "AK's default"),
)
ERNIE_ROWS = (
    ERNIE,
    replace(
        ERNIE,
        name="ErnieImage Turbo",
        named="turbo",
        distilled="steps",
        instead="ErnieImage",
        cfg=Sourced(1.0, "CU template, 8 steps"),
    ),
    replace(ERNIE, named=""),
)
ROWS: tuple[ModelRow, ...] = (
    *Z_IMAGE_ROWS, *FLUX2_ROWS, *KREA2_ROWS, *QWEN_ROWS, *ANIMA_ROWS, *CHROMA_ROWS, *HIDREAM_ROWS, *HUNYUAN_ROWS, *WAN_ROWS,
    *SDXL_ROWS, *FLUX_ROWS, *ERNIE_ROWS, *OTHER_ROWS,
)  # fmt: skip
