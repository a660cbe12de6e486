"""What commands (and later web pages) may do with a node: plain values in, plain values out.

What looks into images stands in `admin.inspection` and is imported from there by those who need it: it takes a second
to load, and most commands only read records.
"""

from dicom_node.admin.node import Admin, Parts

__all__ = ["Admin", "Parts"]
