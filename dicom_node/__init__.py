"""A DICOM node: images in, findings out, as SR and SEG in the PACS.

The way through the code is drawn in ARCHITECTURE.md; `pipeline.py` reads as the story of a study.
"""

__version__ = "0.1.0"
