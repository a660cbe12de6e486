"""The records of the node: one database, and the only SQL in the house.

One file per aggregate: `studies`, `jobs`, `deliveries`, `decisions`, `pauses`. Values go in and come out; a caller
never sees a connection, except to join `enqueue` to a transaction of its own.
"""

from dicom_node.records.contents import Contents, StoredVersion
from dicom_node.records.database import Database, DatabaseCheck, open_database
from dicom_node.records.decisions import Decided, DecisionRow, Decisions, NewDecision
from dicom_node.records.deliveries import Deliveries
from dicom_node.records.holding import Identity
from dicom_node.records.job_values import (
    FORWARD,
    FORWARDED_KIND,
    ClaimedDelivery,
    ClaimedJob,
    DeliveryRow,
    JobDetail,
    JobRow,
    NewJob,
    NewResult,
    Priority,
)
from dicom_node.records.jobs import Jobs
from dicom_node.records.pauses import PauseKind, PauseRow, Pauses
from dicom_node.records.purging import PurgedFile, Purges
from dicom_node.records.studies import Studies
from dicom_node.records.study_values import (
    Arrived,
    LiveAssociation,
    SeriesEvidence,
    SeriesLayout,
    StudyEvidence,
    StudyRow,
    planes_of,
    slice_spacing_mm,
)
from dicom_node.records.versions import OnConflict
from dicom_node.records.withdrawing import Withdrawn

__all__ = [
    "FORWARD",
    "FORWARDED_KIND",
    "Arrived",
    "ClaimedDelivery",
    "ClaimedJob",
    "Contents",
    "Database",
    "DatabaseCheck",
    "Decided",
    "DecisionRow",
    "Decisions",
    "Deliveries",
    "DeliveryRow",
    "Identity",
    "JobDetail",
    "JobRow",
    "Jobs",
    "LiveAssociation",
    "NewDecision",
    "NewJob",
    "NewResult",
    "OnConflict",
    "PauseKind",
    "PauseRow",
    "Pauses",
    "Priority",
    "PurgedFile",
    "Purges",
    "SeriesEvidence",
    "SeriesLayout",
    "StoredVersion",
    "Studies",
    "StudyEvidence",
    "StudyRow",
    "Withdrawn",
    "open_database",
    "planes_of",
    "slice_spacing_mm",
]
