"""The pure parts of benchmarks/: statistics, order of runs, judgement of targets, the line of JSON, templates."""

from __future__ import annotations

import json
import math
from io import BytesIO

import pytest
from pydicom import dcmread

from benchmarks.corpus import KINDS, Corpus, Kind, make_corpus, make_template
from benchmarks.measure import Report, Target, interleaved, paired_ratios, percentile, spread, table

SMALL = Kind(name="small", modality="CT", shape=(1, 8, 8), count=3, quick_count=2)


def test_order_turns_with_each_round():
    """A B C, then C B A: drift within a round favours no receiver."""
    expected = [(0, "a"), (0, "b"), (0, "c"), (1, "c"), (1, "b"), (1, "a"), (2, "a"), (2, "b"), (2, "c")]
    assert expected == interleaved(["a", "b", "c"], 3)


def test_ratios_compare_within_a_round():
    """Peer time over our time, round by round; a round that one of them lacks is an error."""
    assert [2.0, 0.5] == paired_ratios([1.0, 4.0], [2.0, 2.0])
    with pytest.raises(ValueError, match="zip"):
        paired_ratios([1.0, 4.0], [2.0])


def test_spread_is_median_and_extremes():
    """The median of an even number lies between the two in the middle."""
    found = spread([4.0, 1.0, 2.0, 9.0])
    assert (3.0, 1.0, 9.0, 4) == (found.median, found.low, found.high, found.count)
    assert "3 [1-9]" == str(found)
    with pytest.raises(ValueError, match="nothing"):
        spread([])


@pytest.mark.parametrize(
    ("percent", "expected"), [(50, 50.0), (99, 99.0), (99.5, 100.0), (100, 100.0), (1, 1.0), (0.1, 1.0)]
)
def test_percentile_is_a_value_that_was_measured(percent, expected):
    """Nearest rank: the 99th percentile of 100 values is the second largest, nothing between two values."""
    assert expected == percentile([float(value) for value in range(100, 0, -1)], percent)


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_percentile_of_nothing_is_refused(values, percent):
    """No value and no such percentage are errors, not figures."""
    with pytest.raises(ValueError, match="percentile"):
        percentile(values, percent)


@pytest.mark.parametrize(
    ("value", "limits", "holds"),
    [
        (0.95, {"at_least": 0.95}, True),
        (0.949, {"at_least": 0.95}, False),
        (80.0, {"at_most": 80.0}, True),
        (80.1, {"at_most": 80.0}, False),
        (0.0, {"at_most": 0.0}, True),
        (1.0, {"at_most": 0.0}, False),
        (None, {"at_most": 80.0}, False),
        (math.nan, {"at_least": 0.0}, False),
    ],
)
def test_target_holds_at_its_limit_and_not_beyond(value, limits, holds):
    """The limit itself holds; what was not measured never does."""
    assert holds is Target(name="t", value=value, **limits).holds


@pytest.mark.parametrize("limits", [{}, {"at_least": 1.0, "at_most": 2.0}])
def test_target_has_one_limit(limits):
    """A target without limit, or with two, would judge nothing."""
    with pytest.raises(ValueError, match="either"):
        Target(name="t", value=1.0, **limits)


def _report(*targets: Target) -> Report:
    return Report(benchmark="receive", figures={"ct_s": 0.123456, "rounds": 5, "lost": math.nan}, targets=list(targets))


def test_json_line_is_one_line_with_everything(capsys):
    """The last line of standard output is the whole report, and NaN does not make it unreadable."""
    report = _report(Target(name="fast", value=1.5, at_least=1.0), Target(name="small", value=90.0, at_most=80.0))
    report.add_table("Times", ("what", "s"), [("ct", 0.5)])
    status = report.finish()
    last = capsys.readouterr().out.splitlines()[-1]
    expected = {
        "benchmark": "receive",
        "figures": {"ct_s": 0.1235, "rounds": 5, "lost": None},
        "targets": {
            "fast": {"value": 1.5, "limit": ">= 1", "holds": True},
            "small": {"value": 90.0, "limit": "<= 80", "holds": False},
        },
        "holds": False,
    }
    assert expected == json.loads(last)
    assert 1 == status


def test_report_succeeds_only_with_targets_that_all_hold(capsys):
    """Exit status 0 says that something was asked and all of it holds."""
    good, bad = Target(name="a", value=1.0, at_least=1.0), Target(name="b", value=0.9, at_least=1.0)
    assert [0, 1, 1] == [_report(*targets).finish() for targets in ([good], [good, bad], [])]
    assert "MISSED" in capsys.readouterr().out


def test_table_aligns_figures_to_the_right():
    """Words stand left, figures right."""
    expected = "what     s\n----  ----\nct     0.5\nmr    12.2"
    assert expected == table(("what", "s"), [("ct", 0.5), ("mr", 12.21)])


def test_copies_differ_in_their_sop_instance_uid_alone():
    """A patched copy is a whole object whose UID stands in meta and data set alike."""
    template = make_template(SMALL)
    content = bytearray(template.content)
    template.patch(content, 7)
    ds, original = dcmread(BytesIO(content)), dcmread(BytesIO(template.content))
    assert template.uid(7) == ds.SOPInstanceUID == ds.file_meta.MediaStorageSOPInstanceUID
    assert ds.SOPInstanceUID != original.SOPInstanceUID
    for copy in (ds, original):
        del copy.SOPInstanceUID
    assert original == ds
    assert template.uid(7) != template.uid(8)


def test_data_set_offset_is_where_the_data_set_begins():
    """The first element after the file meta information is of group 0008."""
    template = make_template(SMALL)
    assert b"\x08\x00" == template.content[template.data_set_offset : template.data_set_offset + 2]


def test_corpus_deals_each_file_to_one_sender(tmp_path):
    """Shares differ by one file at most, and together they are the corpus."""
    corpus = make_corpus(SMALL, tmp_path, count=5)
    assert [3, 2] == [len(share) for share in corpus.shares(2)]
    assert sorted(corpus.files) == sorted(file for share in corpus.shares(8) for file in share)
    uids = {dcmread(file).SOPInstanceUID for file in corpus.files}
    assert 5 == len(uids)


def test_corpora_of_different_seeds_share_no_instance(tmp_path):
    """What warms a receiver up is never a repeat of what is measured."""
    first, second = (make_corpus(SMALL, tmp_path, count=1, seed=seed) for seed in ("one", "two"))
    read = [dcmread(corpus.files[0]) for corpus in (first, second)]
    assert read[0].SOPInstanceUID != read[1].SOPInstanceUID
    assert read[0].StudyInstanceUID != read[1].StudyInstanceUID


@pytest.mark.parametrize(("name", "size_bytes"), [("ct", 526_000), ("mr", 132_000), ("tiny", 5_000)])
def test_objects_are_as_large_as_they_are_said_to_be(tmp_path, name, size_bytes):
    """Within 2 % of the size that the issue names."""
    corpus: Corpus = make_corpus(KINDS[name], tmp_path, count=1)
    assert corpus.data_set_bytes == pytest.approx(size_bytes, rel=0.02)
