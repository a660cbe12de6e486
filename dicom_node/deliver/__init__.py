"""Results out: to each destination in batches, with proof of arrival, and again until it has them."""

from dicom_node.deliver.dimse import Outcome, Parcel, deliver_batch
from dicom_node.deliver.retry import GiveUp, RetryIn, after_failure

__all__ = ["GiveUp", "Outcome", "Parcel", "RetryIn", "after_failure", "deliver_batch"]
