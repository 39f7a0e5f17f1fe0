"""The signal by which SLURM announces the end of a job's time (`sbatch --signal=SIGUSR1@90`), and requeueing the job.

Lightning's own handler saves at once, also in the middle of an optimizer step.
"""

from __future__ import annotations

import os
import signal
import subprocess


def requeue_signals() -> list[int]:
    """The signals at which Lightning requeues a job, once it has set its handlers; none outside of SLURM, or if its
    SLURMEnvironment does not requeue."""
    ends = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.getsignal(number) for number in sorted(signal.valid_signals()) if number not in ends}
    return [n for n, handler in handlers.items() if type(handler).__module__.startswith("lightning.pytorch.trainer")]


def requeue_job() -> str:
    """Ask SLURM to requeue this job. Returns a sentence on the outcome."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    command = ["scontrol", "requeue", job]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as problem:
        said = (getattr(problem, "stderr", None) or str(problem)).strip().splitlines()
        return f"the job is not requeued: `{' '.join(command)}` failed ({said[0] if said else type(problem).__name__})"
    return f"job {job} is requeued"
