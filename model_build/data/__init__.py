"""Data: labelled images become cases, parts and patches. Every image comes through `dicom_node.reading`. No torch."""

from model_build.data.augment import Augmentation, augment
from model_build.data.card import as_markdown, data_card, survey
from model_build.data.cases import Case, find_cases
from model_build.data.patches import Example, draw_batch, make_example, volume_of
from model_build.data.split import leaks, split

__all__ = [
    "Augmentation",
    "Case",
    "Example",
    "as_markdown",
    "augment",
    "data_card",
    "draw_batch",
    "find_cases",
    "leaks",
    "make_example",
    "split",
    "survey",
    "volume_of",
]
