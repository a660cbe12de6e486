"""What comparisons found, kept beside a plugin's weights: which engine may serve a model, and which one does.

One file a plugin, `data_dir/models/<plugin>/engines.json`. A verdict speaks of one model, one spec and one engine on
one machine: another digest or another fingerprint makes it void. Without a valid verdict the reference serves.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from dicom_node.engines.registry import REFERENCE
from dicom_node.errors import PluginError

FILE: Final = "engines.json"
"""In data_dir/models/<plugin>; infer.registry names it too, for it loads no runtime."""
_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one comparison of one engine with the reference found."""

    engine: str
    """Its name in plugin.toml."""
    fingerprint: str
    """Of the engine that was compared: runtime, version, device, precision."""
    model_sha256: str
    spec_sha256: str
    passed: bool
    reasons: tuple[str, ...]
    """Why it did not pass, in words."""
    relative_error: float
    """Greatest difference of an output from the reference's, as a part of the reference's greatest value."""
    label_disagreement: float
    """Part of the network's positions that would get another label."""
    same_findings: bool
    seconds: float
    """Of the network, over all cases; the fastest of the rounds."""
    reference_seconds: float
    n_cases: int
    compared_at: str
    """ISO 8601 with zone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """All that is known of a plugin's engines."""

    engines: Mapping[str, Verdict] = field(default_factory=lambda: MappingProxyType({}))
    use: str | None = None
    """The engine that somebody chose by name; None: the fastest that passed."""

    def with_verdict(self, verdict: Verdict) -> Verdicts:
        """Return these with a new verdict in the place of an older one of the same engine."""
        return Verdicts(engines={**self.engines, verdict.engine: verdict}, use=self.use)


def candidates(
    verdicts: Verdicts, allowed: Collection[str], *, model_sha256: str, spec_sha256: str
) -> tuple[Verdict, ...]:
    """Return the verdicts of the engines that may serve before the reference, the fastest first. Pure.

    Parameters
    ----------
    allowed
        The engines that the manifest names.
    """
    if verdicts.use == REFERENCE:
        return ()
    fit = [
        verdict
        for name, verdict in verdicts.engines.items()
        if verdict.passed
        and name in allowed
        and name != REFERENCE
        and (verdict.model_sha256, verdict.spec_sha256) == (model_sha256, spec_sha256)
    ]
    if verdicts.use is not None:
        return tuple(verdict for verdict in fit if verdict.engine == verdicts.use)
    faster = [verdict for verdict in fit if verdict.seconds < verdict.reference_seconds]
    return tuple(sorted(faster, key=lambda verdict: verdict.seconds / verdict.reference_seconds))


def read_verdicts(path: Path) -> Verdicts:
    """Return what the file holds; nothing where there is none.

    Raises
    ------
    PluginError
        The file is damaged: removing it puts the reference in charge.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Verdicts()
    except (OSError, ValueError) as error:
        raise PluginError(f"{path.name} cannot be read ({error}); remove it, or compare the engines again") from error
    try:
        if told["version"] != _VERSION:
            raise ValueError(f"version {told['version']}")
        engines = {
            name: Verdict(**{**verdict, "reasons": tuple(verdict["reasons"])})
            for name, verdict in told["engines"].items()
        }
        return Verdicts(engines=engines, use=told["use"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise PluginError(
            f"{path.name} is not understood ({error}); remove it, or compare the engines again"
        ) from error


def write_verdicts(path: Path, verdicts: Verdicts) -> None:
    """Replace the file at once: a reader sees the old verdicts or the new ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    engines = {name: asdict(verdict) for name, verdict in sorted(verdicts.engines.items())}
    part.write_text(
        json.dumps({"version": _VERSION, "use": verdicts.use, "engines": engines}, indent=2) + "\n", encoding="utf-8"
    )
    part.rename(path)
