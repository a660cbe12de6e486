"""Every series of the shared data as `dicom-node inspect` sees it: the table docs/reading.md, and who wrote it.

``python -m tests.integration.reading_table`` writes it anew; test_reading_table.py compares. Series that are packed are
unpacked first. Nothing of a patient and no UID is in it: folders of the collections, numbers and reasons.
"""

from __future__ import annotations

import gzip
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dicom_node.admin.inspection import inspect

DOCUMENT = Path(__file__).parents[2] / "docs" / "reading.md"
SHARED_DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"

_HEAD = """# What is read, and what is refused

Written by `python -m tests.integration.reading_table`; `tests/integration/test_reading_table.py` compares. One line for
each series of the shared test data, as `dicom-node inspect` shows it: shape (slices, rows, columns), spacing in mm
(z, y, x) and the direction of the axes in the patient (of columns, rows and slices: L, P, S and their opposites), or
why it is no volume. Affines are compared with the NIfTI and NRRD files beside the series, where there are any, by
`tests/integration/test_shared_series.py`. Files that are no instances of a series are counted in a last table.

"""
_COLUMNS = "| series | kind | objects | read | remarks, or why not |\n|---|---|---|---|---|\n"


def table(shared_data: Path) -> str:
    """Return the document."""
    lines, others = [], {}
    with tempfile.TemporaryDirectory() as unpacked:
        for place, folder in _folders(shared_data, Path(unpacked)):
            for entry in inspect(folder, ()):
                name, _, reason = (entry["refused"] or "").partition(": ")
                if any(name == file.name for file in folder.rglob("*")):
                    others[reason] = others.get(reason, 0) + 1
                else:
                    lines.append(_line(place, entry))
    rest = "".join(f"| {reason} | {count} |\n" for reason, count in sorted(others.items()))
    body = "".join(f"{line}\n" for line in sorted(lines))
    return f"{_HEAD}{_COLUMNS}{body}\nFiles that are no instance of a series:\n\n| why | files |\n|---|---|\n{rest}"


def _folders(shared_data: Path, unpacked: Path) -> Iterator[tuple[str, Path]]:
    """Yield every folder that holds files of its own, alone, and every packed series, unpacked."""
    for number, path in enumerate(sorted(shared_data.rglob("*"))):
        place = str(path.relative_to(shared_data))
        if place.startswith("models"):
            continue
        target = unpacked / str(number)
        if path.is_dir():
            files = [file for file in path.iterdir() if file.is_file() and not _is_other(file)]
            if files:
                target.mkdir()
                for file in files:
                    (target / file.name).symlink_to(file)
                yield place, target
        elif path.name.endswith(".dcm.gz"):
            target.mkdir()
            (target / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
            yield place, target
        elif path.name.endswith(".tar.xz"):
            with tarfile.open(path) as archive:
                archive.extractall(target, filter="data")
            yield place, target
        elif path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                archive.extractall(target)
            yield place, target


def _is_other(file: Path) -> bool:
    return file.name.startswith((".", "DICOMDIR")) or file.name.endswith(
        (".nii.gz", ".nrrd", ".dcm.gz", ".tar.xz", ".zip", ".csv", ".json", ".txt", ".md")
    )


def _line(place: str, entry: Mapping[str, Any]) -> str:
    volume = entry["volume"]
    read = "-"
    if volume:
        shape, spacing = " x ".join(map(str, volume["shape"])), " x ".join(f"{mm:.3f}" for mm in volume["spacing_mm"])
        read = f"{shape}; {spacing} mm; {_directions(volume['affine_lps'])}"
    said = [entry["refused"]] if entry["refused"] else []
    words = "; ".join(said + list(entry["notes"])).replace("|", "/")
    return f"| {place} | {entry['modality'] or '-'} | {entry['n_instances']} | {read} | {words or '-'} |"


def _directions(affine: list[list[float]]) -> str:
    """Return where columns, rows and slices lead: the patient's axis nearest to each."""
    words = []
    for axis in range(3):
        column = [affine[row][axis] for row in range(3)]
        largest = max(range(3), key=lambda row: abs(column[row]))
        words.append(("LR", "PA", "SI")[largest][column[largest] < 0])
    return "".join(words)


if __name__ == "__main__":
    DOCUMENT.write_text(table(SHARED_DATA), encoding="utf-8")
