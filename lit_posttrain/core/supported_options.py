"""The Trainer's options: what each does here, or why another value than Lightning's default is refused."""

from __future__ import annotations

from lit_posttrain.core.supported import Support, refused, works

OPTIONS: dict[str, Support] = {
    "accelerator": works("see accelerators"),
    "accumulate_grad_batches": works("micro-batches that a step's --data.batch_size rows are cut into; same gradient"),
    "barebones": refused(
        "it switches off metrics, checkpoints and progress, which a run is kept by; for speed read perf/tokens_per_s"
    ),
    "benchmark": works("cuDNN's choice of convolutions, of which language models have few"),
    "callbacks": works("see callbacks"),
    "check_val_every_n_epoch": works("null counts --trainer.val_check_interval over epochs"),
    "default_root_dir": refused("a run's folder is --runs DIR (default runs) and --name NAME; pass those"),
    "detect_anomaly": works("names the operation whose gradient is NaN, slowly"),
    "deterministic": works("true or warn"),
    "devices": works("processes, on a CPU; GPUs"),
    "enable_autolog_hparams": works("config.yaml has them all in any case"),
    "enable_checkpointing": works("false keeps no checkpoints"),
    "enable_model_summary": works("prints the layers"),
    "enable_progress_bar": works("false shows none"),
    "fast_dev_run": works("a few micro-batches, and nothing on disk"),
    "gradient_clip_algorithm": works("norm, or value"),
    "gradient_clip_val": works("of the whole step's gradient; 1.0 by default, null or 0 does not clip"),
    "inference_mode": works("false validates with torch.no_grad"),
    "limit_predict_batches": works("predicts on the first batches alone"),
    "limit_test_batches": works("tests on the first batches alone"),
    "limit_train_batches": works("ends an epoch early, with whole steps; not for methods that sample their responses"),
    "limit_val_batches": works("validates on the first batches alone; 0 does not validate"),
    "log_every_n_steps": works("optimizer steps; 1 by default"),
    "logger": works("see loggers; kept beside metrics.csv and W&B, false logs nothing"),
    "max_epochs": works("1 by default; -1 for no end"),
    "max_steps": works("optimizer steps"),
    "max_time": works("DD:HH:MM:SS; the step at hand is finished and saved"),
    "min_epochs": works("before early stopping or max_time may end the run"),
    "min_steps": works("before early stopping or max_time may end the run"),
    "model_registry": refused("it uploads checkpoints to lightning.ai; export the model and upload the folder"),
    "num_nodes": works("with srun or torchrun, or MASTER_ADDR, MASTER_PORT and NODE_RANK on every node"),
    "num_sanity_val_steps": works("0 by default; does not count as a validation"),
    "overfit_batches": works("the same first rows in every epoch, to see whether a model can learn them"),
    "plugins": works("see plugins"),
    "precision": works("see precisions"),
    "profiler": works("see profilers"),
    "reload_dataloaders_every_n_epochs": refused(
        "rows are read once, when the run begins, and a new loader would begin at the first row again; leave it out"
    ),
    "strategy": works("see strategies"),
    "sync_batchnorm": refused("language models have no batch normalisation to synchronise; leave it out"),
    "use_distributed_sampler": works("the data is shared out among processes in either case"),
    "val_check_interval": works(
        "micro-batches, a share of an epoch, or a time; a multiple of --trainer.accumulate_grad_batches"
    ),
}
