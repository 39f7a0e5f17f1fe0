"""`lit-posttrain export`: a checkpoint as a Hugging Face folder."""

from __future__ import annotations

from lit_posttrain.cli.commands import call
from lit_posttrain.inference.export_paths import check_export
from lit_posttrain.models.spec import DType


def export(
    ckpt: str, out: str, adapter: bool = False, dtype: DType | None = None, trust_remote_code: bool = False
) -> int:
    """Turn a checkpoint into a Hugging Face folder with tokenizer, chat template and a model card. The folder is
    loaded again, and its logits are compared with the trained model's.

    Args:
        ckpt: A .ckpt file, or a run's folder (best.ckpt before last.ckpt).
        out: Folder to write; it must not exist or be empty.
        adapter: Write the LoRA adapters alone, for peft, instead of merging them.
        dtype: Type of the written weights. Default: that of the training run.
        trust_remote_code: Run Python code that comes with a hub model. Off unless you read that code.
    """
    check_export(ckpt, out)
    from lit_posttrain.inference.export import export_checkpoint
    from lit_posttrain.runtime import quiet_libraries

    quiet_libraries()
    done = export_checkpoint(ckpt, out, adapter=adapter, dtype=dtype, trust_remote_code=trust_remote_code)
    print(f"wrote {done.folder}: {done.checkpoint} (step {done.step:,}){' as an adapter' if adapter else ''}")
    print(
        f"loaded again it gives what the trained model gives, to {done.difference:.2g} (the largest {done.what} is "
        f"{done.scale:.3g})"
    )
    if done.needs_options:
        by = "" if done.untold is None else f" by {done.untold:.2g}"
        print(
            f"this holds if peft loads the base as it was in training, with the options that {done.folder}/README.md "
            f"shows; without them the {done.what}s differ{by}"
        )
    return 0


def run(args: list[str]) -> int:
    """Entry point."""
    return call(export, args)
