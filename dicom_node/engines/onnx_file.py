"""What a model file says before any runtime sees it: is it one file, and how wide is its first convolution?

A model is one file: weights outside it ("external data") would be read from wherever the model says, by a path that a
stranger wrote (CVE-2022-25882, CVE-2024-27318), so such a model is refused here, for every engine.

The node does not carry the `onnx` package for these questions; the few fields are read from the protocol buffer
here (field numbers: onnx/onnx.proto, IR version 3 and later).
"""

from __future__ import annotations

from collections.abc import Iterator

from dicom_node.errors import PluginError


def first_kernel_width(model: bytes) -> int:
    """Return the number of channels that the first convolution of a single-file model makes; 1 where there is none.

    Raises
    ------
    PluginError
        The bytes are no ONNX model, or its weights lie outside of it.
    """
    try:
        tensors = list(_tensors(model))
    except (IndexError, ValueError) as error:
        raise PluginError("the model file is no ONNX model") from error
    if any(is_external for _, is_external in tensors):
        raise PluginError("the model keeps its weights in another file; a model is one ONNX file")
    kernels = [dims for dims, _ in tensors if len(dims) >= 3]
    return kernels[0][0] if kernels else 1


_MESSAGES: dict[tuple[str, int], str] = {
    ("model", 7): "graph",
    ("model", 25): "function",
    ("function", 7): "node",
    ("graph", 1): "node",
    ("graph", 5): "tensor",
    ("graph", 15): "sparse",
    ("sparse", 1): "tensor",
    ("sparse", 2): "tensor",
    ("node", 5): "attribute",
    ("attribute", 5): "tensor",
    ("attribute", 6): "graph",
    ("attribute", 10): "tensor",
    ("attribute", 11): "graph",
    ("attribute", 22): "sparse",
    ("attribute", 23): "sparse",
}
"""(message, field number) -> message: every way from a ModelProto that runs down to a TensorProto."""

_TENSOR_DIMS, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 1, 13, 14


def _tensors(data: bytes) -> Iterator[tuple[tuple[int, ...], bool]]:
    """Yield (dimensions, has external data) of every tensor that a serialised ModelProto holds.

    Raises
    ------
    IndexError, ValueError
        The bytes are no protocol buffer.
    """
    waiting = [("model", memoryview(data))]
    while waiting:
        kind, body = waiting.pop()
        fields = list(_fields(body))
        if kind == "tensor":
            yield (
                _dims(fields),
                any(
                    number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and value == 1)
                    for number, value in fields
                ),
            )
            continue
        children = [
            (_MESSAGES[kind, number], value)
            for number, value in fields
            if (kind, number) in _MESSAGES and isinstance(value, memoryview)
        ]
        waiting.extend(reversed(children))


def _dims(fields: list[tuple[int, int | memoryview]]) -> tuple[int, ...]:
    """Return the dimensions of a TensorProto, packed or not."""
    dims: list[int] = []
    for number, value in fields:
        if number != _TENSOR_DIMS:
            continue
        if isinstance(value, int):
            dims.append(value)
            continue
        at = 0
        while at < len(value):
            size, at = _varint(value, at)
            dims.append(size)
    return tuple(dims)


def _fields(body: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, value) of one message: an integer, or the bytes of a field with a length."""
    at = 0
    while at < len(body):
        key, at = _varint(body, at)
        number, wire = key >> 3, key & 7
        value: int | memoryview
        if wire == 0:
            value, at = _varint(body, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            value, at = body[at : at + size], at + size
        elif wire == 2:
            size, at = _varint(body, at)
            value, at = body[at : at + size], at + size
        else:
            raise ValueError(f"wire type {wire}")
        if at > len(body):
            raise ValueError("a field is longer than its message")
        yield number, value


def _varint(body: memoryview, at: int) -> tuple[int, int]:
    """Return a base-128 integer and where the next field begins."""
    value = shift = 0
    while True:
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("an integer of more than 64 bits")
