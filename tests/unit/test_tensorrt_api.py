"""Every name that the adapter calls exists in the real bindings: TensorRT 11, TensorRT-RTX, cuda-bindings.

The bindings of TensorRT 11 import without its libraries when three empty shared objects with the wanted symbols lie on
the loader's path; classes, methods and enumerations are then the real ones. What is asked is read from the adapter's
source, so a new call is checked without anybody adding it here.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ENGINES = Path(__file__).parents[2] / "dicom_node" / "engines"

CLASSES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "fault": "ParserError",
    "config": "IBuilderConfig",
    "optimisation": "IOptimizationProfile",
    "timing": "ITimingCache",
    "tensor": "ITensor",
    "runtime": "Runtime",
    "cuda_engine": "ICudaEngine",
    "_cuda_engine": "ICudaEngine",
    "context": "IExecutionContext",
    "_context": "IExecutionContext",
}
"""Name of a variable in the adapter -> the class of the library that it holds."""

RTX_ALONE = {"IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability"}
"""Building for a card that is not here."""

SYMBOLS = (
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
    *("createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getBuilderPluginRegistry"),
    *("getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins", "getInferLibVersion"),
)

LOOK = """
import importlib, json, sys
library = importlib.import_module(sys.argv[1])
def found(dotted):
    thing = library
    for part in dotted.split("."):
        if not hasattr(thing, part):
            return False
        thing = getattr(thing, part)
    return True
print(json.dumps({"version": getattr(library, "__version__", ""), "absent": [d for d in sys.argv[2:] if not found(d)]}))
"""


def _dotted(node: ast.expr) -> list[str]:
    """Return the parts of `a.b.c`; empty for anything else."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and (before := _dotted(node.value)):
        return [*before, node.attr]
    return []


def _asked(files: tuple[str, ...], root: str) -> set[str]:
    """Return the names that the files ask of the module called `root`, and of objects in `CLASSES`."""
    asked = set()
    for file in files:
        for node in ast.walk(ast.parse((ENGINES / file).read_text(encoding="utf-8"))):
            parts = _dotted(node) if isinstance(node, ast.Attribute) else []
            parts = parts[1:] if parts[:1] == ["self"] else parts
            if len(parts) > 1 and parts[0] == root:
                asked.add(".".join(parts[1:]))
            elif len(parts) > 1 and root == "trt" and parts[0] in CLASSES:
                asked.add(f"{CLASSES[parts[0]]}.{parts[1]}")
    return asked


TENSORRT = {
    name.removesuffix(".__members__").removesuffix(".__name__").removesuffix(".__init__")
    for name in _asked(("tensorrt.py", "tensorrt_build.py"), "trt")
} - {"__name__", "__version__"}


def _absent(module: str, names: set[str], **environment: str) -> dict[str, object]:
    """Return version and absent names, asked in a process of its own."""
    command = [sys.executable, "-c", LOOK, module, *sorted(names)]
    answer = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    return dict(json.loads(answer.stdout))


def _skip(reason: str) -> None:
    pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)


def test_what_is_asked_is_read_from_the_source() -> None:
    """The reader of the source sees modules, objects and attributes of `self`: a known one of each."""
    assert {
        "OnnxParser",
        "BuilderFlag.TF32",
        "IExecutionContext.execute_async_v3",
        "ICudaEngine.num_io_tensors",
    } <= TENSORRT
    assert {"Builder.build_serialized_network", "ParserError.node_operator", "ITimingCache.serialize"} <= TENSORRT
    assert len(TENSORRT) > 30


def test_tensorrt_rtx_has_every_name() -> None:
    """TensorRT-RTX, which is built with in these tests."""
    if find_spec("tensorrt_rtx") is None:
        _skip("tensorrt_rtx is not installed (the extra [tensorrt-rtx])")
    assert [] == _absent("tensorrt_rtx", TENSORRT)["absent"]


def test_tensorrt_11_has_every_name(tmp_path: Path) -> None:
    """TensorRT 11 proper, from its own bindings; its libraries are stood in for by empty ones."""
    compiler = shutil.which("cc")
    if find_spec("tensorrt_bindings") is None or compiler is None:
        pytest.skip("the bindings tensorrt-cu13-bindings or a C compiler are not installed")
    source = tmp_path / "empty.c"
    source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in SYMBOLS))
    for library in ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11"):
        options = ["-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", str(tmp_path / library)]
        subprocess.run([compiler, *options, str(source)], check=True)
    found = _absent("tensorrt_bindings", TENSORRT - RTX_ALONE | {"NoSuchName"}, LD_LIBRARY_PATH=str(tmp_path))
    assert str(found["version"]).startswith("11.")
    assert ["NoSuchName"] == found["absent"]


def test_cuda_bindings_have_every_name() -> None:
    """What the device memory, the stream and the probe ask of the CUDA runtime, the functions called by name too."""
    if find_spec("cuda") is None:
        _skip("cuda-bindings is not installed (the extra [tensorrt-rtx])")
    called = {
        argument.value
        for node in ast.walk(ast.parse((ENGINES / "cuda.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and _dotted(node.func)[-1:] == ["call"]
        for argument in node.args[:1]
        if isinstance(argument, ast.Constant)
    }
    asked = {name for name in _asked(("cuda.py", "probe.py"), "cudart") | called if not name.endswith(".name")}
    assert {"cudaMemcpyAsync", "cudaGraphLaunch", "cudaGetDeviceProperties", "cudaError_t.cudaSuccess"} <= asked
    assert [] == _absent("cuda.bindings.runtime", asked)["absent"]


def test_errors_that_mean_a_lost_device_are_the_runtimes_own() -> None:
    """Each status in the tables is one that CUDA knows: a misspelt one would never match."""
    if find_spec("cuda") is None:
        _skip("cuda-bindings is not installed (the extra [tensorrt-rtx])")
    from dicom_node.engines import cuda

    asked = {f"cudaError_t.{name}" for name in cuda._LOST | cuda._OUT_OF_MEMORY}
    assert [] == _absent("cuda.bindings.runtime", asked)["absent"]
