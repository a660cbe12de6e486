"""Reading: files -> headers and frames -> volumes and masks. Shared with model_build; it never writes DICOM on its own.

Way in: `describe` one instance, `group_series` of a folder, `load_volume` of a series. Whatever cannot be read or does
not make one volume is refused with a reason (`UndecodableError`, `GeometryError`).
"""

from dicom_node.reading.content import content_or_itself
from dicom_node.reading.description import describe, describe_bytes
from dicom_node.reading.kinds import class_name
from dicom_node.reading.nifti import read_nifti, read_nrrd, write_nifti
from dicom_node.reading.seg_reader import Region, read_masks, read_regions
from dicom_node.reading.series import (
    SeriesFiles,
    UnreadableFile,
    find_files,
    group_series,
    load_volume,
    plane_notes,
    read_headers,
    why_no_volume,
)

__all__ = [
    "Region",
    "SeriesFiles",
    "UnreadableFile",
    "class_name",
    "content_or_itself",
    "describe",
    "describe_bytes",
    "find_files",
    "group_series",
    "load_volume",
    "plane_notes",
    "read_headers",
    "read_masks",
    "read_nifti",
    "read_nrrd",
    "read_regions",
    "why_no_volume",
    "write_nifti",
]
