"""Numbers of the Trainer with which nothing would be trained. Needs no torch: the command line looks at them first."""

from __future__ import annotations

from collections.abc import Mapping

from lit_posttrain.errors import PostTrainError

# options that Lightning takes and divides by, or takes for something else, below these
_LEAST: dict[str, float] = {
    "accumulate_grad_batches": 1,
    "log_every_n_steps": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "min_epochs": 0,
    "min_steps": 0,
    "num_sanity_val_steps": -1,
}
_NOT_ZERO = ("limit_train_batches", "max_steps", "max_epochs")
NUMBERS = (*_LEAST, "val_check_interval", *_NOT_ZERO)


def check_numbers(given: Mapping[str, float | None]) -> None:
    """Refuse numbers that a run cannot be right with. given: options of the Trainer by name, those that are known.

    Raises:
        PostTrainError: naming the option of the command line, which has the name of the Trainer's argument.
    """
    known = {option: value for option, value in given.items() if value is not None}
    for option, least in _LEAST.items():
        if known.get(option, least) < least:
            raise PostTrainError(f"--trainer.{option} is {known[option]}; it must be at least {least:g}")
    if known.get("val_check_interval") == 0:
        raise PostTrainError(
            "--trainer.val_check_interval is 0; to leave validation out pass --trainer.limit_val_batches 0"
        )
    for option in _NOT_ZERO:
        if known.get(option) == 0:
            raise PostTrainError(
                f"--trainer.{option} is 0: nothing would be trained; leave it out, or use `lit-posttrain validate`"
            )
    for lower, upper in (("min_epochs", "max_epochs"), ("min_steps", "max_steps")):
        low, high = known.get(lower), known.get(upper)
        if low is not None and high is not None and high >= 0 and low > high:
            raise PostTrainError(
                f"--trainer.{lower} is {low} and --trainer.{upper} {high}: lower the one or raise the other"
            )
