"""[[input_series]]: what a plugin says of stacks and missing slices becomes the policy by which its series are read."""

from __future__ import annotations

import tomllib

import pytest

from dicom_node.imaging.stacks import ReadPolicy, StackPreference
from dicom_node.plugin_api import InputSeries


def policy(text: str) -> ReadPolicy:
    """Return the policy of an entry, written as in plugin.toml."""
    (table,) = tomllib.loads(f'[[input_series]]\nrole = "image"\n{text}')["input_series"]
    return InputSeries.model_validate(table).policy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ReadPolicy(stacks="choose", preferences=(), missing_slices=0, min_slices=2)),
        ('stacks = "refuse"\nmin_slices = 60', ReadPolicy(stacks="refuse", min_slices=60)),
        ('missing_slices = "refuse"', ReadPolicy()),
        ("missing_slices = 3", ReadPolicy(missing_slices=3)),
        (
            'stack = [{ keyword = "EchoTime", prefer = "largest" }]',
            ReadPolicy(preferences=(StackPreference(keyword="EchoTime", prefer="largest"),)),
        ),
        (
            'stack = [{ keyword = "ComplexImageComponent", equals = "MAGNITUDE" }, '
            '{ keyword = "DiffusionBValue", equals = 1000 }]',
            ReadPolicy(
                preferences=(
                    StackPreference(keyword="ComplexImageComponent", equals="MAGNITUDE"),
                    StackPreference(keyword="DiffusionBValue", equals="1000.0"),
                )
            ),
        ),
    ],
)
def test_what_a_plugin_says_is_the_policy(text: str, expected: ReadPolicy) -> None:
    """The default refuses gaps and chooses one of several stacks."""
    assert expected == policy(text)


@pytest.mark.parametrize(
    "text",
    [
        'stacks = "all"',
        "missing_slices = 0",
        "missing_slices = 17",
        'missing_slices = "interpolate"',
        'stack = [{ keyword = "EchoTime" }]',
        'stack = [{ keyword = "EchoTime", prefer = "largest", equals = 5 }]',
        'stack = [{ keyword = "EchoTime", prefer = "first" }]',
        'stack = [{ prefer = "largest" }]',
    ],
)
def test_what_a_plugin_cannot_mean_is_refused(text: str) -> None:
    """A wish that says nothing, or two things, is an error of the manifest."""
    with pytest.raises(ValueError, match="validation error"):
        policy(text)
