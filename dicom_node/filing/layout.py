"""Where a stored version lies: names made of hashes, so that nothing from the wire ever becomes a path. Pure.

    instances/ab/cd/<hash of SOP Instance UID>-<digest of the data set>.dcm

`ab` and `cd` are the first four digits of the hash: 65,536 folders, some fifteen files each at a million instances.
The version lies beside its sisters, not in a folder of its own: a folder per instance would cost an inode, a block and
one more synchronised folder each.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePosixPath
from typing import Final

SUFFIX: Final = ".dcm"
PART_SUFFIX: Final = ".part"
ARRIVED_SUFFIX: Final = ".arrived"
"""Of a file that is durable and waits to be shelved."""

_UID: Final = re.compile(r"[0-9][0-9.]{0,63}")
"""PS3.5 9.1: digits and full stops, at most 64. Leading zeros in a component are wrong but seen, and harmless here."""
_UID_HASH_DIGITS: Final = 40
_VERSION: Final = re.compile(rf"[0-9a-f]{{{_UID_HASH_DIGITS}}}-(?P<digest>[0-9a-f]{{64}}){re.escape(SUFFIX)}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


def is_uid(text: str) -> bool:
    """Return whether `text` has the form of a UID: the whole of it, a trailing newline included."""
    return _UID.fullmatch(text) is not None


def uid_hash(sop_instance_uid: str) -> str:
    """Return the hexadecimal hash that stands for a SOP Instance UID in file names."""
    return hashlib.sha256(sop_instance_uid.encode("utf-8", "surrogateescape")).hexdigest()[:_UID_HASH_DIGITS]


def version_path(sop_instance_uid: str, digest: str) -> PurePosixPath:
    """Return the path of one version of an instance, relative to the root of the store.

    Raises
    ------
    ValueError
        When `digest` is no hexadecimal SHA-256.
    """
    if _DIGEST.fullmatch(digest) is None:
        raise ValueError("a digest has 64 lower-case hexadecimal digits")
    name = uid_hash(sop_instance_uid)
    return PurePosixPath(name[:2], name[2:4], f"{name}-{digest}{SUFFIX}")


def digest_in(name: str) -> str | None:
    """Return the digest that a file name carries, None when the name is not one of ours."""
    match = _VERSION.fullmatch(name)
    return match["digest"] if match else None
