"""Puts what ships with the node into its wheel; an editable installation reads the checkout instead."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SHIPPED = {"plugins": "dicom_node/shipped/plugins", "config.toml": "dicom_node/shipped/config.toml"}


class ShippedFiles(BuildHookInterface):  # type: ignore[type-arg]
    """Copies config.toml and plugins/ into the package: an installed node has no repository beside it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files to the wheel (`standard`), not to an editable one, where they would grow stale."""
        if version == "standard":
            build_data["force_include"].update(SHIPPED)
