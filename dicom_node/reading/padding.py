"""Which values of an image stand for no measurement: Pixel Padding Value, and the range up to its limit.

They stay in the volume as they are stored; a step that computes statistics may leave them out by `PixelPadding.range`.

Sources: DICOM PS3.3 C.7.5.1.1.2 (Pixel Padding Value and Pixel Padding Range Limit), C.7.6.24 (floating point).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dicom_node.reading.decode import ModalityLut, PixelLayout
from dicom_node.reading.header import Attributes, floats


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelPadding:
    """Stored values that stand for padding, from the lowest to the highest."""

    low: float
    high: float

    def range(self, lut: ModalityLut) -> tuple[float, float]:
        """Return the lowest and the highest padding value in the unit of the modality.

        A table maps to its own ends what lies outside it, so padding may coincide with true values there.
        """
        if lut.table is not None:
            last = len(lut.table) - 1
            places = [min(max(int(end) - lut.first_stored, 0), last) for end in (self.low, self.high)]
            ends = [float(value) for value in lut.table[min(places) : max(places) + 1]]
        else:
            ends = [end * lut.slope + lut.intercept for end in (self.low, self.high)]
        return min(ends), max(ends)


def padding_of(attributes: Attributes, layout: PixelLayout) -> PixelPadding | None:
    """Return which stored values stand for padding; None when the image names none.

    The VR may be that of the other sign, and is often wrong: the value counts as Pixel Representation says.
    """
    names = ("PixelPaddingValue", "PixelPaddingRangeLimit")
    if layout.is_float:
        prefix = "Float" if layout.bits_allocated == 32 else "DoubleFloat"
        names = (f"{prefix}PixelPaddingValue", f"{prefix}PixelPaddingRangeLimit")
    value, limit = (_stored(attributes, name, layout) for name in names)
    if value is None:
        return None
    ends = (value, value if limit is None else limit)
    return PixelPadding(low=min(ends), high=max(ends))


def _stored(attributes: Attributes, keyword: str, layout: PixelLayout) -> float | None:
    raw: Any = attributes.get(keyword) if keyword in attributes else None
    if isinstance(raw, bytes):  # implicit VR, where the sign is told by another attribute
        return float(int.from_bytes(raw[:2], "little", signed=layout.signed)) if len(raw) >= 2 else None
    found = floats(attributes, keyword, 1)
    if found is None or layout.is_float:
        return None if found is None else found[0]
    value, span = int(found[0]), 1 << layout.bits_allocated
    if layout.signed:
        return float((value + span // 2) % span - span // 2)
    return float(value % span)
