"""Values that the tests of the records share: a database on disk, a study in it, a job that reads its images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dicom_node.clock import ManualClock
from dicom_node.ids import ProcessIdentity
from dicom_node.records import Database, Deliveries, Jobs, NewJob, NewResult, Studies, open_database
from dicom_node.study import Association, FiledInstance, Frame, InstanceDescription, JobInput

START = datetime(2026, 1, 1, tzinfo=UTC)
STUDY = "1.2.3"
SERIES = "1.2.3.4"
OWNER = ProcessIdentity(boot_id="boot", pid=10, start_ticks=7)
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


class Records:
    """The aggregates of one fresh database, and the clock they share."""

    def __init__(self, path: Path, *, is_new: bool = True) -> None:
        self.clock = ManualClock(START)
        if is_new:
            path.write_bytes(_migrated_file())
        self.database: Database = open_database(path, clock=self.clock)
        self.studies = Studies(self.database)
        self.jobs = Jobs(self.database)
        self.deliveries = Deliveries(self.database)


@cache
def _migrated_file() -> bytes:
    """Return the bytes of an empty, migrated database: each test copies them, migrating anew would take longer."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "records.sqlite"
        database = open_database(path, clock=ManualClock(START))
        database.migrate()
        database.close()  # the last connection folds the write-ahead log into the file
        return path.read_bytes()


def image(
    number: int = 1,
    *,
    study: str = STUDY,
    series: str = SERIES,
    version: str = "a",
    at: datetime = START,
    association: str | None = None,
    is_image: bool = True,
    made_by_us: bool = False,
    z_mm: float | None = None,
    header: Mapping[str, Mapping[str, Any]] | None = None,
    patient_id: str = "P1",
) -> tuple[FiledInstance, InstanceDescription]:
    """Return one filed instance and its description; `version` stands for its content."""
    sop = f"{series}.{number}"
    digest = hashlib.sha256(f"{sop}{version}".encode()).hexdigest()
    filed = FiledInstance(
        sop_instance_uid=sop,
        sop_class_uid="1.2.840.10008.5.1.4.1.1.4",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        digest=digest,
        path=Path("store") / digest,
        size_bytes=1000,
        calling_ae="SCANNER",
        called_ae="DICOM_NODE",
        received_at=at,
        association=association,
    )
    description = InstanceDescription(
        study_instance_uid=study,
        series_instance_uid=series,
        sop_instance_uid=sop,
        sop_class_uid=filed.sop_class_uid,
        transfer_syntax_uid=filed.transfer_syntax_uid,
        patient_id=patient_id,
        is_image=is_image,
        made_by_us=made_by_us,
        n_frames=1,
        header=header or {"00080060": {"vr": "CS", "Value": ["MR"]}},
        frames=(frame(sop, float(number) if z_mm is None else z_mm),),
    )
    return filed, description


def frame(sop: str, z_mm: float, orientation: tuple[float, float, float, float, float, float] = AXIAL) -> Frame:
    """Return a frame at a height of `z_mm`."""
    return Frame(
        sop_instance_uid=sop,
        frame_number=1,
        position_mm=(0.0, 0.0, z_mm),
        orientation=orientation,
        pixel_spacing_mm=(1.0, 1.0),
        rows=4,
        columns=4,
        frame_of_reference_uid="1.9",
    )


def association(id_: str = "a1", *, at: datetime = START) -> Association:
    """Return an association of the scanner."""
    return Association(
        id=id_, calling_ae="SCANNER", called_ae="DICOM_NODE", address="127.0.0.1", peer="ct1", opened_at=at
    )


def new_job(records: Records, *, series: str = SERIES, **changes: Any) -> NewJob:
    """Return a job on the present images of a series, its input digest made of theirs."""
    images = records.studies.series_images(STUDY, series)
    given: dict[str, Any] = {
        "route": "brain",
        "plugin": "brain_mask",
        "plugin_version": "1.0.0",
        "input": JobInput(study_instance_uid=STUDY, roles={"t1": images}),
        "input_digest": hashlib.sha256("".join(one.digest for one in images).encode()).hexdigest(),
        "series_instance_uid": series,
        "destinations": {"pacs": ("sr", "seg")},
        "result_roles": ("seg.instance", "sr.instance"),
    }
    return NewJob(**(given | changes))


def results_of(uids: Mapping[str, str]) -> tuple[NewResult, ...]:
    """Return a SEG and an SR under the UIDs that a job was given."""
    return tuple(
        NewResult(
            kind=kind,
            sop_class_uid="1.2.840.10008.5.1.4.1.1.66.4",
            sop_instance_uid=uids[f"{kind}.instance"],
            series_instance_uid=f"2.25.{number}",
            path=Path("results") / f"{kind}.dcm",
            digest=str(number) * 64,
        )
        for number, kind in enumerate(("seg", "sr"))
    )


def later(seconds: float) -> datetime:
    """Return the time `seconds` after the start."""
    return START + timedelta(seconds=seconds)
