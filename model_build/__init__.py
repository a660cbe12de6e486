"""Builds models for the node: makes data, trains, exports, evaluates and publishes; the node never imports it.

What lies between an image and a finding is not written here a second time: preprocessing, windows and measurements
come from dicom_node, so training and inference cannot drift apart.
"""
