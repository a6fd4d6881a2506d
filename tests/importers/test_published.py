"""Small files of the kinds that trainers publish as their examples: what each option of them means here."""

import json

import pytest

from lora_loom.trainer.data.sets.checks import Surroundings
from lora_loom.trainer.importers.read import import_text
from tests.importers.test_samples import value

FLUX = {"model_type": "lora", "model_family": "flux", "validation_prompt": "a cat", "data_backend_config": "x.json"}
TOOLKIT = """
job: extension
config:
  name: cat
  process:
    - type: sd_trainer
      network: %s
      datasets: [{folder_path: cats, caption_ext: txt}]
      train: {steps: 100, lr: 1e-4%s}
      model: {name_or_path: black-forest-labs/FLUX.1-schnell, %s}
%s
"""
LORA = "{type: lora, linear: 8, linear_alpha: 8}"
PIPE = """
output_dir = "out/cat"
dataset = "sets.toml"
pipeline_stages = %d
micro_batch_size_per_gpu = 1
%s
[model]
type = "chroma"
diffusers_path = "models/chroma"
transformer_path = "models/chroma.safetensors"
vae_path = "models/ae.safetensors"
text_encoder_nf4 = true
dtype = "bfloat16"
[adapter]
type = "lora"
rank = 8
fuse_adapters = [{path = "base.safetensors", weight = 0.5}]
[monitoring]
enable_wandb = true
wandb_tracker_name = "cats"
wandb_run_name = "red"
"""
MUSUBI = """accelerate launch src/musubi_tuner/%s.py
 --dit models/dit.safetensors --vae models/ae.safetensors
 --dataset_config sets.toml
 --learning_rate 1e-4 --max_train_steps 10 %s
"""
KOHYA = """accelerate launch sdxl_train_network.py
 --pretrained_model_name_or_path models/sdxl.safetensors
 --network_module=networks.lora
 --network_dim=8 --logging_dir logs --log_prefix=day- --output_name cat
 --sample_sampler=dpmsolver++ --train_data_dir cats
"""


def one_trainer(**more):
    return json.dumps({"training_method": "LORA", "model_type": "CHROMA_1", "base_model_name": "models/chroma", **more})


def simple(**more):
    return json.dumps({**FLUX, **more})


