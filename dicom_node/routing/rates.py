"""Does a sender begin too many studies? Pure: counts and limits in, a reason to hold out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Final

from dicom_node.config.schema import Peer

RATE_WINDOW: Final = timedelta(hours=1)
"""What `max_studies_per_hour` counts over."""


def over_rate(begun: Mapping[str, int], peers: Iterable[Peer]) -> str | None:
    """Return why a study is held, None when no sender of it exceeds its rate.

    Parameters
    ----------
    begun
        By calling AE title: studies begun within `RATE_WINDOW` when this one began, itself included.
    peers
        Whom we know; of several with one title the lowest limit counts.
    """
    limits: dict[str, int] = {}
    for peer in peers:
        if peer.max_studies_per_hour is not None:
            limits[peer.ae_title] = min(peer.max_studies_per_hour, limits.get(peer.ae_title, peer.max_studies_per_hour))
    for title, limit in sorted(limits.items()):
        if begun.get(title, 0) > limit:
            return (
                f"{title} had begun {begun[title]} studies within an hour, more than max_studies_per_hour = {limit}; "
                "`dicom-node studies release` lets it through"
            )
    return None
