"""Which engine serves a plugin in this child: the fastest that passed its comparison, else the reference.

A verdict binds engine, model, spec and machine together; it is read anew for each job, so that a new comparison or a
roll-back counts from the next job on, without a restart.
"""

from __future__ import annotations

from dataclasses import replace

from dicom_node.engines import REFERENCE, Engine, Setting, load_engine, load_model
from dicom_node.engines.serving import ServingEngine
from dicom_node.engines.verdicts import Verdict, candidates, read_verdicts
from dicom_node.errors import EngineError, ModelMismatchError, PluginError
from dicom_node.findings import Findings
from dicom_node.infer.registry import Plugin

__all__ = ["PluginEngine"]


class PluginEngine:
    """The engine of one plugin in one child: loaded once, chosen anew when the verdicts change."""

    def __init__(self, plugin: Plugin, *, threads: int) -> None:
        self._plugin = plugin
        self._threads = threads
        self._serving: ServingEngine | None = None
        self._chosen: tuple[Verdict, ...] = ()
        self._passed_over: tuple[str, ...] = ()
        self._unread: tuple[str, ...] = ()

    def engine(self) -> ServingEngine:
        """Return the engine that serves the next job.

        Raises
        ------
        PluginError
            The model cannot be read.
        ModelMismatchError
            The model is not the declared one, or the spec not the published one.
        EngineError
            Not even the reference can run it.
        """
        chosen, self._unread = self._verdicts()
        if self._serving is not None and (chosen != self._chosen or self._serving.has_fallen_back):
            self._serving.close()
            self._serving = None
        if self._serving is None:
            self._serving = self._load(chosen)
            self._chosen = chosen
        return self._serving

    def noted(self, findings: Findings) -> Findings:
        """Return the findings with what happened to the engine while they were made."""
        happened = self._serving.take_events() if self._serving else ()
        events = self._unread + self._passed_over + happened
        return replace(findings, notes=(*findings.notes, *events)) if events else findings

    def _verdicts(self) -> tuple[tuple[Verdict, ...], tuple[str, ...]]:
        """Return the engines to try, and what stood in the way of knowing them."""
        try:
            verdicts = read_verdicts(self._plugin.verdicts_path)
        except PluginError as error:
            return (), (f"the reference engine serves: {error}",)
        manifest = self._plugin.manifest
        return candidates(
            verdicts,
            manifest.runtime.engines,
            model_sha256=self._plugin.model_sha256,
            spec_sha256=manifest.spec_sha256(),
        ), ()

    def _load(self, chosen: tuple[Verdict, ...]) -> ServingEngine:
        if (defect := self._plugin.spec_defect()) is not None:
            raise ModelMismatchError(defect)
        model = load_model(self._plugin.model_path, self._plugin.model_sha256)

        def reference() -> Engine:
            return load_engine(REFERENCE, model, Setting(threads=self._threads))

        manifest = self._plugin.manifest
        setting = Setting(
            threads=self._threads,
            profile=manifest.shape_ranges(),
            cache=self._plugin.verdicts_path.with_name("engines"),
        )
        self._passed_over = ()
        for verdict in chosen:
            try:
                engine = load_engine(verdict.engine, model, setting)
            except EngineError as error:
                self._passed_over += (f"{verdict.engine} was passed over: {error}",)
                continue
            if engine.fingerprint == verdict.fingerprint:
                on_a_card = verdict.engine.startswith("tensorrt")
                batch = manifest.inference.batch if manifest.inference.window else None
                return ServingEngine(engine, reference, batch=batch, pads=on_a_card)
            self._passed_over += (f"{engine.fingerprint} was passed over: {verdict.fingerprint} was compared",)
            engine.close()
        return ServingEngine(reference(), None)