PUBLISHED = {
    "LibreFlux": (simple(model_flavour="libreflux"), {
        "model.variant": "libreflux", "model.base": "models/LibreFlux-SimpleTuner", "objective.guidance_scale": 1.0, "validation.same_seed": True,
    }),
    "FluxBooru": (simple(model_flavour="fluxbooru", flux_guidance_value=1.0, validation_guidance=3.0, validation_guidance_real=4.0), {
        "model.variant": "fluxbooru", "objective.guidance_scale": 3.5, "validation.model_guidance": 3.0, "validation.guidance_scale": 4.0,
    }),
    "schnell in four steps": (simple(model_flavour="schnell", flux_fast_schedule=True), {
        "objective.timestep_sampling": "list", "objective.timestep_list": (1.0,) * 7 + (0.75, 0.5, 0.25), "objective.shift": 1.0,
        "model.base_lora.0.file": "models/FLUX.1-schnell-training-adapter/pytorch_lora_weights.safetensors", "model.base_lora.0.use": "training",
    }),
    "schnell without its adapter": (simple(model_flavour="schnell", disable_assistant_lora=True), {"model.base_lora": ()}),
    "noise levels of one's own": (simple(flow_custom_timesteps="1000,500"), {"objective.timestep_list": (1.0, 0.5)}),
    "text encoders in 8 bits": (simple(text_encoder_1_precision="no_change", text_encoder_2_precision="int8-quanto"), {"text.quantize": "int8"}),
    "text encoders in bf16": (simple(text_encoder_2_precision="bf16"), {"text.dtype": "bfloat16", "text.quantize": "none"}),
    "Z-Image, as it is there": (simple(model_family="z_image"), {
        "model.base": "models/Z-Image-Turbo", "model.variant": "z-image-turbo",
        "model.base_lora.0.file": "models/zimage_turbo_training_adapter/zimage_turbo_training_adapter_v2.safetensors",
    }),
    "Z-Image of one's own": (simple(model_family="z_image", pretrained_model_name_or_path="models/my-z"), {
        "model.base": "models/my-z", "model.variant": "auto", "model.base_lora": (),
    }),
    "Krea 2": (simple(model_family="krea2", lora_type="standard"), {"model.family": "krea2", "objective.shift": 3.0}),
    "Flux.2 Klein": (simple(model_family="flux2", model_flavour="klein-9b"), {
        "model.family": "flux2", "model.base": "models/FLUX.2-klein-base-9B", "model.variant": "klein-base",
        "network.target_modules": r"regex:(^|\.)(to_k|to_q|to_v|to_out\.0|to_qkv_mlp_proj)$",
    }),
    "a pseudo-Huber loss": (simple(model_family="sdxl", loss_type="huber", huber_schedule="snr", input_perturbation=0.1), {
        "objective.huber_schedule": "snr", "objective.ip_noise_gamma": 0.1,
    }),
    "ai-toolkit, style": (TOOLKIT % (LORA, ", timestep_type: linear, content_or_style: style", "is_flux: true", ""), {
        "objective.timestep_sampling": "beta", "objective.beta": (pytest.approx(1 / 3), 1.0), "objective.shift": 1.0,
    }),
    "ai-toolkit, four steps": (TOOLKIT % (LORA, ", timestep_type: four_step", "is_flux: true", ""), {
        "objective.timestep_list": (1.0, 0.75, 0.5, 0.25),
    }),
    "ai-toolkit, guidance loss": (TOOLKIT % (LORA, ", do_guidance_loss: true, guidance_loss_target: [3, 5]", "is_flux: true", ""), {
        "objective.guided_loss": "target", "objective.guided_scale": 4.0,
    }),
    "ai-toolkit, in 8 bits": (
        TOOLKIT % (LORA, "", "is_flux: true, quantize: true, assistant_lora_path: ostris/FLUX.1-schnell-training-adapter", ""), {
            "model.quantize": "float8", "text.quantize": "float8",
            "model.base_lora.0.file": "models/FLUX.1-schnell-training-adapter/pytorch_lora_weights.safetensors",
        },
    ),
    "ai-toolkit, encoders as they are": (TOOLKIT % (LORA, "", "is_flux: true, quantize: true, quantize_te: false", ""), {"text.quantize": "none"}),
    "ai-toolkit, whole LoKr": (TOOLKIT % ("{type: lokr, lokr_full_rank: true, lokr_factor: 8}", "", "arch: chroma", ""), {
        "network.kind": "lokr", "network.lokr_full_matrix": True, "network.lokr_factor": 8, "model.family": "chroma",
    }),
    "ai-toolkit, samples and hub": (TOOLKIT % (LORA, "", "arch: zimage", """
      sample: {prompts: [a cat], walk_seed: false, sampler: flowmatch, guidance_rescale: 0.5}
      save: {push_to_hub: true, hf_repo_id: me/cat, hf_private: true}
      logging: {use_wandb: true, project_name: cats, run_name: red}"""), {
        "validation.same_seed": True, "validation.sampler": "euler", "validation.guidance_rescale": 0.5, "output.hub_repo": "me/cat",
        "output.hub_private": True, "output.tracker_project": "cats", "output.tracker_run": "red",
    }),
    "OneTrainer, parabola": (one_trainer(timestep_distribution="INVERTED_PARABOLA", noising_weight=8.0), {
        "model.family": "chroma", "objective.timestep_sampling": "beta", "objective.beta": pytest.approx((2.0, 2.0), abs=2e-3),
    }),
    "OneTrainer, encoders": (one_trainer(transformer={"weight_dtype": "NFLOAT_4"}, text_encoder={"weight_dtype": "FLOAT_8"}, weight_dtype="BFLOAT_16"), {
        "model.quantize": "nf4", "text.quantize": "float8", "model.dtype": "auto",
    }),
    "OneTrainer, Prodigy plus": (one_trainer(
        optimizer={"optimizer": "PRODIGY_PLUS_SCHEDULE_FREE", "use_cautious": True, "prodigy_steps": 100, "learning_rate": 1.0}
    ), {"optimizer.name": "prodigy_plus_schedule_free", "optimizer.options": {"use_cautious": True, "prodigy_steps": 100}}),
    "OneTrainer, whole LoKr": (one_trainer(peft_type="LOKR", lokr_dim=4, lokr_full_matrix=True), {"network.lokr_full_matrix": True}),
    "diffusion-pipe, one GPU": (PIPE % (1, "blocks_to_swap = 8"), {
        "memory.shard": False, "memory.base": "stream", "model.vae": "models/ae.safetensors", "text.quantize": "nf4", "model.encoders": "models/chroma",
        "model.base_lora.0.file": "base.safetensors", "model.base_lora.0.strength": 0.5, "output.tracker_project": "cats", "output.tracker_run": "red",
    }),
    "diffusion-pipe, four GPUs": (PIPE % (4, ""), {"memory.shard": True, "memory.base": "auto"}),
    "musubi-tuner, Flux.2": (MUSUBI % ("flux_2_train_network", "--network_module networks.lora_flux_2 --network_dim 8 --fp8_llm --wandb_run_name red --log_with wandb"), {
        "model.family": "flux2", "network.rank": 8, "text.quantize": "float8", "output.tracker_run": "red",
    }),
    "musubi-tuner, the whole model": (MUSUBI % ("zimage_train", "--full_bf16 --fused_backward_pass"), {
        "model.family": "z_image", "network.kind": "full", "model.dtype": "bfloat16", "training.steps": 10,
    }),
    "musubi-tuner, Kontext": (MUSUBI % ("flux_kontext_train_network", "--network_module networks.lora_flux --network_dim 8"), {
        "model.variant": "kontext", "model.vae": "models/ae.safetensors",
    }),
    "sd-scripts, without marks at the ends of lines": (KOHYA, {
        "model.family": "sdxl", "network.rank": 8, "output.report_to": "tensorboard", "output.tracker_dir": "logs", "output.tracker_run": "day-cat",
    }),
    "sd-scripts, some options": ('optimizer_type = "adafactor"\noptimizer_args = ["relative_step=False"]\nlr_scheduler = "constant_with_warmup"\n'
                                 "lr_warmup_steps = 100\nlearning_rate = 4e-7", {
        "optimizer.name": "adafactor", "optimizer.learning_rate": 4e-7, "schedule.warmup": 100,
    }),
    "LyCORIS, whole factors": (KOHYA.replace("networks.lora", "lycoris.kohya") + ' --network_args algo=lokr full_matrix=True decompose_both=False', {
        "network.kind": "lokr", "network.lokr_full_matrix": True, "network.target_modules": "full",
    }),
}  # fmt: skip
"""{kind: (file, {our option: value})}."""


