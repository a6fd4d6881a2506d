"""Configurations of other trainers as people have them, and what must become of them."""

S1 = """
{"--model_type":"lora","--model_family":"sd3","--pretrained_model_name_or_path":"models/sd35m",
 "--data_backend_config":"config/multidatabackend.json","--max_train_steps":"1200","--num_train_epochs":0,
 "--learning_rate":"1e-4","--lr_scheduler":"polynomial","--lr_warmup_steps":100,"--lora_rank":32,
 "--train_batch_size":2,"--optimizer":"adamw_bf16","--mixed_precision":"bf16","--use_ema":"true","--seed":42}
"""
S2 = """
export MODEL_TYPE='lora'
export MODEL_FAMILY='flux'
export MODEL_NAME="models/flux"
export DATALOADER_CONFIG="config/multidatabackend.json"
export MAX_NUM_STEPS=2000
export NUM_EPOCHS=0
export LEARNING_RATE=8e-5
export LR_SCHEDULE="cosine"
export LR_WARMUP_STEPS=2000
export USE_DORA=true
export TRAINER_EXTRA_ARGS="--lora_rank=16 --flux_lora_target=all+ffs --flow_schedule_auto_shift"
"""
K1 = """
accelerate launch sdxl_train_network.py --pretrained_model_name_or_path=models/sdxl.safetensors ^
 --train_data_dir=train --resolution=1024,1024 --enable_bucket --output_name=cat --max_train_epochs=10 ^
 --train_batch_size=4 --unet_lr=1e-4 --text_encoder_lr=5e-5 --network_module=networks.lora --network_dim=32 ^
 --optimizer_type=AdamW8bit --optimizer_args "weight_decay=0.1" "betas=0.9,0.99" --lr_scheduler=cosine ^
 --lr_warmup_steps=0.1 --min_snr_gamma=5 --mixed_precision=bf16 --save_every_n_epochs=1 --cache_latents
"""
K2 = """
[[subsets]]
image_dir = "cat"
num_repeats = 5
caption_extension = ".txt"
[general_args.args]
pretrained_model_name_or_path = "sd15.safetensors"
max_train_steps = 800
clip_skip = 2
[general_args.dataset_args]
resolution = 512
batch_size = 2
[network_args.args]
network_dim = 16
network_alpha = 8.0
network_train_unet_only = true
[optimizer_args.args]
optimizer_type = "Prodigy"
learning_rate = 1.0
[optimizer_args.args.optimizer_args]
d_coef = 2
"""
A1 = """
job: extension
config:
  name: p3r5on
  process:
    - type: sd_trainer
      trigger_word: p3r5on
      network: {type: lora, linear: 16, linear_alpha: 16}
      save: {dtype: float16, save_every: 250, max_step_saves_to_keep: 4}
      datasets: [{folder_path: cats, caption_ext: txt, resolution: [512, 768], caption_dropout_rate: 0.05}]
      train: {steps: 2000, batch_size: 1, lr: 1e-4, optimizer: adamw8bit, timestep_type: sigmoid,
        gradient_accumulation_steps: 2, ema_config: {use_ema: true, ema_decay: 0.99}, dtype: bf16}
      model: {name_or_path: models/flux, is_flux: true, quantize: true}
"""
A2 = A1.replace("{type: lora, linear: 16, linear_alpha: 16}", "{type: lokr, lokr_factor: 8}").replace(
    "timestep_type: sigmoid",
    "timestep_type: weighted, diff_output_preservation: true, diff_output_preservation_class: person, diff_output_preservation_multiplier: 0.5",
)
O1 = """
{"training_method":"LORA","model_type":"STABLE_DIFFUSION_XL_10_BASE","base_model_name":"models/sdxl",
 "concepts":[{"path":"cats","balancing":3.0,"image":{"enable_crop_jitter":false},"text":{"prompt_source":"filename"}}],
 "resolution":"768,1024","epochs":20,"batch_size":2,"learning_rate":0.0003,"learning_rate_warmup_steps":100,
 "ema":"GPU","ema_decay":0.999,"lora_rank":16,"layer_filter_preset":"attn-mlp","text_encoder":{"train":false},
 "text_encoder_2":{"train":false},"optimizer":{"optimizer":"ADAFACTOR","relative_step":false},"output_model_format":"KOHYA_LORA"}
"""
O2 = """
{"training_method":"LORA","model_type":"STABLE_DIFFUSION_15","optimizer":"ADAMW","optimizer_beta1":0.9,"optimizer_beta2":0.99,
 "min_snr_gamma":5,"train_text_encoder":false,"concept_file_name":"training_concepts/concepts.json"}
"""
M1 = (
    "qwen_image_train_network.py --dit q.safetensors --vae v.safetensors --text_encoder t.safetensors --dataset_config d.toml "
    '--network_module networks.lora_qwen_image --network_dim 16 --network_args "loraplus_lr_ratio=4" --timestep_sampling qwen_shift '
    "--learning_rate 5e-5 --max_train_epochs 16 --fp8_base --fp8_scaled --blocks_to_swap 16"
)
M2 = """
[general]
resolution = [1024, 768]
caption_extension = ".txt"
batch_size = 2
enable_bucket = true
[[datasets]]
image_directory = "cats"
cache_directory = "cache/cats"
control_directory = "refs"
num_repeats = 3
"""
D1 = """
output_dir = "runs/cat"
dataset = "dataset.toml"
epochs = 100
max_steps = 1500
warmup_steps = 50
save_every_n_steps = 250
activation_checkpointing = "unsloth"
[model]
type = "flux"
diffusers_path = "models/flux"
dtype = "bfloat16"
transformer_dtype = "float8"
timestep_sample_method = "logit_normal"
flux_shift = true
[adapter]
type = "lora"
rank = 32
[optimizer]
type = "adamw_optimi"
lr = 2e-5
betas = [0.9, 0.99]
"""
D2 = """
resolutions = [512, 768]
enable_ar_bucket = true
min_ar = 0.5
max_ar = 2.0
num_ar_buckets = 3
caption_prefix = "sks, "
[[directory]]
path = "cats"
mask_path = "masks"
num_repeats = 5
"""

