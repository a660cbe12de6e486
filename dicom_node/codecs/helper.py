"""The helper process: reads frames from files, decodes them, writes the values to its standard output.

`python -m dicom_node.codecs.helper`, started by `pool`; ends when its standard input does, which is also when its
parent died. One JSON line asks for one frame; the answer is a fixed head, then the values or the reason why there are
none. It says nothing else, neither on standard output nor in a log.
"""

from __future__ import annotations

import json
import logging
import os
import struct
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from dicom_node.codecs.frame import FrameForm, decode_frame
from dicom_node.errors import UndecodableError

ANSWER: Final = struct.Struct("<?2sI")
"""Whether it went well, kind and size of the values ("i2"), and the length of what follows."""


def main() -> None:
    """Answer requests until there are no more."""
    warnings.simplefilter("ignore")
    logging.disable()
    for line in sys.stdin.buffer:
        answer(json.loads(line), sys.stdout.buffer)


def answer(request: dict[str, Any], to: BinaryIO) -> None:
    """Decode one frame and write the answer.

    Parameters
    ----------
    request
        path; extents: (offset, length) of each fragment; form: the fields of `FrameForm`.
    """
    try:
        frame = read_extents(Path(request["path"]), request["extents"])
        values = np.ascontiguousarray(decode_frame(frame, FrameForm(**request["form"])))
    except UndecodableError as error:
        _write(to, False, b"  ", error.reason.encode())
    except OSError as error:
        _write(to, False, b"  ", f"cannot be read ({error.strerror})".encode())
    else:
        little = values.astype(values.dtype.newbyteorder("<"), copy=False)
        _write(to, True, little.dtype.str[1:].encode(), little.data.cast("B"))


def _write(to: BinaryIO, is_well: bool, kind: bytes, body: bytes | memoryview) -> None:
    to.write(ANSWER.pack(is_well, kind, len(body)))
    to.write(body)
    to.flush()


def read_extents(path: Path, extents: Sequence[tuple[int, int]]) -> bytes:
    """Return the bytes of a file at these places, (offset, length) each, joined.

    Raises
    ------
    UndecodableError
        When the file ends before.
    OSError
        When it cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        parts = [os.pread(file.fileno(), length, offset) for offset, length in extents]
    frame = b"".join(parts)
    if len(frame) < sum(length for _, length in extents):
        raise UndecodableError("ends with the file: the file is truncated")
    return frame


if __name__ == "__main__":
    main()