@pytest.mark.parametrize("kind", PUBLISHED)
def test_published_kinds_become_what_they_mean(kind, tmp_path):
    text, facts = PUBLISHED[kind]
    done = import_text(text, Surroundings(tmp_path), kind)
    assert {name: value(done.config, name) for name in facts} == facts


OPTIMIZERS = {
    "DAdaptAdam": ("dadapt_adam", 0.0), "PagedAdamW8bit": ("paged_adamw8bit", 0.01), "Lion8bit": ("lion8bit", 0.0),
    "AdamWScheduleFree": ("adamw_schedule_free", 0.0), "pytorch_optimizer.CAME": ("came", 0.0), "pytorch_optimizer.ADOPT": ("pytorch_optimizer.ADOPT", 0.0),
    "SGDScheduleFree": ("schedulefree.SGDScheduleFree", 0.0), "prodigyplus.ProdigyPlusScheduleFree": ("prodigy_plus_schedule_free", 0.0),
}  # fmt: skip
"""{optimizer_type of sd-scripts: (our name, its weight decay where nothing is said)}."""


@pytest.mark.parametrize("word", OPTIMIZERS)
def test_optimizers_of_the_kept_libraries_are_taken_exactly(word, tmp_path):
    done = import_text(f"{KOHYA} --optimizer_type {word} --learning_rate 1.0", Surroundings(tmp_path), "run.sh")
    [said] = [one for one in done.taken if one.option == "optimizer_type"]
    assert (done.config.optimizer.name, done.config.optimizer.weight_decay) == OPTIMIZERS[word]
    assert said.became == "exact"


def test_what_a_switch_became_is_said_once_and_truly(tmp_path):
    done = import_text(PUBLISHED["text encoders in 8 bits"][0], Surroundings(tmp_path), "x.json")
    [said] = [one for one in done.taken if one.option == "text_encoder_2_precision"]
    assert (said.became, said.ours) == ("nearly", "text.quantize")
    assert "CLIP's stay as they are" in said.note


def test_a_dataset_of_the_hub_becomes_a_folder_with_the_commands_that_make_it(tmp_path):
    entries = [
        {"id": "cats", "type": "huggingface", "dataset_name": "me/cats", "caption_strategy": "huggingface", "resolution": 512},
        {"id": "text", "dataset_type": "text_embeds", "default": True},
    ]  # fmt: skip
    done = import_text(json.dumps(entries), Surroundings(tmp_path), "multidatabackend.json")
    [one] = done.config.dataset
    assert (one.folder, one.captions) == ("datasets/cats", "metadata")
    assert any(
        "hf download me/cats" in note and "unpack downloads/me/cats datasets/cats" in note for note in done.notes
    )


def test_a_model_that_only_the_graph_trains_is_said_to_be_one(tmp_path):
    done = import_text(TOOLKIT % (LORA, "", "arch: wan22_14b", ""), Surroundings(tmp_path), "wan.yaml")
    [said] = [one for one in done.taken if one.option == "model.arch"]
    assert "no wan22_14b from the command line; in ComfyUI's graph" in said.note
    assert done.config.objective.timestep_sampling == "logit_normal"  # a flow model all the same
