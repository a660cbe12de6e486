"""Plugins in warm child processes, with limits of time and memory."""

from dicom_node.infer.child import InferenceChild, Request
from dicom_node.infer.registry import Plugin, PluginRegistry, read_plugin
from dicom_node.infer.slots import Slots

__all__ = ["InferenceChild", "Plugin", "PluginRegistry", "Request", "Slots", "read_plugin"]
