"""The one writer of synthetic DICOM: an array and an affine become a CT or MR series on disk.

Tests, the demo and the phantoms of model_build make their studies here; the node itself never calls it on the way of a
study. Nothing is random and no clock is read: UIDs and dates are arguments. Geometry goes into the positions; the
header hints (Slice Thickness) agree with them unless `headers` says otherwise, which is how tests make bad studies.

An oblique study of three slices, whose files come in the order last, first, middle::

    affine = np.diag([0.8, 0.8, 2.0, 1.0])  # voxel (x, y, z) -> LPS mm
    affine[:3, 3] = (-10.0, -12.0, 40.0)
    paths = write_series(
        folder, array, affine, headers={"SeriesDescription": "QA PHANTOM", "StudyDate": "20260131"},
        study_instance_uid=root + ".1", series_instance_uid=root + ".2", frame_of_reference_uid=root + ".3",
        uid_root=root, order=(2, 0, 1),
    )

Sources: DICOM PS3.3 A.3 (CT), A.4 (MR), A.36.2 (Enhanced MR), A.38.1 (Enhanced CT), C.7.6.2.1.1 (Image Plane),
C.7.6.16 (Multi-frame Functional Groups); PS3.10 7 (file format).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
)

from dicom_node.ids import derived_uid

__all__ = ["Headers", "write_series"]

Headers: TypeAlias = Mapping[str, object]
"""Attribute keyword -> value put into every instance over the writer's own; None leaves the attribute out."""

Modality: TypeAlias = Literal["CT", "MR"]

_SOP_CLASSES: Mapping[tuple[str, bool], UID] = MappingProxyType(
    {
        ("CT", False): CTImageStorage,
        ("MR", False): MRImageStorage,
        ("CT", True): EnhancedCTImageStorage,
        ("MR", True): EnhancedMRImageStorage,
    }
)

_DEFAULT_INTERCEPT: Mapping[str, float] = MappingProxyType({"CT": -1024.0, "MR": 0.0})
"""Not zero for CT, so that a reader that forgets the modality LUT is found out."""

_COMMON: Headers = MappingProxyType(
    {
        "PatientName": "QA^Phantom",
        "PatientID": "QA-PHANTOM",
        "PatientBirthDate": "",
        "PatientSex": "O",
        "StudyDate": "20260101",
        "StudyTime": "120000",
        "StudyID": "1",
        "StudyDescription": "Synthetic study",
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "SeriesNumber": 1,
        "SeriesDescription": "Synthetic series",
        "ContentDate": "20260101",
        "ContentTime": "120000",
        "PatientPosition": "HFS",
        "PositionReferenceIndicator": "",
        "Manufacturer": "Synthetic",
        "ManufacturerModelName": "Synthetic",
        "DeviceSerialNumber": "0",
        "SoftwareVersions": "1",
    }
)

_CLASSIC: Mapping[str, Headers] = MappingProxyType(
    {
        "CT": {
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
            "KVP": 120,
            "AcquisitionNumber": 1,
            "RescaleType": "HU",
        },
        "MR": {
            "ImageType": ["ORIGINAL", "PRIMARY", "OTHER"],
            "ScanningSequence": "GR",
            "SequenceVariant": "NONE",
            "ScanOptions": "",
            "MRAcquisitionType": "3D",
            "RepetitionTime": 10.0,
            "EchoTime": 4.0,
            "EchoTrainLength": 1,
            "MagneticFieldStrength": 3.0,
        },
    }
)


_FRAME_TYPE = ("DERIVED", "PRIMARY", "VOLUME", "NONE")
"""Of enhanced objects: an ORIGINAL one must describe the pulse sequence or the X-ray tube, which is not here."""


@dataclass(frozen=True, eq=False, kw_only=True)
class _Stack:
    """A series that is being written: stored values and where each slice lies."""

    stored: NDArray[np.int16]
    affine: NDArray[np.float64]
    modality: Modality
    slope: float
    intercept: float
    uids: tuple[str, str, str]
    """Study, series, frame of reference."""
    uid_root: str

    @property
    def orientation(self) -> list[float]:
        """Return the cosines along a row, then down a column: Image Orientation (Patient)."""
        along_row, down_column = self.affine[:3, 0], self.affine[:3, 1]
        return _decimals([*along_row / np.linalg.norm(along_row), *down_column / np.linalg.norm(down_column)])

    @property
    def pixel_spacing(self) -> list[float]:
        """Return the distance between rows, then between columns, in mm: Pixel Spacing."""
        return _decimals([np.linalg.norm(self.affine[:3, 1]), np.linalg.norm(self.affine[:3, 0])])

    @property
    def slice_distance(self) -> float:
        """Return the distance between slices along the normal in mm; a sheared stack's is shorter than its step."""
        x, y, z = self.affine[:3, :3].T
        normal = np.cross(x, y)
        return _decimals([abs(float(normal @ z)) / float(np.linalg.norm(normal))])[0]

    def position(self, z: int) -> list[float]:
        """Return the centre of the first voxel of slice `z` in LPS mm: Image Position (Patient)."""
        return _decimals(self.affine[:3, 3] + z * self.affine[:3, 2])


