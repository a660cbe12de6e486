"""From a TOML file to frozen values, or to every problem in it at once: file, line, key, what was probably meant.

Serves config.toml and, by `read_table`, plugin.toml. This is the only module of the configuration that reads files; it
starts nothing and opens no connection.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from dicom_node.config.checks import CONFIG_CHECKS, Problem, unknown_keywords
from dicom_node.config.impossible import impossible_conditions
from dicom_node.config.locate import Loc, locate
from dicom_node.config.schema import Config, Table, plain
from dicom_node.config.words import in_file, sentence
from dicom_node.errors import ConfigError, ConfigProblem

TableT = TypeVar("TableT", bound=Table)

CONFIG_VARIABLE: Final = "DICOM_NODE_CONFIG"
SYSTEM_CONFIG: Final = Path("/etc/dicom-node/config.toml")


def find_config(cli_path: Path | None, env: Mapping[str, str], cwd: Path) -> Path:
    """Return the configuration file that serves: --config, $DICOM_NODE_CONFIG, ./config.toml, /etc/dicom-node.

    Raises
    ------
    ConfigError
        When a file that was asked for is not there, or none is found at all.
    """
    asked_for = cli_path or (Path(env[CONFIG_VARIABLE]) if env.get(CONFIG_VARIABLE) else None)
    if asked_for is not None:
        path = cwd / asked_for
        if not path.is_file():
            source = "--config" if cli_path else f"${CONFIG_VARIABLE}"
            raise _single(path, f"there is no such file: {path} (named by {source})")
        return path
    places = (cwd / "config.toml", SYSTEM_CONFIG)
    for path in places:
        if path.is_file():
            return path
    looked = " and ".join(str(path) for path in places)
    raise _single(places[0], f"not found at {looked}; give --config FILE or set ${CONFIG_VARIABLE}")


def load_config(path: Path) -> Config:
    """Return the configuration in `path`.

    Raises
    ------
    ConfigError
        With every problem of the file, in the order of its lines.
    """
    return read_table(path, Config, checks=CONFIG_CHECKS)


def read_table(
    path: Path, model: type[TableT], checks: Sequence[Callable[[Mapping[str, Any]], Iterator[Problem]]] = ()
) -> TableT:
    """Return the TOML file `path` as a `model`.

    Parameters
    ----------
    checks
        What is asked of the parsed file beyond its schema and its DICOM keywords.

    Raises
    ------
    ConfigError
        With every problem of the file, in the order of its lines.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise _single(path, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise _single(path, "is not UTF-8 text; save it in that encoding", line) from error
    return parse_toml(text, path, model, checks)


def parse_toml(
    text: str,
    path: Path,
    model: type[TableT],
    checks: Sequence[Callable[[Mapping[str, Any]], Iterator[Problem]]] = (),
) -> TableT:
    """Return the TOML `text` as a `model`; `path` only names it in problems.

    Raises
    ------
    ConfigError
        As `read_table` does.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message, line = _syntax_error(str(error), text)
        raise _single(path, message, line) from error
    found = [problem for check in (*checks, unknown_keywords, impossible_conditions) for problem in check(raw)]
    explained = {loc for loc, _ in found}
    try:
        # JSON in strict mode, because TOML has types: "11112" is no port, and a list may fill a tuple.
        value = model.model_validate_json(json.dumps(raw, default=str), strict=True)
    except ValidationError as error:
        found += [(loc, message) for loc, message in _shape_problems(error, raw, model) if loc not in explained]
    else:
        if not found:
            return value
    line_of = locate(text)
    problems = {ConfigProblem(file=path, line=line_of(loc), message=message) for loc, message in found}
    raise ConfigError(tuple(sorted(problems, key=lambda problem: (problem.line or 0, problem.message))))


def config_digest(config: Config) -> str:
    """Return the SHA-256, hexadecimal, of every setting: two files with the same meaning have the same digest."""
    return hashlib.sha256(json.dumps(plain(config), sort_keys=True).encode()).hexdigest()


def data_dir(config: Config, path: Path) -> Path:
    """Return the absolute data folder of the configuration that was read from `path`."""
    return path.absolute().parent / config.node.data_dir


def _single(path: Path, message: str, line: int | None = None) -> ConfigError:
    return ConfigError((ConfigProblem(file=path, line=line, message=message),))


def _syntax_error(message: str, text: str) -> tuple[str, int]:
    """Return tomllib's message without its position, and the line."""
    position = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", message)
    words = message[: position.start()] if position else message
    line = int(position[1]) if position and position[1] else text.count("\n") + 1
    return f"not valid TOML: {words[:1].lower()}{words[1:]}", line


def _shape_problems(error: ValidationError, raw: Mapping[str, Any], model: type[Table]) -> Iterator[Problem]:
    """Yield one problem a location; the members of a union each report, the first one speaks."""
    details = error.errors(include_url=False)
    parents = {detail["loc"][:n] for detail in details for n in range(len(detail["loc"]))}
    seen: set[Loc] = set()
    for detail in details:
        if detail["type"] == "too_short" and detail["loc"] in parents:
            continue  # pydantic counts the items that are left without the wrong ones
        loc = in_file(detail["loc"], raw, keep_last=detail["type"] == "missing")
        if loc not in seen:
            seen.add(loc)
            yield loc, sentence(detail, loc, model)
