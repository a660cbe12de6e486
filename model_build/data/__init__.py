"""Data: labelled images become cases, parts and patches. Every image comes through `dicom_node.reading`. No torch."""

from model_build.data.patches import Example, draw_batch, make_example, volume_of

__all__ = ["Example", "draw_batch", "make_example", "volume_of"]
