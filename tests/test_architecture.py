"""What import-linter cannot see: homes of foreign libraries, purity, clocks, broad excepts, docstrings, plugins.

The tables are the rules. Each rule is a function from parsed source to a list of offences, so that a planted offence
shows that the rule still bites (`test_planted_offences_are_found`).
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

OURS = frozenset({"dicom_node", "model_build"})

EVERYWHERE = ("*",)

HOMES: dict[str, tuple[str, ...]] = {
    "numpy": EVERYWHERE,  # arrays are vocabulary
    "pydicom": (  # datasets are vocabulary of these
        "dicom_node.reading.*",
        "dicom_node.codecs.*",
        "dicom_node.filing.*",
        "dicom_node.dimse.*",
        "dicom_node.receive.*",
        "dicom_node.routing.*",
        "dicom_node.report.*",
        "dicom_node.deliver.*",
        "dicom_node.config.keywords",  # the dictionary alone: is this the keyword of an attribute?
    ),
    "pynetdicom": ("dicom_node.dimse.*", "dicom_node.receive.*", "dicom_node.deliver.*"),
    "sqlalchemy": ("dicom_node.records.*",),
    "alembic": ("dicom_node.records.*",),
    "pysqlite3": ("dicom_node.records.*",),
    "highdicom": ("dicom_node.report.*",),
    "onnxruntime": ("dicom_node.engines.*", "model_build.compress"),
    "openvino": ("dicom_node.engines.*",),
    "tensorrt": ("dicom_node.engines.*",),
    "tensorrt_rtx": ("dicom_node.engines.*",),
    "cuda": ("dicom_node.engines.*",),
    "onnx": ("dicom_node.engines.*", "model_build.*"),
    "onnxscript": ("model_build.*",),
    "pydantic": ("dicom_node.config.*", "dicom_node.plugin_api", "dicom_node.imaging.steps"),
    "pydantic_core": ("dicom_node.config.*", "dicom_node.plugin_api"),
    "typer": ("dicom_node.cli.*", "model_build.cli.*"),
    "click": ("dicom_node.cli.*", "model_build.cli.*"),
    "rich": ("dicom_node.cli.*", "model_build.cli.*"),
    "openjpeg": ("dicom_node.codecs.*",),
    "jpeg_ls": ("dicom_node.codecs.*",),
    "rle": ("dicom_node.codecs.*",),
    "gdcm": ("dicom_node.codecs.*",),
    "scipy": ("dicom_node.imaging.*", "model_build.*"),
    "skimage": ("dicom_node.imaging.*", "model_build.*"),
    "nibabel": ("dicom_node.reading.*",),
    "nrrd": ("dicom_node.reading.*",),
    "PIL": ("dicom_node.report.capture", "model_build.*"),
    "matplotlib": ("dicom_node.report.capture", "model_build.*"),
    "torch": ("model_build.*",),
}
"""Foreign library -> the modules that may import it. A library that is not here has no home yet."""

PURE = (
    "dicom_node.study",
    "dicom_node.findings",
    "dicom_node.lifecycle",
    "dicom_node.plugin_api",
    "dicom_node.imaging.*",
    "dicom_node.codecs.codestream",
    "dicom_node.codecs.frame",
    "dicom_node.dimse.command",
    "dicom_node.dimse.pdu",
    "dicom_node.filing.layout",
    "dicom_node.receive.pace",
    "dicom_node.routing.*",
    "dicom_node.report.*",
    "dicom_node.deliver.retry",
    "plugins.*",
)
"""Modules without file, socket, clock or random: most tests stand there."""

IMPURE_IMPORTS = frozenset(
    {
        *("asyncio", "ctypes", "glob", "http", "mmap", "multiprocessing", "os", "random", "secrets"),
        *("select", "shutil", "signal", "socket", "sqlite3", "subprocess", "sys", "tempfile", "threading"),
        *("time", "urllib", "uuid"),
    }
)
IMPURE_NAMES = frozenset({"open", "input", "exec", "eval"})
IMPURE_DOTTED = frozenset({"np.random", "numpy.random", "np.load", "np.save", "io.open", "io.FileIO"})
"""`io.BytesIO` is bytes in memory: no file is opened."""
IMPURE_METHODS = frozenset(
    {
        *("read_text", "read_bytes", "write_text", "write_bytes", "mkdir", "unlink", "iterdir", "glob", "rglob"),
        *("is_file", "is_dir", "exists", "stat", "resolve", "rename", "touch", "rmdir", "cwd"),  # pathlib
        *("dcmread", "dcmwrite", "save_as", "fromfile", "tofile", "memmap", "default_rng"),  # foreign doors
    }
)
RECORDS_CALLERS = (
    "dicom_node.indexing.*",
    "dicom_node.decision",
    "dicom_node.gathering",
    "dicom_node.pipeline",
    "dicom_node.guard",
    "dicom_node.retention",
    "dicom_node.backup",
    "dicom_node.adoption",
    "dicom_node.upkeep",
    "dicom_node.admin.*",
    "dicom_node.roles",
    "dicom_node.app",
)
"""A stage gets what it needs as values or as an injected face."""

MODEL_BUILD_IMPORTS = frozenset(
    {
        *("imaging", "engines", "reading", "predict", "plugin_api", "findings", "study"),
        *("errors", "clock", "ids", "config"),
    }
)
PLUGIN_IMPORTS = frozenset({"imaging", "plugin_api", "findings"})

CLOCK_HOMES = ("dicom_node.clock", "dicom_node.logs")
"""`logs` stamps its lines itself: a log must work before anything is constructed."""
RANDOM_HOMES = ("dicom_node.ids",)

BROAD_EXCEPT: dict[str, str] = {
    "dicom_node/infer/child.py": "process boundary: a plugin may raise anything; the parent gets it as an answer",
    "dicom_node/indexing/process.py": "process boundary: every error becomes an answer to the parent",
    "dicom_node/receive/connection.py": "request boundary: an object that fails is drained; the answer tells",
    "dicom_node/receive/negotiation.py": "request boundary: bytes from strangers in a foreign decoder",
    "dicom_node/receive/listener.py": "request boundary: one request or association must not end the listener",
    "dicom_node/pipeline.py": "request boundary: a job that raises anything fails with the reason",
    "dicom_node/roles.py": "process boundary: a role's loop logs, waits and goes on",
}
"""File -> which process or request boundary it stands at."""

PRINT_HOMES = ("dicom_node.cli.*", "model_build.cli.*")

LONGEST_MODULE = 500
"""Lines; style asks for about 400. A longer one is named in a warning and earns a line in DECISIONS.md."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One module: its dotted name, its file relative to the repository, its tree."""

    module: str
    file: str
    tree: ast.Module
    is_package: bool = False

    def within(self, patterns: tuple[str, ...]) -> bool:
        """Return whether the module is one of `patterns`; `a.*` holds for `a` itself too."""
        return any(
            fnmatch(self.module, pattern) or (pattern.endswith(".*") and self.module == pattern[:-2])
            for pattern in patterns
        )

    def imports(self) -> Iterator[str]:
        """Yield every imported module as an absolute dotted name, with `from a import b` as `a.b`."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parts = self.module.split(".")
                    kept = parts[: len(parts) - node.level + (1 if self.is_package else 0)]
                    base = ".".join([*kept, *([base] if base else [])])
                yield from (f"{base}.{alias.name}" for alias in node.names)

    def node_parts(self) -> set[str]:
        """Return the top-level parts of dicom_node that are imported."""
        return {name.split(".")[1] for name in self.imports() if name.startswith("dicom_node.")}


def parse(text: str, module: str, file: str | None = None) -> Source:
    """Return the parsed module."""
    file = file or module.replace(".", "/") + ".py"
    return Source(module=module, file=file, tree=ast.parse(text), is_package=file.endswith("__init__.py"))


def _sources() -> list[Source]:
    found = []
    for top in ("dicom_node", "model_build", "plugins"):
        for path in sorted((ROOT / top).rglob("*.py")):
            relative = path.relative_to(ROOT)
            parts = [part for part in relative.with_suffix("").parts if part != "__init__"]
            found.append(parse(path.read_text(encoding="utf-8"), ".".join(parts), str(relative)))
    return found


SOURCES = _sources()


def foreign_library_offences(source: Source) -> list[str]:
    """Return the imports of foreign libraries outside their homes."""
    offences = []
    for library in {name.split(".")[0] for name in source.imports()} - OURS:
        if library in sys.stdlib_module_names or library == "plugins":
            continue
        if library not in HOMES:
            offences.append(f"{source.file}: {library} has no home in HOMES")
        elif not source.within(HOMES[library]):
            offences.append(f"{source.file}: {library} lives in {', '.join(HOMES[library])}")
    return offences


def purity_offences(source: Source) -> list[str]:
    """Return the doors to file, socket, clock and random that a pure module holds."""
    if not source.within(PURE):
        return []
    imports = set(source.imports())
    names = ({name.split(".")[0] for name in imports} & IMPURE_IMPORTS) | (imports & IMPURE_DOTTED)
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in IMPURE_NAMES:
            names.add(node.id)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in IMPURE_METHODS:
            names.add(node.func.attr)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in IMPURE_DOTTED:
            names.add(ast.unparse(node))
    return [f"{source.file}: {name} in a pure module" for name in sorted(names)]


def records_offences(source: Source) -> list[str]:
    """Return a call to records from a module that should get values instead."""
    if not source.module.startswith("dicom_node.") or source.within(("dicom_node.records.*", *RECORDS_CALLERS)):
        return []
    return [f"{source.file}: imports records"] if "records" in source.node_parts() else []


def shared_code_offences(source: Source) -> list[str]:
    """Return what model_build or a plugin imports of the node beyond the shared parts."""
    allowed = {"model_build": MODEL_BUILD_IMPORTS, "plugins": PLUGIN_IMPORTS}.get(source.module.split(".")[0])
    if allowed is None:
        return []
    # Which program made a file is `dicom_node.__version__`.
    beyond = source.node_parts() - allowed - {"__version__"}
    return [f"{source.file}: imports dicom_node.{part}" for part in sorted(beyond)]


def clock_offences(source: Source) -> list[str]:
    """Return the places that read a clock or make a random identifier themselves."""
    offences = []
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name | ast.Attribute):
            continue
        owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
        name = f"{owner}.{node.attr}"
        reads_clock = owner in {"datetime", "date"} and node.attr in {"now", "utcnow", "today"}
        reads_clock |= owner == "time" and node.attr in {"time", "time_ns", "monotonic", "monotonic_ns", "sleep"}
        if reads_clock and not source.within(CLOCK_HOMES):
            offences.append(f"{source.file}:{node.lineno}: {name}, use the Clock that is passed in")
        if name in {"uuid.uuid1", "uuid.uuid4", "uid.generate_uid", "pydicom.generate_uid"} and not source.within(
            RANDOM_HOMES
        ):
            offences.append(f"{source.file}:{node.lineno}: {name}, use dicom_node.ids")
    bare = {"time.time", "time.monotonic", "time.sleep"}
    if not source.within(CLOCK_HOMES):
        offences += [f"{source.file}: from {name}" for name in source.imports() if name in bare]
    makers = {"uuid.uuid4", "uuid.uuid1", "pydicom.uid.generate_uid"}
    if not source.within(RANDOM_HOMES):
        offences += [f"{source.file}: from {name}" for name in source.imports() if name in makers]
    return offences


def broad_excepts(source: Source) -> list[int]:
    """Return the lines that catch everything and keep it; one that ends in a bare `raise` only tidies up."""

    def is_broad(kind: ast.expr | None) -> bool:
        if isinstance(kind, ast.Tuple):
            return any(is_broad(part) for part in kind.elts)
        return kind is None or (isinstance(kind, ast.Name) and kind.id in {"Exception", "BaseException"})

    def raises_again(handler: ast.ExceptHandler) -> bool:
        return isinstance(last := handler.body[-1], ast.Raise) and last.exc is None

    handlers = [node for node in ast.walk(source.tree) if isinstance(node, ast.ExceptHandler)]
    return [handler.lineno for handler in handlers if is_broad(handler.type) and not raises_again(handler)]


def broad_except_offences(source: Source) -> list[str]:
    """Return the broad excepts outside the named boundaries."""
    if source.file in BROAD_EXCEPT:
        return []
    return [f"{source.file}:{line}: broad except outside BROAD_EXCEPT" for line in broad_excepts(source)]


def docstring_offences(source: Source) -> list[str]:
    """Return a module without a docstring."""
    return [] if ast.get_docstring(source.tree) else [f"{source.file}: no module docstring"]


def print_offences(source: Source) -> list[str]:
    """Return the prints outside the command line."""
    if source.within(PRINT_HOMES):
        return []
    return [
        f"{source.file}:{node.lineno}: print"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


def assigned_names(source: Source) -> set[str]:
    """Return the names that the module assigns at its top level."""
    assignments = [node for node in source.tree.body if isinstance(node, ast.Assign)]
    return {target.id for node in assignments for target in node.targets if isinstance(target, ast.Name)}


Rule = Callable[[Source], list[str]]

RULES: tuple[Rule, ...] = (
    foreign_library_offences,
    purity_offences,
    records_offences,
    shared_code_offences,
    clock_offences,
    broad_except_offences,
    docstring_offences,
    print_offences,
)

PLANTED: tuple[tuple[Rule, str, str], ...] = (
    (foreign_library_offences, "dicom_node.routing.rules", "import highdicom"),
    (foreign_library_offences, "dicom_node.imaging.measure", "from sqlalchemy.orm import Session"),
    (foreign_library_offences, "dicom_node.web.pages", "import flask"),
    (foreign_library_offences, "dicom_node.filing.store", "def late():\n    import torch"),
    (purity_offences, "dicom_node.lifecycle", "import time"),
    (purity_offences, "dicom_node.routing.rules", "import os.path"),
    (purity_offences, "dicom_node.report.seg", "def f(p):\n    return open(p)"),
    (purity_offences, "dicom_node.imaging.mask", "def f(path):\n    return path.read_bytes()"),
    (purity_offences, "dicom_node.imaging.mask", "import numpy as np\nx = np.random.rand(3)"),
    (purity_offences, "plugins.any.plugin", "import socket"),
    (records_offences, "dicom_node.deliver.dimse", "from dicom_node.records import deliveries"),
    (records_offences, "dicom_node.deliver.dimse", "from ..records import deliveries"),
    (records_offences, "dicom_node.cli.jobs", "from dicom_node import records"),
    (shared_code_offences, "model_build.train", "from dicom_node.report import make_seg"),
    (shared_code_offences, "model_build.train", "from dicom_node import pipeline"),
    (shared_code_offences, "plugins.any.plugin", "from dicom_node.reading import load_volume"),
    (clock_offences, "dicom_node.pipeline", "from datetime import datetime\nt = datetime.now()"),
    (clock_offences, "dicom_node.pipeline", "import datetime\nt = datetime.datetime.now()"),
    (clock_offences, "dicom_node.pipeline", "import time\ntime.sleep(1)"),
    (clock_offences, "dicom_node.pipeline", "from time import monotonic"),
    (clock_offences, "dicom_node.report.sr", "from pydicom.uid import generate_uid"),
    (clock_offences, "dicom_node.report.sr", "import uuid\nx = uuid.uuid4()"),
    (broad_except_offences, "dicom_node.filing.store", "try:\n    f()\nexcept Exception:\n    pass"),
    (broad_except_offences, "dicom_node.filing.store", "try:\n    f()\nexcept (OSError, BaseException):\n    pass"),
    (broad_except_offences, "dicom_node.filing.store", "try:\n    f()\nexcept:\n    pass"),
    (docstring_offences, "dicom_node.filing.store", "x = 1"),
    (print_offences, "dicom_node.filing.store", "print(1)"),
)

ALLOWED: tuple[tuple[Rule, str, str], ...] = (
    (foreign_library_offences, "dicom_node.report.seg", "import highdicom as hd\nimport numpy as np\nimport json"),
    (purity_offences, "dicom_node.filing.store", "import os"),
    (purity_offences, "dicom_node.report.capture", "from io import BytesIO"),
    (records_offences, "dicom_node.pipeline", "from dicom_node.records import jobs"),
    (shared_code_offences, "model_build.train", "from dicom_node.imaging import Volume"),
    (clock_offences, "dicom_node.clock", "from datetime import datetime\nt = datetime.now()"),
    (clock_offences, "dicom_node.pipeline", "def f(clock):\n    return clock.now()"),
    (broad_except_offences, "dicom_node.filing.store", "try:\n    f()\nexcept OSError:\n    pass"),
    (broad_except_offences, "dicom_node.filing.store", "try:\n    f()\nexcept BaseException:\n    g()\n    raise"),
    (print_offences, "dicom_node.cli.jobs", "print(1)"),
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__.removesuffix("_offences"))
def test_no_module_breaks_the_rule(rule: Rule) -> None:
    """The house keeps the rule; every offence is named at once."""
    assert [] == [offence for source in SOURCES for offence in rule(source)]


@pytest.mark.parametrize(("rule", "module", "text"), PLANTED)
def test_planted_offences_are_found(rule: Rule, module: str, text: str) -> None:
    """Each rule finds what it is there for."""
    assert rule(parse(text, module)) != []


@pytest.mark.parametrize(("rule", "module", "text"), ALLOWED)
def test_what_is_allowed_is_not_an_offence(rule: Rule, module: str, text: str) -> None:
    """No rule finds fault with the ordinary."""
    assert [] == rule(parse(text, module))


def test_every_named_boundary_still_catches_broadly() -> None:
    """A file that no longer needs its broad except leaves the table."""
    catching = {source.file for source in SOURCES if broad_excepts(source)}
    assert set() == set(BROAD_EXCEPT) - catching


def test_every_rule_has_a_planted_offence() -> None:
    """A rule that was never seen red is no rule."""
    assert {rule.__name__ for rule in RULES} == {rule.__name__ for rule, _, _ in PLANTED}


def test_every_stage_package_names_its_face() -> None:
    """The `__init__` of each package of the node says in `__all__` what outsiders may import."""
    packages = [source for source in SOURCES if source.is_package and source.module.startswith("dicom_node.")]
    faces = [source for source in packages if source.module.count(".") == 1]
    without = [source.file for source in faces if "__all__" not in assigned_names(source)]
    assert [] == without


def test_every_test_says_what_must_hold() -> None:
    """Each test function has a docstring."""
    without = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        functions = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.FunctionDef)]
        tests = [function for function in functions if function.name.startswith("test_")]
        without += [f"{path.relative_to(ROOT)}:{f.lineno} {f.name}" for f in tests if not ast.get_docstring(f)]
    assert [] == without


def test_long_modules_are_named(record_property: Callable[[str, object], None]) -> None:
    """No module is longer than twice what style asks for; those over the mark are named in the test's properties."""
    lengths = {source.file: len((ROOT / source.file).read_text(encoding="utf-8").splitlines()) for source in SOURCES}
    long = {file: lines for file, lines in lengths.items() if lines > LONGEST_MODULE}
    record_property("long_modules", long)
    assert {} == {file: lines for file, lines in long.items() if lines > 2 * LONGEST_MODULE}
