"""Arrays and millimetres: grids, volumes, what a network reads, masks and their measurements. Pure."""

from dicom_node.imaging.geometry import Grid
from dicom_node.imaging.mask import crop_mask
from dicom_node.imaging.measure import measure
from dicom_node.imaging.preprocess import Prepared, prepare
from dicom_node.imaging.volume import Volume

__all__ = ["Grid", "Prepared", "Volume", "crop_mask", "measure", "prepare"]
