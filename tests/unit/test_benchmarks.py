"""The parts of benchmarks/ that judge: statistics, targets, the line of JSON, templates, hand-made PDUs, durability."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dsutils import decode
from pynetdicom.pdu import A_ASSOCIATE_RQ

from benchmarks.corpus import EXPLICIT_VR_LITTLE_ENDIAN, KINDS, Corpus, Kind, make_corpus, make_template
from benchmarks.measure import Report, Target, interleaved, paired_ratios, percentile, spread, table
from benchmarks.peers import Stored, build_preload
from benchmarks.processes import cpu_s, peak_mb, process_tree
from benchmarks.receive import CASES, Case
from benchmarks.response import Answers, judge
from benchmarks.upper_layer import associate_request, response_status, store_command
from tests import peers

CT = "1.2.840.10008.5.1.4.1.1.2"

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


def _corpus(count: int, data_set_bytes: int) -> Corpus:
    files = tuple(Path(str(number)) for number in range(count))
    return Corpus(name="c", files=files, sop_class_uid=CT, data_set_bytes=data_set_bytes)


@pytest.mark.parametrize(
    ("count", "size_bytes", "is_all"),
    [
        (5, 3000, True),
        (5, 3000 + 5 * 1000, True),
        (4, 3000, False),
        (6, 3000, False),
        (5, 2999, False),
        (5, 100_000, False),
    ],
)
def test_run_counts_only_when_all_was_stored_once(count, size_bytes, is_all):
    """Too few, too many, too short or doubled: no result."""
    assert is_all is Stored(count=count, size_bytes=size_bytes).is_all_of(_corpus(2, 1000), _corpus(3, 2000))


@pytest.mark.parametrize(
    ("peer", "kind", "associations", "at_least"),
    [
        ("dcmtk", "ct", 8, 0.95),
        ("dcmtk", "tiny", 1, 0.95),
        ("dcmtk", "tiny", 4, 1.25),
        ("dcmtk", "tiny", 8, 1.25),
        ("dcmtk", "multiframe", 1, 0.95),
        ("orthanc", "ct", 1, 3.0),
        ("orthanc", "mr", 4, 2.5),
        ("orthanc", "tiny", 8, 1.8),
        ("orthanc", "multiframe", 1, None),
        ("pynetdicom", "mr", 1, 2.5),
    ],
)
def test_targets_are_those_of_the_issue(peer, kind, associations, at_least):
    """Each peer, each kind of object; only tiny objects over four associations ask for more of dcmtk."""
    assert at_least == Case(kind=kind, associations=associations).at_least(peer)


def test_multiframe_is_sent_over_one_association_alone():
    """One object cannot be dealt out."""
    assert [1] == [case.associations for case in CASES if case.kind == "multiframe"]
    assert 10 == len({str(case) for case in CASES})


def test_associate_request_is_what_the_standard_says():
    """A foreign decoder reads titles, contexts and the largest PDU back."""
    pdu = A_ASSOCIATE_RQ()
    contexts = {1: (CT, EXPLICIT_VR_LITTLE_ENDIAN), 3: ("1.2.840.10008.1.1", "1.2.840.10008.1.2")}
    pdu.decode(associate_request(called="NODE", calling="CT1", contexts=contexts))
    primitive = pdu.to_primitive()
    assert ("NODE", "CT1") == (primitive.called_ae_title, primitive.calling_ae_title)
    proposed = {
        context.context_id: (context.abstract_syntax, context.transfer_syntax[0])
        for context in primitive.presentation_context_definition_list
    }
    assert contexts == proposed
    assert 131072 == primitive.maximum_length_received


@pytest.mark.parametrize("sop_instance_uid", ["1.2.3", "1.2.34"])
def test_store_command_is_what_the_standard_says(sop_instance_uid):
    """A foreign decoder reads the command back; an odd UID is padded, the group length is true."""
    command = store_command(sop_class_uid=CT, sop_instance_uid=sop_instance_uid, message_id=7)
    message = C_STORE_RQ()
    message.command_set = decode(BytesIO(command), True, True)
    primitive = message.message_to_primitive()
    assert (CT, sop_instance_uid) == (primitive.AffectedSOPClassUID, primitive.AffectedSOPInstanceUID)
    assert 7 == primitive.MessageID
    assert len(command) - 12 == message.command_set.CommandGroupLength
    assert 0 == len(command) % 2
    assert 0x0101 != message.command_set.CommandDataSetType


def test_status_is_found_in_a_response():
    """The status stands behind other elements; a response without one is an error."""
    head = bytes.fromhex("00000001 02000000 0180".replace(" ", ""))
    assert 0xA700 == response_status(head + bytes.fromhex("00000009 02000000 00a7".replace(" ", "")))
    with pytest.raises(ValueError, match="status"):
        response_status(head)


def _judged(answers: Answers) -> dict[str, bool]:
    report = Report(benchmark="response")
    options = argparse.Namespace(seconds=1.0, gbit_per_s=0.008)
    judge(report, answers, size_bytes=10_000, options=options)
    return {target.name: target.holds for target in report.targets}


def test_responses_are_judged_by_time_refusals_and_rate():
    """One refusal, one broken association, or too slow a load: the target that says so is missed, no other."""
    p99, refusals, rate = "p99 of the response time, ms", "refusals and broken associations", "share of the paced rate"
    good = Answers(response_s=[0.01] * 100, late_s=[0.0] * 100, statuses=Counter({0: 100}))
    assert {p99: True, refusals: True, rate: True} == _judged(good)
    slow = Answers(response_s=[0.01] * 98 + [0.2] * 2, late_s=[0.0] * 100, statuses=Counter({0: 100}))
    assert {p99: False, refusals: True, rate: True} == _judged(slow)
    refused = Answers(response_s=[0.01] * 100, late_s=[0.0] * 100, statuses=Counter({0: 99, 0xA700: 1}))
    assert {p99: True, refusals: False, rate: True} == _judged(refused)
    few = Answers(response_s=[0.01] * 50, late_s=[0.0] * 50, statuses=Counter({0: 50}))
    assert {p99: True, refusals: True, rate: False} == _judged(few)
    assert {p99: False, refusals: False, rate: False} == _judged(Answers(broken=["ConnectionError: gone"]))


def test_process_tree_is_weighed_with_its_children():
    """A child's memory and CPU count with those of its parent."""
    burn = "x = bytearray(50_000_000)\nfor _ in range(3_000_000): pass\nprint(flush=True)\ninput()"
    parent = f"import subprocess, sys\nsys.exit(subprocess.call([sys.executable, '-c', {burn!r}]))"
    process = subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        tree = process_tree(process.pid)
        assert 2 == len(tree)
        assert peak_mb(process.pid) > peak_mb(tree[1]) > 50
        assert cpu_s(process.pid) > 0.05
    finally:
        process.communicate(b"\n")


def test_preload_makes_an_object_durable_before_fclose_returns(tmp_path):
    """What dcmtk writes is synchronised, then the folder of its name; what is only read is not."""
    peers.require_peer("strace")
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    library = build_preload(tmp_path)
    write = (
        "import ctypes; c = ctypes.CDLL(None); c.fopen.restype = ctypes.c_void_p\n"
        "for mode in (b'w', b'r'):\n"
        "    f = ctypes.c_void_p(c.fopen(b'object.dcm', mode)); c.fputs(b'data', f); c.fclose(f)"
    )
    command = ["strace", "-y", "-e", "trace=fsync,write", "-o", "trace", "-E", f"LD_PRELOAD={library}"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([*command, sys.executable, "-c", write], cwd=tmp_path, env=environment, check=True)
    calls = re.findall(r"^(write|fsync)\(\d+<([^>]+)>", (tmp_path / "trace").read_text(), re.MULTILINE)
    file = str(tmp_path / "object.dcm")
    assert [("write", file), ("fsync", file), ("fsync", str(tmp_path))] == [
        call for call in calls if "pipe:" not in call[1]
    ]
