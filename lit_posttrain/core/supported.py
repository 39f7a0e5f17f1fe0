"""What becomes of everything that Lightning ships: it works here, or it is refused with the reason and a remedy.

One table, from which docs/lightning.md is written (tools/lightning_table.py) and by which trainer_checks.py refuses. A
test compares it with what the installed Lightning has, and runs every row: what a new version adds must be decided.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Support:
    """works: True if it may be used. says: what it does here, or why it is refused and what to do instead."""

    works: bool
    says: str


def works(says: str) -> Support:
    """A row that works."""
    return Support(True, says)


def refused(says: str) -> Support:
    """A row that is refused before training."""
    return Support(False, says)


_BASE = refused("a base class that does nothing by itself; name a subclass of it")
_BUILT_LATER = "the model is built after this callback looks for its layers"
_ONE_STEP = "--data.batch_size is the number of conversations of an optimizer step"
_FSDP2 = "shard with --config configs/with/fsdp2.yaml instead"
_DDP = "pass --trainer.strategy ddp instead"
_XLA = refused("nothing here has been tried on TPUs; run on a CPU or a GPU")
_PRECISION = refused("pass --trainer.precision instead, which chooses the plugin")
_OWN_CHECKPOINTS = refused(
    "checkpoints are written whole or not at all by this project's AtomicCheckpointIO; leave it out"
)
_SPAWNED = "its processes are not started as this command was, and do not give back what they trained; "
_CLUSTER = works("found by itself; to be named where it is not")

CALLBACKS = {
    "BackboneFinetuning": refused(
        f"{_BUILT_LATER}; to train fewer weights use adapters (--config configs/with/lora.yaml)"
    ),
    "BaseFinetuning": refused(f"{_BUILT_LATER}; to train fewer weights use adapters (--config configs/with/lora.yaml)"),
    "BasePredictionWriter": _BASE,
    "BatchSizeFinder": refused(
        f"{_ONE_STEP}, so a larger one is other training; to fit a step into memory raise "
        "--trainer.accumulate_grad_batches, which changes no gradient"
    ),
    "Callback": _BASE,
    "Checkpoint": _BASE,
    "DeviceStatsMonitor": works("figures of the device go to the loggers"),
    "EMAWeightAveraging": works(
        "validation, `last.ckpt`, `best.ckpt` and exports have the average; of steps, not of ends of epochs; not with "
        "adapters or sharded weights"
    ),
    "EarlyStopping": works("`mode` must be the direction of the metric; stops between optimizer steps, and can resume"),
    "GradientAccumulationScheduler": refused(
        f"{_ONE_STEP} however it is cut into micro-batches, so a schedule would change nothing but memory; give one "
        "number as --trainer.accumulate_grad_batches"
    ),
    "LambdaCallback": works("its functions are given by import path, such as my_module.my_function"),
    "LearningRateFinder": refused(
        "it trains with rising rates on the first rows and cannot reach the optimizer's options; compare short runs "
        "(--trainer.max_steps 50) with different --model.optim.lr"
    ),
    "LearningRateMonitor": works("logs the rate of every parameter group; `train/lr` is logged anyway"),
    "ModelCheckpoint": works(
        "keeps further checkpoints beside `last.ckpt` and `best.ckpt`; `mode` must be the direction of the metric"
    ),
    "ModelPruning": refused(
        "it renames the weights that it prunes, and exports would lack them; prune the exported folder instead"
    ),
    "ModelSummary": works("prints the layers; the run's plan has the number of parameters anyway"),
    "OnExceptionCheckpoint": refused(
        "with it Lightning begins a new run from an earlier run's file, without being asked; leave it out: an error "
        "saves `last.ckpt`"
    ),
    "ProgressBar": _BASE,
    "RichModelSummary": works("prints the layers with rich"),
    "RichProgressBar": works("replaces this project's bar; counts micro-batches of an epoch"),
    "SpikeDetection": works("ends the run with an error at a micro-batch whose loss jumps"),
    "StochasticWeightAveraging": refused(
        "it copies the model before it is built, and averages after the last checkpoint; use EMAWeightAveraging or "
        "WeightAveraging"
    ),
    "TQDMProgressBar": works("replaces this project's bar; counts micro-batches of an epoch"),
    "ThroughputMonitor": refused(
        "every run has this project's own, which logs perf/tokens_per_s and perf/mfu; leave it out (options: "
        "--throughput.peak_tflops)"
    ),
    "Timer": works("ends the run after a time, between optimizer steps; `--trainer.max_time` is the same"),
    "WeightAveraging": works("as EMAWeightAveraging, with an equal average of all steps"),
}

TUNER = {
    "lr_find": CALLBACKS["LearningRateFinder"],
    "scale_batch_size": CALLBACKS["BatchSizeFinder"],
}

PROFILERS = {
    "AdvancedProfiler": works("prints cProfile's figures at the end; `advanced`"),
    "PassThroughProfiler": works("measures nothing"),
    "Profiler": _BASE,
    "PyTorchProfiler": works("prints torch's figures at the end and writes a trace into the run's folder; `pytorch`"),
    "SimpleProfiler": works("prints the time of every hook at the end; `simple`"),
    "XLAProfiler": _XLA,
}
PROFILER_NAMES = {
    "simple": "SimpleProfiler",
    "advanced": "AdvancedProfiler",
    "pytorch": "PyTorchProfiler",
    "xla": "XLAProfiler",
}

LOGGERS = {
    "CSVLogger": works("beside `metrics.csv`"),
    "CometLogger": works("needs the package comet-ml and its API key"),
    "DummyLogger": works("logs nothing"),
    "LitLogger": refused("it uploads to lightning.ai; use --wandb.mode online, or TensorBoardLogger"),
    "Logger": _BASE,
    "MLFlowLogger": works("needs the package mlflow"),
    "NeptuneLogger": refused("Lightning has given it up; use --wandb.mode online, or MLFlowLogger"),
    "TensorBoardLogger": works("needs the package tensorboard"),
    "WandbLogger": refused("every run logs to Weights & Biases already; its options are --wandb.project, --wandb.mode"),
}

PLUGINS = {
    "AsyncCheckpointIO": _OWN_CHECKPOINTS,
    "BitsandbytesPrecision": refused(
        "it is CUDA-only, and looks for layers before the model is built; pass --model.policy.quantization nf4 or int8"
    ),
    "CheckpointIO": _OWN_CHECKPOINTS,
    "ClusterEnvironment": _BASE,
    "DeepSpeedPrecision": _PRECISION,
    "DoublePrecision": _PRECISION,
    "FSDPPrecision": _PRECISION,
    "HalfPrecision": _PRECISION,
    "KubeflowEnvironment": _CLUSTER,
    "LSFEnvironment": _CLUSTER,
    "LayerSync": refused("language models have no batch normalisation to synchronise; leave it out"),
    "LightningEnvironment": _CLUSTER,
    "MPIEnvironment": _CLUSTER,
    "MixedPrecision": _PRECISION,
    "Precision": _PRECISION,
    "SLURMEnvironment": works(
        "found by itself; at its signal (`sbatch --signal=SIGUSR1@90`) the run saves `last.ckpt` at a step's end and "
        "requeues the job, if that was started with --resume auto or --resume NAME"
    ),
    "TorchCheckpointIO": _OWN_CHECKPOINTS,
    "TorchElasticEnvironment": _CLUSTER,
    "TorchSyncBatchNorm": refused("language models have no batch normalisation to synchronise; leave it out"),
    "TransformerEnginePrecision": _PRECISION,
    "XLACheckpointIO": _OWN_CHECKPOINTS,
    "XLAEnvironment": _XLA,
    "XLAPrecision": _PRECISION,
}

_DEEPSPEED = refused(f"DeepSpeed keeps gradients and checkpoints in a form of its own; {_FSDP2}")
_FSDP1 = refused(f"FSDP1 is not supported; {_FSDP2}")
_DDP_WORKS = works("every process has the whole model")
_UNUSED_WORKS = works("as `ddp`; for a model of which some trained weights get no gradient in a step")
_SPAWN = refused(_SPAWNED + _DDP)
_NOTEBOOK = refused(_SPAWNED + "in a notebook train on one device, or run lit-posttrain fit")
STRATEGIES = {
    "DDPStrategy": _DDP_WORKS,
    "DeepSpeedStrategy": _DEEPSPEED,
    "FSDP2Strategy": works("shards the model over processes: `--config configs/with/fsdp2.yaml`"),
    "FSDPStrategy": _FSDP1,
    "ModelParallelStrategy": refused(f"by default it shards nothing and gives all processes the same rows; {_FSDP2}"),
    "ParallelStrategy": _BASE,
    "SingleDeviceStrategy": works("one process"),
    "SingleDeviceXLAStrategy": _XLA,
    "Strategy": _BASE,
    "XLAStrategy": _XLA,
    "auto": works("one process, or `ddp` where there are several devices"),
    "ddp": _DDP_WORKS,
    "ddp_find_unused_parameters_false": _DDP_WORKS,
    "ddp_find_unused_parameters_true": _UNUSED_WORKS,
    "ddp_fork": _SPAWN,
    "ddp_fork_find_unused_parameters_false": _SPAWN,
    "ddp_fork_find_unused_parameters_true": _SPAWN,
    "ddp_notebook": _NOTEBOOK,
    "ddp_notebook_find_unused_parameters_false": _NOTEBOOK,
    "ddp_notebook_find_unused_parameters_true": _NOTEBOOK,
    "ddp_spawn": _SPAWN,
    "ddp_spawn_find_unused_parameters_false": _SPAWN,
    "ddp_spawn_find_unused_parameters_true": _SPAWN,
    "deepspeed": _DEEPSPEED,
    "deepspeed_stage_1": _DEEPSPEED,
    "deepspeed_stage_2": _DEEPSPEED,
    "deepspeed_stage_2_offload": _DEEPSPEED,
    "deepspeed_stage_3": _DEEPSPEED,
    "deepspeed_stage_3_offload": _DEEPSPEED,
    "deepspeed_stage_3_offload_nvme": _DEEPSPEED,
    "fsdp": _FSDP1,
    "fsdp_cpu_offload": _FSDP1,
    "single_device": works("one process"),
    "single_tpu": _XLA,
    "single_xla": _XLA,
    "xla": _XLA,
    "xla_debug": _XLA,
}

_TRANSFORMER_ENGINE = refused("float8 layers of Transformer Engine are not supported; pass bf16-mixed")
PRECISIONS = {
    "16": works("as 16-mixed"),
    "16-mixed": works("float16 with a scaled loss on a GPU; on a CPU Lightning takes bf16-mixed, and says so"),
    "16-true": refused("small gradients and AdamW's eps are 0 in float16; pass 16-mixed, bf16-mixed or bf16-true"),
    "32": works("as 32-true"),
    "32-true": works("float32; the default on CPUs without fast bfloat16"),
    "64": works("as 64-true"),
    "64-true": works("float64"),
    "bf16": works("as bf16-mixed"),
    "bf16-mixed": works("weights in float32, matrix products in bfloat16; the default on GPUs"),
    "bf16-true": works("weights in bfloat16, and small steps are lost in it: half of the memory"),
    "transformer-engine": _TRANSFORMER_ENGINE,
    "transformer-engine-float16": _TRANSFORMER_ENGINE,
}

ACCELERATORS = {
    "auto": works("a GPU where there is one"),
    "cpu": works("any number of processes"),
    "cuda": works("NVIDIA GPUs"),
    "gpu": works("a GPU of any kind"),
    "mps": works("Apple's GPU, one process"),
    "tpu": _XLA,
}