def write_series(
    folder: Path,
    array_zyx: ArrayLike,
    affine_lps: ArrayLike,
    *,
    modality: Modality = "CT",
    headers: Headers = MappingProxyType({}),
    study_instance_uid: str,
    series_instance_uid: str,
    frame_of_reference_uid: str,
    uid_root: str,
    order: Sequence[int] | None = None,
    enhanced: bool = False,
    rescale_slope: float = 1.0,
    rescale_intercept: float | None = None,
) -> list[Path]:
    """Write a series in Explicit VR Little Endian and return its files, in the order of Instance Number.

    Parameters
    ----------
    folder
        Made when absent; the files are IM0001.dcm and so on, the patient "QA^Phantom".
    array_zyx
        (Z, Y, X), in HU for CT; stored as int16 after the inverse of the rescale, rounded.
    affine_lps
        4x4, voxel (x, y, z) -> LPS mm; the z axis is the order of the slices and may be oblique or sheared.
    modality
        CT or MR.
    headers
        Overrides for every instance; see `Headers`.
    study_instance_uid, series_instance_uid, frame_of_reference_uid
        Written as they are.
    uid_root
        SOP Instance UIDs are derived from it, the series and the slice's index: the same arguments, the same UIDs.
    order
        Slice index of each file (or of each frame of an enhanced object) in turn; default 0, 1, 2 ...
    enhanced
        One Enhanced CT or MR object with a frame for each slice, instead of one instance a slice.
    rescale_slope, rescale_intercept
        The modality LUT; the default intercept is -1024 for CT and 0 for MR.

    Raises
    ------
    ValueError
        When the array is not three-dimensional or does not fit int16, or `order` names a slice that is not there.
    """
    array = np.asarray(array_zyx)
    if array.ndim != 3:
        raise ValueError(f"an array (Z, Y, X) is needed, not one of shape {array.shape}")
    slices = list(range(array.shape[0])) if order is None else [int(z) for z in order]
    if not all(0 <= z < array.shape[0] for z in slices):
        raise ValueError(f"order names a slice outside 0..{array.shape[0] - 1}")
    intercept = _DEFAULT_INTERCEPT[modality] if rescale_intercept is None else rescale_intercept
    stack = _Stack(
        stored=_stored_values(array, rescale_slope, intercept),
        affine=np.asarray(affine_lps, dtype=np.float64),
        modality=modality,
        slope=rescale_slope,
        intercept=intercept,
        uids=(study_instance_uid, series_instance_uid, frame_of_reference_uid),
        uid_root=uid_root,
    )
    instances = [_enhanced(stack, slices)] if enhanced else [_classic(stack, z, k) for k, z in enumerate(slices, 1)]
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, ds in enumerate(instances, 1):
        _override(ds, headers)
        path = folder / f"IM{number:04d}.dcm"
        ds.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def _stored_values(array: NDArray[Any], slope: float, intercept: float) -> NDArray[np.int16]:
    """Return the int16 values whose modality LUT gives `array` back, to half a slope."""
    stored = np.rint((array.astype(np.float64) - intercept) / slope)
    limits = np.iinfo(np.int16)
    if stored.size and not (limits.min <= stored.min() and stored.max() <= limits.max):
        raise ValueError(f"values {array.min()} to {array.max()} do not fit int16 with slope {slope} and {intercept}")
    return stored.astype(np.int16)


def _decimals(values: ArrayLike) -> list[float]:
    """Return floats that a Decimal String of 16 characters holds exactly (PS3.5 6.2), to 1e-8; no negative zero."""
    return [round(float(value), 8) + 0.0 for value in np.asarray(values, dtype=np.float64)]


def _override(ds: Dataset, headers: Headers) -> None:
    """Put `headers` over what stands in the dataset."""
    for keyword, value in headers.items():
        if value is None:
            if keyword in ds:
                delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)


def _new_instance(stack: _Stack, role: str, *, enhanced: bool) -> FileDataset:
    """Return an instance with what classic and enhanced images share; its SOP Instance UID is derived from `role`."""
    study_instance_uid, series_instance_uid, frame_of_reference_uid = stack.uids
    sop_class_uid = _SOP_CLASSES[stack.modality, enhanced]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class_uid
    meta.MediaStorageSOPInstanceUID = UID(derived_uid(stack.uid_root, f"{series_instance_uid}/{role}"))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID = sop_class_uid
    ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study_instance_uid, series_instance_uid
    ds.FrameOfReferenceUID = frame_of_reference_uid
    ds.Modality = stack.modality
    _override(ds, _COMMON)
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = stack.stored.shape[1:]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    return ds


