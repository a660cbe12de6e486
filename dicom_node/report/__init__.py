"""Findings -> DICOM results: SEG and SR, built with highdicom and checked against their sources before they leave."""

from dicom_node.report.build import BuiltResult, build_results, encode
from dicom_node.report.provenance import Kind, Predecessor, ResultIdentity
from dicom_node.report.source import clean_header

__all__ = ["BuiltResult", "Kind", "Predecessor", "ResultIdentity", "build_results", "clean_header", "encode"]
