"""Questions to a peer about what it holds: C-FIND of the Study Root, at the levels of study, series and instance.

One question, one association. What the peer answers is given back as it came: attributes that it leaves out are
absent, and nothing is believed of it here. Wildcards are the caller's business.

Sources: DICOM PS3.4 C.4.1 (C-FIND), C.6.2 (Study Root), Table C.4-1 (statuses); PS3.5 6.1.2.3 (character sets).
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from functools import partial
from io import BytesIO
from typing import Final, Literal, TypeAlias

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from dicom_node.config.schema import Peer
from dicom_node.dimse.contexts import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from dicom_node.dimse.proposal import Proposed
from dicom_node.dimse.requestor import Call, associated
from dicom_node.dimse.status import PENDING, SUCCESS, meaning
from dicom_node.errors import QueryError, UsageError
from dicom_node.reading.header import VALUE_ERRORS, integer, quiet, text

Level: TypeAlias = Literal["STUDY", "SERIES", "IMAGE"]

STUDY_ROOT_FIND: Final = "1.2.840.10008.5.1.4.1.2.2.1"
MOST_ANSWERS: Final = 50_000
"""More instances than any study has; a peer that goes on is cut off."""
_LARGEST_IDENTIFIER: Final = 1 << 18
"""Bytes; identifiers have some hundred."""
_COUNT: Final = "NumberOfSeriesRelatedInstances"
_NO_IMAGES: Final = frozenset({"SR", "SEG", "KO", "PR", "DOC", "REG", "RTSTRUCT", "RTPLAN", "RTDOSE", "FID", "AU"})
"""Modalities of what others make of images, our own results among them (PS3.3 C.7.3.1.1.1)."""
_UTF_8: Final = "ISO_IR 192"


def find(
    peer: Peer,
    level: Level,
    keys: Mapping[str, str | int | None],
    *,
    calling_ae: str,
    timeout_s: float,
    tls: ssl.SSLContext | None = None,
) -> list[Dataset]:
    """Return what the peer says of the studies, series or instances that match, in the order of its answers.

    Parameters
    ----------
    keys
        DICOM keyword -> the value to match; "" or None asks for the attribute without matching.

    Raises
    ------
    UsageError
        When the peer has no address, or a key is no keyword.
    UnreachableError
        When there is no connection, or the peer rejects the association.
    QueryError
        When the peer offers no queries, refuses this one, or its answers stop before the last.
    """
    if peer.address is None:
        raise UsageError(f"peer {peer.name!r} has no `address`, so it cannot be asked")
    query = _identifier(level, keys)
    call = Call(
        address=peer.address,
        called_ae=peer.ae_title,
        calling_ae=calling_ae,
        timeout_s=timeout_s,
        tls=tls,
        largest_identifier=_LARGEST_IDENTIFIER,
    )
    syntaxes = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)
    assoc = associated(call, [Proposed(sop_class_uid=STUDY_ROOT_FIND, transfer_syntax_uids=syntaxes)])
    try:
        if not assoc.contexts:
            raise QueryError(f"{peer.name} offers no queries (C-FIND, Study Root)")
        (context,) = assoc.contexts
        is_implicit = context.transfer_syntax_uid == IMPLICIT_VR_LITTLE_ENDIAN
        found: list[Dataset] = []
        for answer, content in assoc.find(context, _encoded(query, is_implicit=is_implicit), message_id=1):
            if content is None and answer.status == SUCCESS:
                return found
            if content is None or answer.status not in PENDING:
                said = "without a status" if answer.status is None else meaning(answer.status)
                raise QueryError(f"{peer.name} refuses the query: {answer.error_comment.strip() or said}")
            if len(found) == MOST_ANSWERS:
                assoc.abort()
                raise QueryError(f"{peer.name} gives more than {MOST_ANSWERS} answers; the query matches too much")
            found.append(_decoded(content, peer.name, is_implicit=is_implicit))
    finally:
        assoc.release()
    raise QueryError(f"{peer.name} stopped answering before its last answer")


def count_instances(
    peer: Peer, study_uid: str, *, calling_ae: str, timeout_s: float, tls: ssl.SSLContext | None = None
) -> dict[str, int]:
    """Return how many instances the peer holds of each series of a study; reports and what is drawn are left out.

    Number of Series Related Instances is optional (PS3.4 Table C.6-3): who does not tell it is asked for the instances.

    Raises
    ------
    UsageError, UnreachableError, QueryError
        As `find` does.
    """
    ask = partial(find, peer, calling_ae=calling_ae, timeout_s=timeout_s, tls=tls)
    keys = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": "", "Modality": "", _COUNT: ""}
    counts = {}
    for one in ask("SERIES", keys):
        series_uid, said = text(one, "SeriesInstanceUID"), integer(one, _COUNT)
        if not series_uid or text(one, "Modality") in _NO_IMAGES:
            continue
        if said is None:
            below = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": series_uid, "SOPInstanceUID": ""}
            said = len(ask("IMAGE", below))
        counts[series_uid] = said
    return counts


def _identifier(level: Level, keys: Mapping[str, str | int | None]) -> Dataset:
    unknown = [keyword for keyword in keys if tag_for_keyword(keyword) is None]
    if unknown:
        raise UsageError(f"{unknown[0]!r} is no DICOM keyword")
    ds = Dataset()
    ds.SpecificCharacterSet = _UTF_8
    ds.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(ds, keyword, value)
    return ds


def _encoded(ds: Dataset, *, is_implicit: bool) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = is_implicit, True
    write_dataset(buffer, ds)
    return buffer.getvalue()


def _decoded(content: bytes, peer: str, *, is_implicit: bool) -> Dataset:
    """Return an answer with every value parsed, so that nothing fails later."""
    with quiet():
        try:
            ds = read_dataset(BytesIO(content), is_implicit, True)
            ds.decode()
            for _ in ds.iterall():
                pass
        except VALUE_ERRORS as error:
            raise QueryError(f"{peer} gives an answer that cannot be read ({type(error).__name__})") from error
    return ds
