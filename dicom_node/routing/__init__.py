"""The decision: is a study or series complete, which plugin gets it, and why not."""

from dicom_node.routing.completeness import (
    AssociationEvidence,
    Completeness,
    Evidence,
    IsComplete,
    Reopened,
    SeriesEvidence,
    StudyEvidence,
    WaitUntil,
    assess,
)
from dicom_node.routing.explain import as_json, lines, reason, why_not
from dicom_node.routing.habits import Habit, PastSeries, habit_of
from dicom_node.routing.rates import RATE_WINDOW, over_rate
from dicom_node.routing.rules import Forward, Outcome, RouteDecision, apply_routes, choose_series, judge_series
from dicom_node.routing.stack import Stack, stack_of

__all__ = [
    "RATE_WINDOW",
    "AssociationEvidence",
    "Completeness",
    "Evidence",
    "Forward",
    "Habit",
    "IsComplete",
    "Outcome",
    "PastSeries",
    "Reopened",
    "RouteDecision",
    "SeriesEvidence",
    "Stack",
    "StudyEvidence",
    "WaitUntil",
    "apply_routes",
    "as_json",
    "assess",
    "choose_series",
    "habit_of",
    "judge_series",
    "lines",
    "over_rate",
    "reason",
    "stack_of",
    "why_not",
]
