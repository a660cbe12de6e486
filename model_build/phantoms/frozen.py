"""Which generators and seeds a model is trained and judged on, frozen by hash before any training.

A generator that changes after a model was judged makes another test of it. The hash is of the generator's sources
without comments, docstrings and layout, so that it is the same on every machine and changes with what is computed.
"""

from __future__ import annotations

import hashlib
import io
import tokenize
from pathlib import Path

__all__ = ["CHEST_SEEDS", "FROZEN", "SOURCES", "fingerprint"]

SOURCES: dict[str, tuple[str, ...]] = {
    "qa": ("qa.py", "solids.py"),
    "chest": ("chest.py", "anatomy.py", "nodules.py", "scanner.py", "solids.py"),
}
"""Generator -> the modules that decide its images."""

CHEST_SEEDS: dict[str, range] = {
    "test": range(1000, 1100),
    "test_empty": range(1500, 1520),
    "validation": range(2000, 2030),
    "train": range(100_000, 100_400),
}
"""Seeds of the chest phantom; the shifted generator is judged on the seeds of `test` and `test_empty` again."""

FROZEN: dict[str, str] = {
    "qa": "9e586bd0cb8623d7ac5d4272994f5312f8311fb7dd93b50f6d95ed9dd103ba34",
    "chest": "ada77a8aaa243d14279c14f3d8bc823c0f480b7f27fc093e4ce9b1db8d87b5ed",
}
"""Generator -> its fingerprint. A test compares; whoever changes a generator writes the new one here, and every model
that was trained on it is judged again."""

_LAYOUT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENCODING, tokenize.ENDMARKER)


def fingerprint(generator: str) -> str:
    """Return the sha256 of what a generator computes, and of the seeds."""
    folder = Path(__file__).parent
    parts = [code_of((folder / name).read_text(encoding="utf-8")) for name in SOURCES[generator]]
    if generator == "chest":
        parts.append(repr(CHEST_SEEDS))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def code_of(source: str) -> str:
    """Return Python source without comments, docstrings, blank lines and spaces; blocks keep their braces."""
    words: list[str] = []
    starts_statement = True
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in _LAYOUT:
            starts_statement = starts_statement or token.type == tokenize.NEWLINE
        elif token.type in (tokenize.INDENT, tokenize.DEDENT):
            words.append("{" if token.type == tokenize.INDENT else "}")
        elif not (starts_statement and token.type == tokenize.STRING):
            words.append(token.string)
            starts_statement = False
    return "\x1f".join(words)
