"""From ONNX to a TensorRT engine: one path for TensorRT 10.12 and later, 11, and TensorRT-RTX.

The module (`tensorrt` or `tensorrt_rtx`) is handed in; nothing here needs a driver or a card, so that TensorRT-RTX
proves parse and build on any machine. Networks are strongly typed: the ONNX file alone carries the precision. What the
parser says is brought back in words: node, operator, reason.

Names of variables are those of tests/unit/test_tensorrt_api.py, which compares each attribute with the real bindings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from dicom_node.engines.base import ShapeRange
from dicom_node.errors import OutOfMemoryError, PluginError, UnsupportedModelError

WORKSPACE_BYTES: Final = 4 << 30
"""What a layer's algorithm may take beside its tensors; a builder that may have more finds little that is faster."""

PRECISIONS: Final = ("fp32", "tf32")
"""fp32 as the reference; tf32 lets convolutions round to 10 bits of mantissa (what TensorRT does if not told)."""


_WITHOUT_TIMINGS: Final = "tensorrt_rtx"
"""Measures on the user's machine when an engine is loaded; its timing caches are no-ops that warn (since 1.2)."""


class _Journal:
    """Keeps what the library says, instead of its standard error; the last error is its reason."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def words(self) -> str:
        """Return the last errors, or that there were none."""
        return "; ".join(self.errors[-3:]) or "the library gave no reason"


def make_logger(trt: Any) -> tuple[Any, _Journal]:
    """Return a logger for the library and what it keeps."""
    journal = _Journal()

    class Listener(trt.ILogger):  # type: ignore[misc]
        """The library calls `log`."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            """Keep errors; warnings are many and change nothing."""
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                journal.errors.append(msg.strip())

    return Listener(), journal


def build(
    trt: Any,
    model: bytes,
    profile: Sequence[ShapeRange],
    *,
    precision: str = "fp32",
    timing_cache: bytes = b"",
    capability: str | None = None,
) -> tuple[bytes, bytes]:
    """Return (serialised engine, timing cache).

    Parameters
    ----------
    model
        A single-file ONNX model, its digest verified.
    profile
        A range for each input with dynamic axes.
    timing_cache
        What an earlier build measured; b"" for none, and always with TensorRT-RTX, which keeps none.
    capability
        "SM89" builds for such a card without having one (TensorRT-RTX alone); None: for the card that is here.

    Raises
    ------
    PluginError
        The bytes are no ONNX model.
    UnsupportedModelError
        An operator is unknown, a range is missing or does not fit, or the builder finds no way.
    OutOfMemoryError
        The builder ran out of memory.
    """
    if precision not in PRECISIONS:
        raise UnsupportedModelError(f"TensorRT takes the precision from the model and offers {', '.join(PRECISIONS)}")
    logger, journal = make_logger(trt)
    builder = trt.Builder(logger)
    if builder is None:
        raise UnsupportedModelError(f"TensorRT has no builder here: {journal.words()}")
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        raise _parse_error(trt, [parser.get_error(index) for index in range(parser.num_errors)])
    if network.num_outputs == 0:
        # The parser takes a text or nothing at all for a model without nodes.
        raise PluginError("the model file is no ONNX model")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    if precision == "tf32":
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    if capability is not None:
        _target(trt, config, capability)
    config.add_optimization_profile(_profile(builder, network, profile))
    timing = None if trt.__name__ == _WITHOUT_TIMINGS else _timings(config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        words = journal.words()
        if "out of memory" in words.lower() or "OutOfMemory" in words:
            raise OutOfMemoryError(f"too little memory to build the engine: {words}")
        raise UnsupportedModelError(f"TensorRT cannot build this model: {words}")
    return bytes(plan), b"" if timing is None else bytes(timing.serialize())


def flags_of(precision: str, capability: str | None) -> Mapping[str, str]:
    """Return what the builder is told, as a part of the cache's key."""
    return {"workspace": str(WORKSPACE_BYTES), "tf32": str(precision == "tf32"), "target": capability or "current"}


def model_digest(model: bytes) -> str:
    """Return the SHA-256 of a model, hexadecimal."""
    return hashlib.sha256(model).hexdigest()


def _timings(config: Any, timing_cache: bytes) -> Any:
    """Return the timing cache of a build: the one that was kept, or an empty one where the library refuses that."""
    timing = config.create_timing_cache(timing_cache)
    if not config.set_timing_cache(timing, False):
        # Of another release or card, or damaged: measured anew.
        timing = config.create_timing_cache(b"")
        config.set_timing_cache(timing, False)
    return timing


def _target(trt: Any, config: Any, capability: str) -> None:
    """Build for a card that need not be here."""
    targets = getattr(trt, "ComputeCapability", None)
    if targets is None:
        raise UnsupportedModelError("only TensorRT-RTX builds for a card that is not here")
    if capability not in targets.__members__:
        known = ", ".join(name for name in targets.__members__ if name.startswith("SM"))
        raise UnsupportedModelError(f"TensorRT-RTX builds for {known}, not for {capability!r}")
    config.num_compute_capabilities = 1
    config.set_compute_capability(targets.__members__[capability], 0)


def _profile(builder: Any, network: Any, ranges: Sequence[ShapeRange]) -> Any:
    """Return the optimisation profile; every input with dynamic axes needs a range that fits it."""
    given = {each.tensor: each for each in ranges}
    optimisation = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        name, shape = str(tensor.name), tuple(tensor.shape)
        declared = f"{name} [{', '.join('?' if size < 0 else str(size) for size in shape)}]"
        wanted = given.pop(name, None)
        if wanted is None:
            if any(size < 0 for size in shape):
                raise UnsupportedModelError(
                    f"input {declared} has dynamic axes and no shapes to build for; give `shape` in [[input]]"
                )
            continue
        fits = len(wanted.most) == len(shape) and all(
            size < 0 or size == low == high for size, low, high in zip(shape, wanted.least, wanted.most, strict=True)
        )
        if not fits:
            raise UnsupportedModelError(f"input {declared} cannot have the shapes {wanted.least} to {wanted.most}")
        optimisation.set_shape(name, wanted.least, wanted.usual, wanted.most)
    if given:
        raise UnsupportedModelError(f"shapes are given for {', '.join(given)}, which the model does not take")
    return optimisation


def _parse_error(trt: Any, faults: Sequence[Any]) -> PluginError | UnsupportedModelError:
    """Return the parser's complaints as one error in words."""
    if any(fault.code() == trt.ErrorCode.MODEL_DESERIALIZE_FAILED for fault in faults):
        return PluginError("the model file is no ONNX model")
    told = [_words(fault) for fault in faults[:3]]
    if len(faults) > len(told):
        told.append(f"and {len(faults) - len(told)} more")
    return UnsupportedModelError(f"TensorRT cannot read this model: {'; '.join(told) or 'the parser gave no reason'}")


def _words(fault: Any) -> str:
    """Return one complaint: which node, which operator, why."""
    where = f"node {fault.node_name()!r} " if fault.node_name() else f"node number {fault.node()} "
    operator = f"(operator {fault.node_operator()}) " if fault.node_operator() else ""
    return f"{where}{operator}{fault.code().name}: {' '.join(str(fault.desc()).split())}"
