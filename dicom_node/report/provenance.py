"""Who made a result, when, of what and with what: the names of the objects and the statements that they carry.

Times and UIDs come in as values, so the same findings give the same bytes for ever. Nothing here reads a clock or makes
a random value; what highdicom fills in by itself is overwritten in `stamp`.

Sources: DICOM PS3.3 C.7.5.2 (Enhanced General Equipment), C.12.1 (SOP Common: Contributing Equipment), PS3.16 CID 7005.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from types import MappingProxyType
from typing import Literal, TypeAlias

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian

from dicom_node.findings import Findings
from dicom_node.ids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, derived_uid
from dicom_node.plugin_api import Manifest
from dicom_node.study import EQUIPMENT_MANUFACTURER

Kind: TypeAlias = Literal["sr", "seg"]

MODEL_NAME = "DICOM Node"

CONTENT_QUALIFICATION = "RESEARCH"
"""PS3.3 C.12.1: of every object we make; none of the models is a medical device."""

SERIES_NUMBERS: Mapping[Kind, int] = MappingProxyType({"seg": 9301, "sr": 9302})
"""Fixed for each kind, so that a repeated run does not look like new work; far above a scanner's own numbers."""

_ACQUISITION = Code("109101", "DCM", "Acquisition Equipment")
_PROCESSING = Code("109102", "DCM", "Processing Equipment")
_MAX_LO = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Predecessor:
    """A report of ours on an earlier state of the same series, which this one replaces."""

    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultIdentity:
    """Everything about a result that is not in its findings: names, time and maker, fixed when its job was made."""

    root_uid: str
    """Allocated with the job; every UID of its results derives from it (ARCHITECTURE, decision 4)."""
    device_uid: str
    """Device Observer UID: this installation of the node."""
    created_at: datetime
    """Aware; written as Content Date and Time."""
    input_digest: str
    """SHA-256 of the images that were judged."""
    node_version: str
    device_serial_number: str
    """Of this installation; at most 64 characters."""
    predecessors: tuple[Predecessor, ...] = ()
    """Reports of the jobs that this one supersedes, in the same study."""

    def __post_init__(self) -> None:
        if self.created_at.tzinfo is None:
            raise ValueError("created_at needs a time zone")

    def series_instance_uid(self, kind: Kind) -> str:
        """Return the Series Instance UID of the one series that holds this kind of object."""
        return derived_uid(self.root_uid, f"{kind}.series")

    def sop_instance_uid(self, kind: Kind) -> str:
        """Return the SOP Instance UID of the object."""
        return derived_uid(self.root_uid, f"{kind}.instance")

    def tracking_uid(self, number: int) -> str:
        """Return the Tracking UID of a finding: the same in SEG and SR."""
        return derived_uid(self.root_uid, f"tracking/{number}")

    @property
    def dimension_organization_uid(self) -> str:
        """Return the Dimension Organization UID of the SEG."""
        return derived_uid(self.root_uid, "seg.dimensions")


def series_description(manifest: Manifest, kind: Kind) -> str:
    """Return the name under which viewers list the result; a demonstrator says that it is one."""
    ending = f" {kind.upper()}" + (" (demonstrator, not clinical)" if manifest.plugin.demonstrator else "")
    return manifest.plugin.name[: _MAX_LO - len(ending)] + ending


def statements(findings: Findings, manifest: Manifest, identity: ResultIdentity) -> tuple[str, ...]:
    """Return what a reader must know of the result, in sentences; no patient attribute among them."""
    plugin, provenance = manifest.plugin, findings.provenance
    said = [f"Intended use: {plugin.intended_use}"]
    if plugin.demonstrator:
        said.insert(0, "Nothing clinical: this is the result of a demonstrator.")
    said += findings.notes
    parameters = algorithm_parameters(findings, identity)
    made = ", ".join(f"{name} {value}" for name, value in parameters.items())
    said.append(f"Made by {plugin.id} {provenance.plugin_version}: {made}.")
    return tuple(said)


def algorithm_parameters(findings: Findings, identity: ResultIdentity) -> dict[str, str]:
    """Return what is needed to make the findings again, by name."""
    provenance = findings.provenance
    return {
        "model sha256": provenance.model_sha256,
        "spec sha256": provenance.spec_sha256,
        "input digest": identity.input_digest,
        "engine": provenance.engine,
    }


def stamp(ds: Dataset, header: Dataset, findings: Findings, identity: ResultIdentity) -> None:
    """Put our names, times and equipment over what highdicom filled in at random or from the clock.

    Parameters
    ----------
    ds
        The built object; changed in place.
    header
        The cleaned header of the source, see `source.clean_header`.
    """
    created_at = _in_zone_of(header, identity.created_at)
    date, time = f"{created_at:%Y%m%d}", f"{created_at:%H%M%S.%f}"
    ds.InstanceCreationDate = ds.ContentDate = ds.SeriesDate = date
    ds.InstanceCreationTime = ds.ContentTime = ds.SeriesTime = time
    ds.PatientName = header.PatientName
    if "TimezoneOffsetFromUTC" in header:
        ds.TimezoneOffsetFromUTC = header.TimezoneOffsetFromUTC
    node = _equipment(EQUIPMENT_MANUFACTURER, MODEL_NAME, identity.device_serial_number, identity.node_version)
    node.PurposeOfReferenceCodeSequence = [_code_item(_PROCESSING)]
    node.ContributionDateTime = f"{created_at:%Y%m%d%H%M%S.%f%z}"
    node.ContributionDescription = "; ".join(f"{k} {v}" for k, v in algorithm_parameters(findings, identity).items())
    scanner = _acquisition_equipment(header)
    ds.ContributingEquipmentSequence = [scanner, node] if scanner else [node]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    ds.file_meta = meta


def _in_zone_of(header: Dataset, when: datetime) -> datetime:
    """Return the time in the zone that the source states, else in the zone it came in.

    The offset of a data set speaks for all of its dates and times (PS3.3 C.12.1.1.8), the copied ones included.
    """
    offset = str(header.get("TimezoneOffsetFromUTC", ""))
    if not offset:
        return when
    minutes = int(offset[1:3]) * 60 + int(offset[3:5])
    return when.astimezone(timezone(timedelta(minutes=-minutes if offset[0] == "-" else minutes)))


def _acquisition_equipment(header: Dataset) -> Dataset | None:
    """Return the scanner as contributing equipment; None where the source does not name its maker."""
    if not header.get("Manufacturer"):
        return None
    keywords = ("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions")
    item = _equipment(*(header.get(keyword, "") for keyword in keywords))
    item.PurposeOfReferenceCodeSequence = [_code_item(_ACQUISITION)]
    return item


def _equipment(manufacturer: str, model: str, serial_number: str, software: str) -> Dataset:
    item = Dataset()
    item.Manufacturer = manufacturer
    for keyword, value in (
        ("ManufacturerModelName", model),
        ("DeviceSerialNumber", serial_number),
        ("SoftwareVersions", software),
    ):
        if value:
            setattr(item, keyword, value)
    return item


def _code_item(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item
