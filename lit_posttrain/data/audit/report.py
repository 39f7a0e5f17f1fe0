"""The audit: what was read, what became of it, and what a person should look at before training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from lit_posttrain.data.audit.compared import Compared
from lit_posttrain.data.audit.figures import AuditFigures, Share
from lit_posttrain.data.audit.file_audit import FileAudit
from lit_posttrain.data.audit.table import table_of
from lit_posttrain.data.audit.warnings import warnings_of


@dataclass
class AuditReport(AuditFigures):
    """The figures of a data set, as warnings, as a table and as JSON."""

    @property
    def warnings(self) -> list[str]:
        """What a person should look at, a line each."""
        return warnings_of(self)

    def table(self) -> str:
        """The audit as plain text, at most 100 columns wide unless names are longer."""
        return table_of(self)

    def renamed(self, names: Sequence[str], paths: Sequence[str]) -> Self:
        """The report with its files called `names`, found under `paths`: a cache may have been filled under others."""
        for file, name, path in zip(self.files, names, paths, strict=True):
            file.name, file.path = name, path
        return self

    def to_json(self) -> str:
        """JSON that `from_json` reads; warnings are in it for people and other programs."""
        return json.dumps(self._to_dict(), indent=1)

    def _to_dict(self) -> dict[str, Any]:
        validation = {name: report._to_dict() for name, report in self.validation.items()}
        return {**asdict(self), "validation": validation, "warnings": self.warnings}

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`."""
        return cls._from_dict(json.loads(text))

    @classmethod
    def _from_dict(cls, values: dict[str, Any]) -> Self:
        values.pop("warnings")
        made = cls(**values)
        made.files = [FileAudit.from_dict(file) for file in values["files"]]
        made.total = FileAudit.from_dict(values["total"])
        made.mix = [Share(**share) for share in values["mix"]]
        made.compared = Compared(**values["compared"]) if values["compared"] else None
        made.validation = {name: cls._from_dict(report) for name, report in values["validation"].items()}
        return made
