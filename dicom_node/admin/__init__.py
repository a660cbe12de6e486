"""What commands (and later web pages) may do with a node: plain values in, plain values out."""

from dicom_node.admin.inspection import Picture, draw_outlines, measure_mask
from dicom_node.admin.node import Admin, Parts

__all__ = ["Admin", "Parts", "Picture", "draw_outlines", "measure_mask"]
