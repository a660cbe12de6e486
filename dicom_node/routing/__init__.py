"""The decision: is a study or series complete, which plugin gets it, and why not."""

from dicom_node.routing.completeness import (
    AssociationEvidence,
    Completeness,
    IsComplete,
    SeriesEvidence,
    StudyEvidence,
    WaitUntil,
    assess,
)
from dicom_node.routing.explain import as_json, lines, reason, why_not
from dicom_node.routing.rates import RATE_WINDOW, over_rate
from dicom_node.routing.rules import Forward, Outcome, RouteDecision, apply_routes, choose_series, judge_series

__all__ = [
    "RATE_WINDOW",
    "AssociationEvidence",
    "Completeness",
    "Forward",
    "IsComplete",
    "Outcome",
    "RouteDecision",
    "SeriesEvidence",
    "StudyEvidence",
    "WaitUntil",
    "apply_routes",
    "as_json",
    "assess",
    "choose_series",
    "judge_series",
    "lines",
    "over_rate",
    "reason",
    "why_not",
]