def _classic(stack: _Stack, z: int, instance_number: int) -> FileDataset:
    """Return slice `z` as an instance of CT Image Storage or MR Image Storage."""
    ds = _new_instance(stack, f"slice/{z}", enhanced=False)
    _override(ds, _CLASSIC[stack.modality])
    ds.Laterality = ""
    ds.InstanceNumber = instance_number
    ds.ImagePositionPatient = stack.position(z)
    ds.ImageOrientationPatient = stack.orientation
    ds.PixelSpacing = stack.pixel_spacing
    ds.SliceThickness = stack.slice_distance
    if stack.modality == "CT" or (stack.slope, stack.intercept) != (1.0, 0.0):
        ds.RescaleSlope, ds.RescaleIntercept = stack.slope, stack.intercept
    ds.PixelData = stack.stored[z].tobytes()
    return ds


def _item(**values: object) -> Dataset:
    """Return a dataset with these attributes; keywords as names."""
    ds = Dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def _enhanced(stack: _Stack, slices: Sequence[int]) -> FileDataset:
    """Return all slices as the frames of one enhanced object, in the order of `slices`."""
    ds = _new_instance(stack, "enhanced", enhanced=True)
    ds.InstanceNumber = 1
    ds.ImageType = list(_FRAME_TYPE)
    ds.PixelPresentation, ds.VolumetricProperties = "MONOCHROME", "VOLUME"
    ds.VolumeBasedCalculationTechnique = "NONE"
    ds.AcquisitionDateTime, ds.AcquisitionDuration, ds.AcquisitionNumber = "20260101120000", 1.0, 1
    ds.ContentQualification = "RESEARCH"
    ds.LossyImageCompression, ds.PresentationLUTShape, ds.BurnedInAnnotation = "00", "IDENTITY", "NO"
    ds.AcquisitionContextSequence = []
    if stack.modality == "MR":
        ds.ComplexImageComponent, ds.AcquisitionContrast = "MAGNITUDE", "UNKNOWN"
        ds.KSpaceFiltering, ds.MagneticFieldStrength = "NONE", 3.0
        ds.ResonantNucleus, ds.ApplicableSafetyStandardAgency = "1H", "IEC"
    organization_uid = derived_uid(stack.uid_root, f"{stack.uids[1]}/dimensions")
    ds.DimensionOrganizationSequence = [_item(DimensionOrganizationUID=organization_uid)]
    ds.DimensionIndexSequence = [
        _item(
            DimensionOrganizationUID=organization_uid,
            DimensionIndexPointer=pointer,
            FunctionalGroupPointer=0x00209111,  # Frame Content Sequence
        )
        for pointer in (0x00209056, 0x00209057)  # Stack ID, In-Stack Position Number
    ]
    ds.NumberOfFrames = len(slices)
    ds.SharedFunctionalGroupsSequence = [_shared_groups(stack)]
    ds.PerFrameFunctionalGroupsSequence = [_frame_groups(stack, z) for z in slices]
    ds.PixelData = stack.stored[list(slices)].tobytes()
    return ds


def _shared_groups(stack: _Stack) -> Dataset:
    """Return what all frames of an enhanced object have in common."""
    measures = _item(PixelSpacing=stack.pixel_spacing, SliceThickness=stack.slice_distance)
    unit = "HU" if stack.modality == "CT" else "US"
    rescale = _item(RescaleIntercept=stack.intercept, RescaleSlope=stack.slope, RescaleType=unit)
    frame_type = _item(
        FrameType=list(_FRAME_TYPE),
        PixelPresentation="MONOCHROME",
        VolumetricProperties="VOLUME",
        VolumeBasedCalculationTechnique="NONE",
    )
    groups = _item(
        PixelMeasuresSequence=[measures],
        PlaneOrientationSequence=[_item(ImageOrientationPatient=stack.orientation)],
        PixelValueTransformationSequence=[rescale],
    )
    region = _item(CodeValue="38266002", CodingSchemeDesignator="SCT", CodeMeaning="Whole body")
    groups.FrameAnatomySequence = [_item(AnatomicRegionSequence=[region], FrameLaterality="U")]
    if stack.modality == "CT":
        event_uid = derived_uid(stack.uid_root, f"{stack.uids[1]}/irradiation")
        groups.IrradiationEventIdentificationSequence = [_item(IrradiationEventUID=event_uid)]
        groups.CTImageFrameTypeSequence = [frame_type]
    else:
        frame_type.ComplexImageComponent, frame_type.AcquisitionContrast = "MAGNITUDE", "UNKNOWN"
        groups.MRImageFrameTypeSequence = [frame_type]
    return groups


def _frame_groups(stack: _Stack, z: int) -> Dataset:
    """Return the place of one frame."""
    content = _item(StackID="1", InStackPositionNumber=z + 1, DimensionIndexValues=[1, z + 1])
    return _item(
        FrameContentSequence=[content],
        PlanePositionSequence=[_item(ImagePositionPatient=stack.position(z))],
    )
