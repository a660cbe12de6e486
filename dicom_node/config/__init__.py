"""Configuration: config.toml as frozen values, every problem with its line."""

from dicom_node.config.load import config_digest, data_dir, find_config, load_config, parse_toml, read_table
from dicom_node.config.schema import Config

__all__ = ["Config", "config_digest", "data_dir", "find_config", "load_config", "parse_toml", "read_table"]
