"""Pixels of real files: one image in several syntaxes is one image, and other programs decode the same values."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dicom_node.errors import UndecodableError
from dicom_node.reading import find_files
from dicom_node.reading.colour import rgb_frames
from dicom_node.reading.decode import check_decodable, pixel_layout, stored_frames
from dicom_node.reading.header import quiet, read_header
from tests.peers import require_peer

pytestmark = pytest.mark.data

MR = "pydicom-test_files/test_files/MR_small"
SC = "pydicom-test_files/test_files/SC_rgb"
LIVER = "pydicom-data/liver"
EMRI = "pydicom-data/emri_small"
DOSE = "pydicom-test_files/test_files/rtdose"
CT0012 = "misc/encapsulated/multi-frame/CT0012"


def stored(path: Path) -> NDArray[Any]:
    """Return all frames of a file as they are stored, colour in RGB."""
    header = read_header(path)
    with quiet():
        layout = pixel_layout(header, colour=True)
        check_decodable(header, layout)
        frames = rgb_frames if layout.is_colour else stored_frames
        return np.stack([np.array(frame) for frame in frames(header, layout, range(layout.n_frames))])


@pytest.mark.parametrize(
    ("stem", "names", "n_frames"),
    [
        (MR, ("", "_padded", "_RLE", "_bigendian", "_expb", "_implicit", "_jp2klossless", "_jpeg_ls_lossless"), 1),
        (EMRI, ("", "_RLE", "_big_endian", "_jpeg_2k_lossless", "_jpeg_ls_lossless"), 10),
        (LIVER, ("", "_expb", "_deflate", "_j2k", "_rle"), 3),
        (f"{LIVER}_nonbyte_aligned", ("", "_deflate", "_j2k", "_rle"), 3),
        (DOSE, ("", "_expb", "_rle"), 15),
        (f"{DOSE}_1frame", ("",), 1),
        (SC, ("_small_odd", "_small_odd_big_endian"), 1),
        (SC, ("_rle", "_jpeg_gdcm"), 1),
    ],
)
def test_syntaxes_of_one_image_hold_the_same_values(
    shared_data: Path, stem: str, names: tuple[str, ...], n_frames: int
) -> None:
    """Every lossless encoding of an image decodes to the same stored values, bit by bit."""
    first, *others = (stored(shared_data / f"{stem}{name}.dcm") for name in names)
    assert n_frames == len(first)
    assert first.min() < first.max()
    for other in others:
        np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize(
    ("path", "program"),
    [
        ("pydicom-test_files/test_files/JPGExtended.dcm", "dcmdjpeg"),  # 12 bits
        ("pydicom-test_files/test_files/JPEG-lossy.dcm", "dcmdjpeg"),
        ("pydicom-data/JPEG-LL.dcm", "dcmdjpeg"),
        ("pydicom-data/JPGLosslessP14SV1_1s_1f_8b.dcm", "dcmdjpeg"),
        (f"{CT0012}.fragmented_no_bot_jpeg_baseline.51.dcm", "dcmdjpeg"),
        (f"{CT0012}.fragmented_no_bot_jpeg_lossless.57.dcm", "dcmdjpeg"),
        (f"{CT0012}.fragmented_no_bot_jpeg_lossless.70.dcm", "dcmdjpeg"),
        (f"{CT0012}.fragmented_no_bot_jpeg_ls.80.dcm", "dcmdjpls"),
        (f"{CT0012}.fragmented_no_bot_jpeg_ls.81.dcm", "dcmdjpls"),
        (f"{CT0012}.not_fragmented_bot_rle.dcm", "dcmdrle"),
        ("pydicom-data/JLSL_16_15_1_1F.dcm", "dcmdjpls"),
        ("pydicom-test_files/test_files/image_dfl.dcm", "dcmconv"),
        ("pydicom-test_files/test_files/ExplVR_BigEnd.dcm", "dcmconv"),
    ],
)
def test_dcmtk_decodes_the_same_values(shared_data: Path, tmp_path: Path, path: str, program: str) -> None:
    """Decoders that share no code with ours: lossless ones agree exactly, lossy ones to a rounding."""
    require_peer("dcmtk")
    plain = tmp_path / "plain.dcm"
    options = ["+te"] if program == "dcmconv" else []
    subprocess.run([program, *options, str(shared_data / path), str(plain)], check=True, capture_output=True)
    ours, theirs = stored(shared_data / path), stored(plain)
    assert ours.shape == theirs.shape
    difference = np.abs(ours.astype(np.int64) - theirs.astype(np.int64)).max()
    assert difference <= (1 if ".51." in path else 0)


@pytest.mark.parametrize("collection", ["pydicom-test_files", "pydicom-data", "misc", "highdicom", "dicom2nifti"])
def test_every_frame_is_decoded_or_refused_in_words(shared_data: Path, collection: str) -> None:
    """Whatever a file holds, colour, floats or damage, nothing but our own refusal comes out."""
    decoded, reasons = [], []
    for path in find_files(shared_data / collection):
        try:
            decoded.append(stored(path).size)
        except UndecodableError as error:
            reasons.append(error.reason)
    assert decoded
    assert all(decoded)
    assert all(len(reason) > 15 for reason in reasons)
