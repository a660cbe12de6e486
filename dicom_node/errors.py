"""The errors of the node: one tree, each with a sentence that says what to do.

    DicomNodeError
    +-- ConfigError                  config.toml or plugin.toml is wrong             (exit 2)
    +-- CertificateError             certificate, key or CA cannot be used (dimse.tls)  (exit 2)
    +-- UsageError                   a command was called with what it cannot take    (exit 2)
    +-- NotFoundError                a study, job, plugin or peer is not there        (exit 3)
    +-- UnreachableError             a peer does not answer                           (exit 4, retryable)
    +-- QueryError                   a peer does not answer a query, or refuses it    (retryable)
    +-- RefusedInputError            images that must not be judged; `reason` in words
    |   +-- UndecodableError         a file or its pixels cannot be decoded
    |   +-- GeometryError            positions, orientations or sizes do not make one volume
    |   +-- NotApplicableError       a plugin's requirements are not met by the series
    +-- PluginError                  a plugin is broken: manifest, weights or model
    |   +-- ModelMismatchError       sha256 or tensors differ from what the manifest declares
    +-- EngineError                  a runtime failed while inferring                 (retryable)
    |   +-- OutOfMemoryError         the device or the host had too little memory     (retryable)
    |   +-- UnsupportedModelError    the runtime cannot run this model
    |   +-- DeviceLostError          the graphics card answers no more                 (retryable)
    +-- ResultError                  a result contradicts its source or itself and must not leave
    +-- LimitExceededError           a job went over its declared time or memory
    +-- ChildDiedError               a process that worked for us ended without an answer (retryable)
    +-- StorageError                 bytes could not be made durable                  (0xA700, retryable)
    +-- RecordsError                 the database is locked, full or away             (retryable)
    +-- SchemaError                  the database is of another version than the program (exit 2)
    +-- LeaseLostError               another worker owns the job now; its late write was refused
    +-- IllegalTransitionError       a state and an event that do not go together
    +-- DeliveryError                a destination did not take a result
        +-- TransientDeliveryError   try again later                                  (retryable)
        +-- RejectedDeliveryError    it will never take this object as it is

`retryable` says whether the same work may succeed later without anybody changing anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar


class DicomNodeError(Exception):
    """The node could not do what was asked; see the log for the action that failed."""

    retryable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").splitlines()[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigProblem:
    """One thing that is wrong in a TOML file: where, and what to do about it."""

    file: Path
    line: int | None
    message: str

    def __str__(self) -> str:
        where = f"{self.file.name}:{self.line}" if self.line else self.file.name
        return f"{where}: {self.message}"


class ConfigError(DicomNodeError):
    """The configuration is wrong; correct the lines that are named."""

    exit_code = 2

    def __init__(self, problems: tuple[ConfigProblem, ...]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


class UsageError(DicomNodeError):
    """The command was called with something it cannot take; see --help."""

    exit_code = 2


class NotFoundError(DicomNodeError):
    """What was asked for is not here; the list commands show what is."""

    exit_code = 3


class UnreachableError(DicomNodeError):
    """The peer does not answer; check its address, its port and the network."""

    retryable = True
    exit_code = 4


class QueryError(DicomNodeError):
    """The peer answers no query (C-FIND), or not to the end; ask its administrator whether this node may query."""

    retryable = True


class RefusedInputError(DicomNodeError):
    """The images cannot be judged; the reason says which property stands in the way."""

    @property
    def reason(self) -> str:
        """The sentence that an administrator or a radiologist reads."""
        return str(self)


class UndecodableError(RefusedInputError):
    """The file or its pixels cannot be decoded; ask the sender for an uncompressed copy."""


class GeometryError(RefusedInputError):
    """The frames do not make one volume; check for missing, doubled or mixed slices."""


class NotApplicableError(RefusedInputError):
    """The plugin does not apply to this series; `dicom-node route explain` shows the conditions."""


class PluginError(DicomNodeError):
    """The plugin is broken; `dicom-node plugins check` names the defect."""


class ModelMismatchError(PluginError):
    """The model file is not the one that the manifest declares; install it again."""


class EngineError(DicomNodeError):
    """The inference runtime failed; the job will be tried again."""

    retryable = True


class OutOfMemoryError(EngineError):
    """Too little memory for this input; raise the plugin's limit or use smaller windows."""


class UnsupportedModelError(EngineError):
    """The runtime cannot run this model; choose another engine in plugin.toml."""

    retryable = False


class DeviceLostError(EngineError):
    """The graphics card answers no more; the job goes on without it. Look at the card and its driver."""


class ResultError(DicomNodeError):
    """The result contradicts its source images or itself and was not sent; report this with the job's number."""


class LimitExceededError(DicomNodeError):
    """The job went over the time or memory that its plugin declares and was stopped."""


class ChildDiedError(DicomNodeError):
    """The process that infers ended without an answer; the job will be tried again."""

    retryable = True


class StorageError(DicomNodeError):
    """The bytes could not be made durable; free disk space or repair the disk."""

    retryable = True
    dimse_status: ClassVar[int] = 0xA700
    """PS3.4 Table B.2-1: Refused, Out of Resources."""


class RecordsError(DicomNodeError):
    """The database cannot be used now: it is locked, full or away; the work is tried again."""

    retryable = True


class SchemaError(DicomNodeError):
    """The database is of another version than this program; run `dicom-node migrate`, or install the newer program."""

    exit_code = 2


class LeaseLostError(DicomNodeError):
    """The job belongs to another worker now; this worker's result was thrown away."""


class IllegalTransitionError(DicomNodeError):
    """The state does not allow this; `jobs show` tells where the job stands."""


class DeliveryError(DicomNodeError):
    """The destination did not take the result; `deliveries list` shows its answer."""

    def __init__(self, message: str | None = None, *, status: int | None = None) -> None:
        self.status = status
        super().__init__(message)


class TransientDeliveryError(DeliveryError):
    """The destination could not take the result now; it will be sent again."""

    retryable = True


class RejectedDeliveryError(DeliveryError):
    """The destination refuses this kind of object; change its profile or its configuration."""
