"""This project's part of a checkpoint, beside weights, optimizer state and Lightning's loops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lit_posttrain.errors import PostTrainError

KEY = "lit_posttrain"


@dataclass
class RunState:
    """The state of a run at the end of an optimizer step. All values are plain or tensors, so that a checkpoint is read
    without unpickling code.

    method: name of the class. run: identity of the run's folder. head: the model's head, `lm` or `score`. policy: the
    `ModelSpec` as a dict. dtype: type of the weights in memory. ends: tokens that end a response. tokenizer, frozen:
    identities of the tokenizer and of the frozen models (models/identity.py). options: constructor arguments that
    decide the objective, by dotted name. optimizer: settings that a resumed run must share. steps_planned: optimizer
    steps of the whole run. num_tokens: tokens seen. totals: sums and counts of the metrics since the last log.
    router_load: shares of the experts in the last step. loader: place in the training data. parts: states of the
    method's components, by name.
    """

    method: str
    run: str | None
    head: str
    policy: dict[str, Any]
    dtype: str
    ends: list[str]
    tokenizer: dict[str, Any]
    frozen: dict[str, Any]
    options: dict[str, Any]
    optimizer: dict[str, Any]
    steps_planned: float
    num_tokens: float
    totals: dict[str, Any]
    router_load: Any
    loader: dict[str, Any] | None
    parts: dict[str, dict[str, Any]]

    def put_into(self, checkpoint: dict[str, Any]) -> None:
        """Write it into a checkpoint."""
        checkpoint[KEY] = {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any], where: Path | str) -> RunState:
        """Read it from a checkpoint. where: the checkpoint's name, for the error.

        Raises:
            PostTrainError: if this project did not write the checkpoint, or another version of it did.
        """
        if KEY not in checkpoint:
            raise PostTrainError(f"{where}: a checkpoint, but not one that lit-posttrain wrote")
        saved, known = checkpoint[KEY], {f.name for f in fields(cls)}
        if set(saved) != known:
            raise PostTrainError(
                f"{where}: from another version of lit-posttrain ({', '.join(sorted(known ^ set(saved)))}); use the "
                "version that wrote it"
            )
        return cls(**saved)
