$output_name = "my-cat" # no extension
$sd_scripts_dir = "C:\ai\sd-scripts"
$ckpt = "C:\ai\model.ckpt" # the base
$image_dir = "C:\pictures\my-cat"
$output_dir = "C:\ai\loras"
$vae_path = "C:\ai\vae.ckpt"
$logging_dir = "C:\ai\logs"
$log_prefix = "$output_name" + "_"
$reg_dir = ""
$is_sd_v2_ckpt = 0
$is_sd_v2_768_ckpt = 0
$clip_skip = 2
$max_train_epochs = 0
$max_train_steps = 8000
$train_batch_size = 5
$resolution = 768
$optimizer_t = "AdamW8bit"
#$optimizer_args = """decouple=True"" ""weight_decay=0.01"""
$noise_offset = 0
$scale_weight_normals = 2
$min_snr_gamma = 5
$learning_rate = 1e-4
$unet_lr = $learning_rate
$text_encoder_lr = $learning_rate/3
$scheduler = "cosine_with_restarts"
$lr_r_num_cycles = 4
#$lr_scheduler_type = "cosine_annealing_warmup.CosineAnnealingWarmupRestarts"
$network_dim = 64
$network_alpha = 64
$locon_dim = 32
$locon_alpha = 32
$network_module = "lycoris.kohya"
$lycoris_algo = "locon"
$max_token_length = 225
$shuffle_caption = 1
$keep_tokens = 1
$seed = 1234
$save_precision = "bf16"
$mixed_precision = "bf16"
$save_every_n_epochs = 1
$save_last_n_epochs = 999
$gradient_checkpointing = 0
$gradient_accumulation_steps = 1
$max_data_loader_n_workers = 2

$run_parameters = "--network_module=$network_module --train_data_dir=`"$image_dir`""
$image_dir = $image_dir.TrimEnd("\", "/")
$max_train_steps=$max_train_steps / $train_batch_size
if ($is_sd_v2_ckpt -ge 1) {
  $run_parameters += " --v2"
}
$run_parameters += " --caption_extension=`".txt`" --prior_loss_weight=1 --enable_bucket --min_bucket_reso=256 --max_bucket_reso=1536 --xformers --save_model_as=safetensors --cache_latents"
powershell accelerate launch --num_cpu_threads_per_process $max_data_loader_n_workers train_network.py $run_parameters --persistent_data_loader_workers