FACTS = {
    "S1": (S1, {
        "training.steps": 1200, "training.batch_size": 2, "network.kind": "lora", "network.rank": 32, "network.alpha": None,
        "network.dropout": 0.1, "network.target_modules": r"regex:(^|\.)(to_k|to_q|to_v|to_out\.0)$", "schedule.kind": "polynomial",
        "schedule.power": 0.8, "schedule.min_lr_ratio": 0.004, "schedule.warmup": 100, "training.ema_decay": 0.995, "objective.shift": 3.0,
        "training.precision": "bfloat16", "training.save_every": 500, "training.keep_checkpoints": 5, "optimizer.max_grad_norm": 2.0,
        "optimizer.name": "adamw", "model.family": "sd3", "training.seed": 42, "dataset_files": ("config/multidatabackend.json",),
    }),
    "S2": (S2, {
        "network.kind": "dora", "network.rank": 16, "network.target_modules": "attention+mlp", "objective.shift": "resolution",
        "schedule.kind": "cosine", "schedule.warmup": 0, "schedule.min_lr_ratio": 0.005, "training.batch_size": 4,
        "training.steps": 2000, "objective.guidance_scale": 1.0, "optimizer.learning_rate": 8e-5, "model.base": "models/flux",
    }),
    "K1": (K1, {
        "model.family": "sdxl", "name": "cat", "dataset.0.layout": "kohya", "dataset.0.buckets": "kohya", "dataset.0.max_side": 1024,
        "network.alpha": 1, "network.rank": 32, "optimizer.learning_rate": 1e-4, "text.learning_rate": 5e-5, "optimizer.name": "adamw8bit",
        "optimizer.weight_decay": 0.1, "optimizer.options": {"betas": [0.9, 0.99]}, "schedule.kind": "cosine", "schedule.warmup": 0.1,
        "objective.min_snr_gamma": 5, "memory.gradient_checkpointing": False, "output.dtype": "float32", "text.clip_tokens": 75,
        "training.batch_size": 4, "training.epochs": 10, "training.save_every_epochs": 1, "output.format": "kohya", "training.precision": "bfloat16",
    }),
    "K2": (K2, {
        "dataset.0.folder": "cat", "dataset.0.repeats": 5, "dataset.0.resolutions": (512,), "dataset.0.buckets": "off", "training.batch_size": 2,
        "text.clip_skip": 2, "network.alpha": 8, "network.rank": 16, "text.learning_rate": 0, "optimizer.name": "prodigy",
        "optimizer.learning_rate": 1.0, "optimizer.options": {"d_coef": 2}, "training.steps": 800,
    }),
    "A1": (A1, {
        "name": "p3r5on", "training.steps": 1000, "training.gradient_accumulation_steps": 2, "training.save_every": 125, "dataset.0.folder": "cats",
        "dataset.0.resolutions": (512, 768), "dataset.0.trigger": "p3r5on", "dataset.0.caption_dropout": 0.05, "objective.shift": 1.0,
        "objective.timestep_sampling": "logit_normal", "training.ema_decay": 0.99, "model.quantize": "float8", "optimizer.options": {"eps": 1e-6},
        "output.dtype": "float16", "optimizer.learning_rate": 1e-4, "network.rank": 16, "network.alpha": 16, "model.family": "flux",
        "training.keep_checkpoints": 4,
    }),
    "A2": (A2, {
        "network.kind": "lokr", "network.lokr_factor": 8, "objective.timestep_sampling": "uniform", "dataset.0.teacher": "base",
        "dataset.0.class_prompt": "person", "dataset.0.teacher_weight": 0.5,
    }),
    "O1": (O1, {
        "dataset.0.folder": "cats", "dataset.0.repeats": 3, "dataset.0.captions": "filename", "dataset.0.crop": "center",
        "dataset.0.resolutions": (768, 1024), "network.alpha": 1.0, "network.target_modules": "transformer", "schedule.warmup": 100,
        "training.ema_decay": 0.999 ** 0.2, "optimizer.name": "adafactor", "training.precision": "float16", "output.format": "kohya",
        "output.dtype": "float32", "text.learning_rate": 0, "model.family": "sdxl", "optimizer.learning_rate": 3e-4, "training.epochs": 20,
    }),
    "O2": (O2, {"optimizer.options": {"betas": [0.9, 0.99]}, "objective.min_snr_gamma": 5, "text.learning_rate": 0, "model.variant": "sd1"}),
    "M1": (M1, {
        "network.alpha": 1, "network.rank": 16, "network.target_modules": "attention+mlp", "objective.shift": "resolution",
        "model.quantize": "float8", "model.base": "q.safetensors", "model.family": "qwen_image", "output.format": "kohya",
        "optimizer.learning_rate": 5e-5, "dataset_files": ("d.toml",), "training.epochs": 16, "memory.base": "stream",
    }),
    "M2": (M2, {
        "dataset.0.folder": "cats", "dataset.0.resolutions": (887,), "dataset.0.repeats": 3, "dataset.0.references": "refs",
        "dataset.0.captions": "sidecar", "training.batch_size": 2,
    }),
    "D1": (D1, {
        "name": "cat", "output.directory": "runs", "training.steps": 1500, "network.rank": 32, "network.alpha": None, "objective.shift": "resolution",
        "model.quantize": "float8", "memory.gradient_checkpointing": True, "optimizer.learning_rate": 2e-5, "optimizer.max_grad_norm": 1.0,
        "network.target_modules": "all", "schedule.warmup": 50, "training.save_every": 250, "optimizer.options": {"betas": [0.9, 0.99]},
    }),
    "D2": (D2, {
        "dataset.0.folder": "cats", "dataset.0.resolutions": (512, 768), "dataset.0.aspects": (0.5, 1.0, 2.0), "dataset.0.prefix": "sks, ",
        "dataset.0.masks": "masks", "objective.masked_loss": "plain", "dataset.0.repeats": 5,
    }),
}  # fmt: skip
"""{sample: (its text, {option: value})}."""
