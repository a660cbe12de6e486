"""Configuration: what loads, every problem with its line, the shipped file, and the reference in docs/."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.config import Config, config_digest, data_dir, find_config, load_config, parse_toml, read_table
from dicom_node.config.checks import LATER
from dicom_node.config.locate import locate
from dicom_node.config.schema import Condition, SeriesMatch, Table, WebSettings
from dicom_node.config.words import all_tables, keys_of
from dicom_node.errors import ConfigError
from dicom_node.plugin_api import Manifest

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "config.toml"

PUBLISHED_EXAMPLE = """\
[node]
ae_titles = ["DICOM_NODE"]
data_dir = "var"
database = ""
timezone = "local"
[receive]
host = "127.0.0.1"
port = 11112
max_associations = 100
max_pdu = 131072
[storage]
[web]
host = "127.0.0.1"
port = 8080
[plugins]
paths = ["plugins"]
[[peer]]
name = "ct1"
ae_title = "CT1"
hosts = ["10.20.0.0/16"]
may = ["echo", "store"]
[[peer]]
name = "pacs"
ae_title = "ORTHANC"
hosts = ["127.0.0.1/32"]
address = "127.0.0.1:4242"
may = ["echo", "commit"]
[[destination]]
name = "pacs"
peer = "pacs"
[destination.profile]
results = ["sr", "seg", "capture"]
seg = "binary"
sr = "comprehensive_3d"
identity = "source"
[[route]]
name = "brain"
plugin = "brain_mask"
destinations = ["pacs"]
priority = "routine"
start = "series"
max_study_age_days = 7
report_not_processed = false
[route.study]
match = [{ keyword = "StudyDescription", matches = "(?i)head|brain", missing = true }]
[route.series]
match = [
  { keyword = "Modality", equals = "MR" },
  { keyword = "SeriesDescription", matches = "(?i)t1" },
  { keyword = "SliceThickness", at_most = 2.0 },
]
prefer = ["thinnest", "most_slices"]
[route.complete]
"""


def _problems(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    return str(caught.value).splitlines()


def _line(text: str) -> str:
    """Return a route with this one line in it, for tests of one key."""
    return f'[[route]]\nname = "r"\nplugin = "p"\n{text}\n'


def test_published_example_loads() -> None:
    """The example of the published interface stays valid, word for word."""
    config = parse_toml(PUBLISHED_EXAMPLE, Path("config.toml"), Config)
    assert ("brain", "brain_mask", ("pacs",)) == (
        config.route[0].name,
        config.route[0].plugin,
        config.route[0].destinations,
    )
    assert config.peer[1].address is not None
    assert ("127.0.0.1", 4242) == (config.peer[1].address.host, config.peer[1].address.port)


def test_what_has_no_effect_is_noted() -> None:
    """A key that is accepted and does nothing yet is never silent."""
    notes = parse_toml(PUBLISHED_EXAMPLE + "[web2]\n".replace("web2", "worker"), Path("c.toml"), Config).notes()
    assert [
        'destination "pacs": "capture" is not made by this version; it gets the other results',
        'peer "pacs": "commit" has no effect; storage commitment is not part of this version',
    ] == list(notes)


def test_empty_file_is_a_node_that_says_what_it_lacks() -> None:
    """Defaults alone load, and the notes say why nothing will happen."""
    config = parse_toml("", Path("config.toml"), Config)
    assert Config() == config
    assert [
        'no [[peer]] has `hosts` and may "store": every image is refused',
        "there is no [[route]]: studies are filed and nothing else happens to them",
    ] == list(config.notes())


@pytest.mark.parametrize(
    ("config", "note"),
    [
        (Config(web=WebSettings(port=9000)), "[web] has no effect; the web pages are not part of this version"),
        (
            parse_toml(_line(""), Path("c.toml"), Config),
            'route "r" has no destinations: its results stay on the node',
        ),
        (
            parse_toml(
                '[[peer]]\nname="p"\nae_title="P"\naddress="h:1"\n[[destination]]\nname="d"\npeer="p"',
                Path("c"),
                Config,
            ),
            'destination "d" is named by no route',
        ),
    ],
)
def test_notes_name_what_will_surprise(config: Config, note: str) -> None:
    """What is allowed and yet probably not meant gets a sentence."""
    assert note in config.notes()


def test_misspelt_key_has_file_line_and_nearest_key(tmp_path: Path) -> None:
    """The exact text that the acceptance criterion asks for."""
    text = "\n" * 10 + "[receive]\nmax_asociations = 3\n"
    expected = 'config.toml:12: unknown key "max_asociations" in [receive]; did you mean "max_associations"?'
    assert [expected] == _problems(tmp_path, text)


def test_all_problems_are_reported_at_once_in_the_order_of_lines(tmp_path: Path) -> None:
    """Syntax apart, one run shows everything: keys, types, names and keywords of the same file."""
    text = (
        "[receive]\nprt = 1\nmax_pdu = 12\n"
        + _line('destinations = ["nowhere"]\nseries.match = [{ keyword = "Modalty", equals = "CT" }]')
        + '[node]\ndatabase = "postgresql://x"\n'
    )
    assert [
        'config.toml:2: unknown key "prt" in [receive]; did you mean "port"?',
        'config.toml:3: "max_pdu" in [receive] must be at least 4096, not 12',
        'config.toml:7: no [[destination]] is called "nowhere"',
        'config.toml:8: unknown DICOM keyword "Modalty"; did you mean "Modality"?',
        'config.toml:10: "database" = "postgresql" in [node] is not available in this version',
    ] == _problems(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[receiver]", '1: unknown key "receiver" in the file; did you mean "receive"?'),
        ("[receive]\nquiet_s = 5", '2: unknown key "quiet_s" in [receive]; it belongs in [route.complete]'),
        ("[receive]\nzzz = 5", '2: unknown key "zzz" in [receive]'),
        ('[receive]\nport = "1"', '2: "port" in [receive] must be a whole number, not the text "1"'),
        ("[receive]\nport = 1.5", '2: "port" in [receive] must be a whole number, not 1.5'),
        ("[receive]\nport = true", '2: "port" in [receive] must be a whole number, not true'),
        ("[receive]\nport = 0", '2: "port" in [receive] must be at least 1, not 0'),
        ("[receive]\nport = 65536", '2: "port" in [receive] must be at most 65535, not 65536'),
        ("[receive]\nhost = 1", '2: "host" in [receive] must be text in quotation marks, such as "abc", not 1'),
        (
            "[receive]\nidle_timeout_s = inf",
            '2: "idle_timeout_s" in [receive] must be a finite number, not inf',
        ),
        ("receive = 5", '1: "receive" in the file must be a table, not 5'),
        ("[node]\nae_titles = []", '2: "ae_titles" in [node] must have at least 1 item(s)'),
        (
            '[node]\nae_titles = "A"',
            '2: "ae_titles" in [node] must be a list in brackets [ ], not the text "A"',
        ),
        (
            '[node]\nae_titles = [\n"OK",\n"B\\\\C"]',
            '4: "ae_titles" in [node]: an AE title has 1 to 16 printable ASCII characters and no backslash',
        ),
        (
            '[node]\nae_titles = ["ABCDEFGHIJKLMNOPQ"]',
            '2: "ae_titles" in [node]: an AE title has 1 to 16 printable ASCII characters and no backslash',
        ),
        (
            '[storage]\non_conflict = "keepfirst"',
            '2: "on_conflict" in [storage] must be "replace_if_same_source" or "keep_first" or "reject", '
            'not the text "keepfirst"; did you mean "keep_first"?',
        ),
        ('[[peer]]\nae_title = "A"', '1: [[peer]] needs the key "name"'),
        (
            '[[peer]]\nname = "p"\nae_title = "A"\naddress = "x"',
            '4: "address" in [[peer]]: an address is "host:port", for example "127.0.0.1:4242"',
        ),
        (
            '[[peer]]\nname = "a/b"\nae_title = "A"',
            '2: "name" in [[peer]]: a name has 1 to 64 letters, digits, dots, dashes or underscores; '
            "a letter or digit first",
        ),
        (
            '[[peer]]\nname = "p"\nae_title = "A"\nhosts = ["10.0.0.1/8"]',
            '4: "hosts" in [[peer]]: a network is written "10.20.0.0/16", an address "10.20.3.4": '
            "10.0.0.1/8 has host bits set",
        ),
        ('[[destination]]\nname = "d"\npeer = "p"', '3: no [[peer]] is called "p"'),
        (
            '[[peer]]\nname = "pacs"\nae_title = "A"\naddress="h:1"\n[[destination]]\nname = "d"\npeer = "pasc"',
            '7: no [[peer]] is called "pasc"; did you mean "pacs"?',
        ),
        (
            '[[peer]]\nname = "p"\nae_title = "A"\n[[destination]]\nname = "d"\npeer = "p"',
            '6: [[peer]] "p" needs an `address`, because a destination names it',
        ),
        (
            '[[peer]]\nname = "p"\nae_title = "A"\n[[peer]]\nname = "p"\nae_title = "B"',
            '5: another [[peer]] is called "p" already; names are unique',
        ),
        (_line("max_study_age_days = 0"), '4: "max_study_age_days" in [[route]] must be more than 0, not 0'),
        (_line('[route.series]\nprefer = ["thin"]'), None),
    ],
)
def test_each_mistake_is_told_in_plain_words(tmp_path: Path, text: str, problem: str | None) -> None:
    """Key, table, what is allowed and what stands there; never the words of the validator."""
    problems = _problems(tmp_path, text)
    assert 1 == len(problems)
    assert problem is None or problems == [f"config.toml:{problem}"]
    assert "Input should" not in problems[0]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("{ }", "a condition names one attribute: `keyword` or `tag`"),
        ('{ keyword = "Modality" }', "a condition needs one of equals, in, matches, contains, at_least"),
        ('{ keyword = "Modality", tag = "(0008,0060)", equals = "CT" }', "a condition names one attribute"),
        ('{ keyword = "Modality", equals = "CT", matches = "M" }', "one operator; equals and matches are 2"),
        ('{ keyword = "Modality", in = ["CT"], exists = true }', "one operator; in and exists are 2"),
        ('{ keyword = "Modality", in = [] }', "`in` needs at least one value"),
        ('{ keyword = "Modality", matches = "(" }', "`matches` is no regular expression"),
        ('{ keyword = "Rows", at_least = 3, at_most = 2 }', "no value is at least 3 and at most 2"),
        ('{ keyword = "Rows", exists = true, missing = true }', "`exists` asks for presence alone"),
        ("{ any = [] }", "`any` needs at least one condition"),
        ('{ any = [{ keyword = "Rows", exists = true }], missing = true }', "a group with `any` has no other key"),
        ('{ tag = "0018,0050", exists = true }', 'a tag is written "(0018,0050)"'),
        ('{ tag = "(0019,xx08)", exists = true }', "needs `private_creator`"),
        ('{ tag = "(0018,xx08)", private_creator = "A", exists = true }', "goes with a private `tag`"),
        ('{ keyword = "Rows", private_creator = "A", exists = true }', "goes with a private `tag`"),
        ('{ keyword = "Rows", equal = 3 }', 'did you mean "equals"?'),
        ('{ any = [{ keyword = "Rowss", exists = true }] }', 'unknown DICOM keyword "Rowss"; did you mean "Rows"?'),
        ('{ keyword = "modality", equals = "CT" }', 'unknown DICOM keyword "modality"; did you mean "Modality"?'),
    ],
)
def test_condition_that_can_mean_nothing_is_refused(tmp_path: Path, condition: str, message: str) -> None:
    """A condition is one attribute and one operator, spelled rightly, at the line where it stands."""
    problems = _problems(tmp_path, _line(f"[route.series]\nmatch = [\n{condition},\n]"))
    assert problems[0].startswith("config.toml:6: ")
    assert message in problems[0]


LATER_USES = {
    "node.database": '[node]\ndatabase = "postgresql+psycopg://node@db/node"',
    "destination.dicomweb": '[[destination]]\nname = "d"\ndicomweb = "https://pacs/dicom-web"',
    "destination.profile.seg": '[[destination]]\nname = "d"\n[destination.profile]\nseg = "labelmap"',
    "destination.profile.sr": '[[destination]]\nname = "d"\n[destination.profile]\nsr = "comprehensive"',
    "route.report_not_processed": _line("report_not_processed = true"),
    "route.complete.expected_from": _line('[route.complete]\nexpected_from = "pacs"'),
}


@pytest.mark.parametrize("key", [".".join(way) for way in LATER])
def test_keys_of_later_versions_are_refused_by_name(tmp_path: Path, key: str) -> None:
    """What the published interface promises for later is neither "unknown" nor silently ignored."""
    problems = [line for line in _problems(tmp_path, LATER_USES[key]) if "not available" in line]
    assert 1 == len(problems)
    assert f'"{key.rpartition(".")[2]}"' in problems[0]


def test_password_of_a_database_address_is_not_repeated(tmp_path: Path) -> None:
    """A refused value shows its kind, not its secrets."""
    problems = _problems(tmp_path, '[node]\ndatabase = "postgresql+psycopg://node:s3cret@db/node"')
    assert ['config.toml:2: "database" = "postgresql+psycopg" in [node] is not available in this version'] == problems


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[node]\nport = = 3\n", "config.toml:2: not valid TOML: invalid value"),
        (b"a = 1\na = 2\n", "config.toml:2: not valid TOML: cannot overwrite a value"),
        (b'a = """\nnever\n', "config.toml:3: not valid TOML: unterminated string"),
        (b"a = 1\nb = '\xff'\n", "config.toml:2: is not UTF-8 text; save it in that encoding"),
    ],
)
def test_what_is_no_toml_has_a_line(tmp_path: Path, content: bytes, problem: str) -> None:
    """A file that cannot even be parsed names the line, too."""
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert problem == str(caught.value)


def test_byte_order_mark_is_tolerated(tmp_path: Path) -> None:
    """Editors on Windows write one; it means nothing."""
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xef\xbb\xbf[receive]\nport = 104\n")
    assert 104 == load_config(path).receive.port


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A path that leads nowhere is a configuration error, exit code 2."""
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file") as caught:
        load_config(tmp_path / "none.toml")
    assert 2 == caught.value.exit_code


def test_file_is_found_in_the_promised_order(tmp_path: Path) -> None:
    """--config, then the environment, then the working folder; the first that is named must exist."""
    for name in ("cli.toml", "env.toml", "config.toml"):
        (tmp_path / name).write_text("", encoding="utf-8")
    env = {"DICOM_NODE_CONFIG": str(tmp_path / "env.toml")}
    assert tmp_path / "cli.toml" == find_config(Path("cli.toml"), env, tmp_path)
    assert tmp_path / "env.toml" == find_config(None, env, tmp_path)
    assert tmp_path / "config.toml" == find_config(None, {}, tmp_path)
    with pytest.raises(ConfigError, match=r"no such file.*named by --config"):
        find_config(tmp_path / "none.toml", env, tmp_path)
    with pytest.raises(ConfigError, match=r"no such file.*named by \$DICOM_NODE_CONFIG"):
        find_config(None, {"DICOM_NODE_CONFIG": "none.toml"}, tmp_path)


def test_no_file_at_all_says_where_it_was_sought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names both places and both ways out."""
    monkeypatch.setattr("dicom_node.config.load.SYSTEM_CONFIG", tmp_path / "etc" / "config.toml")
    with pytest.raises(ConfigError, match=r"give --config FILE or set \$DICOM_NODE_CONFIG"):
        find_config(None, {}, tmp_path)


def test_digest_follows_meaning_not_spelling() -> None:
    """Comments, order and defaults that are written out change nothing; a setting does."""
    plain, spelled, other = (
        parse_toml(text, Path("c.toml"), Config)
        for text in ("", "# words\n[receive]\nport = 11112\n", "[receive]\nport = 104\n")
    )
    assert config_digest(plain) == config_digest(spelled)
    assert config_digest(plain) != config_digest(other)


def test_data_dir_is_relative_to_the_file(tmp_path: Path) -> None:
    """Where the command was called from does not matter."""
    assert tmp_path / "var" == data_dir(Config(), tmp_path / "config.toml")
    config = parse_toml('[node]\ndata_dir = "/srv/node"', Path("c.toml"), Config)
    assert Path("/srv/node") == data_dir(config, tmp_path / "config.toml")


def test_read_table_serves_other_files_with_conditions(tmp_path: Path) -> None:
    """plugin.toml goes the same way: keys, types and DICOM keywords are checked with their lines."""
    path = tmp_path / "plugin.toml"
    path.write_text('match = [\n  { keyword = "Modaliti", equals = "CT" },\n]\nprefr = []\n', encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_table(path, SeriesMatch)
    assert [
        'plugin.toml:2: unknown DICOM keyword "Modaliti"; did you mean "Modality"?',
        'plugin.toml:4: unknown key "prefr" in the file; did you mean "prefer"?',
    ] == str(caught.value).splitlines()


def test_mistakes_in_a_manifest_are_told_as_well_as_those_of_the_node(tmp_path: Path) -> None:
    """Steps are of several kinds: the kind that is written knows its keys."""
    manifest = (ROOT / "plugins" / "qa_phantom" / "plugin.toml").read_text(encoding="utf-8")
    wrong = {
        "min_slices = 16": "min_slice = 16",
        "spacing_mm = ": "spacing = ",
        'kind = "orient"': 'kind = "orientt"',
    }
    for right, misspelt in wrong.items():
        assert 1 == manifest.count(right)
        manifest = manifest.replace(right, misspelt)
    path = tmp_path / "plugin.toml"
    path.write_text(manifest, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_table(path, Manifest)
    problems = [problem.message for problem in caught.value.problems]
    assert 'unknown key "min_slice" in [[input_series]]; did you mean "min_slices"?' in problems
    assert 'unknown key "spacing" in [[preprocess.step]]; did you mean "spacing_mm"?' in problems
    assert '[[preprocess.step]] needs the key "spacing_mm"' in problems
    (kind,) = [problem for problem in problems if "orientt" in problem]
    assert kind.startswith('"kind" in [[preprocess.step]] must be "orient" or ')
    assert kind.endswith('not the text "orientt"; did you mean "orient"?')
    assert 4 == len(problems)


# ------------------------------------------------------------------------------------------------ lines of keys

INTRICATE = '''\
title = "a # no comment, [no table]"
"quoted.key" = 1
'literal "key"' = 2
a . b = 3
text = """
[not.a.table]
key = "no"  \\
""""
raw = \'\'\'
# = [ {
\'\'\'
[plain]
list = [1, [2, 3],
  4, # ], [x]
  { deep = "}", more = [
    "]",
  ] },
]
[[item]]
name = "one"
[item.sub]
x = 1
[[item]]
name = "two"
[[item.part]]
y = 1
[[item.part]]
y = 2
[ item . "sub" ]
x = 2
[late.child]
z = 1
[late]
w = 1
when = 2026-01-01 10:00:00
'''


@pytest.mark.parametrize(
    ("loc", "line"),
    [
        (("title",), 1),
        (("quoted.key",), 2),
        (('literal "key"',), 3),
        (("a",), 4),
        (("a", "b"), 4),
        (("text",), 5),
        (("raw",), 9),
        (("plain",), 12),
        (("plain", "list"), 13),
        (("plain", "list", 0), 13),
        (("plain", "list", 1, 1), 13),
        (("plain", "list", 2), 14),
        (("plain", "list", 3), 15),
        (("plain", "list", 3, "more"), 15),
        (("plain", "list", 3, "more", 0), 16),
        (("item",), 19),
        (("item", 0, "name"), 20),
        (("item", 0, "sub", "x"), 22),
        (("item", 1), 23),
        (("item", 1, "part", 0), 25),
        (("item", 1, "part", 1, "y"), 28),
        (("item", 1, "sub"), 29),
        (("item", 1, "sub", "x"), 30),
        (("late", "child", "z"), 32),
        (("late",), 33),
        (("late", "when"), 35),
        (("item", 1, "missing"), 23),
        (("nowhere", "at", "all"), None),
        ((), None),
    ],
)
def test_line_of_each_kind_of_key(loc: tuple[str | int, ...], line: int | None) -> None:
    """Strings, comments, inline tables, dotted and quoted keys, arrays of tables: the line is right."""
    tomllib.loads(INTRICATE)
    assert line == locate(INTRICATE)(loc)


def test_comment_may_end_the_file() -> None:
    """The last line needs no line break."""
    assert 1 == locate("a = 1 # the end")(("a",))


def _leaves(value: object, loc: tuple[str | int, ...] = ()) -> list[tuple[tuple[str | int, ...], object]]:
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in _leaves(inner, (*loc, key))]
    if isinstance(value, list):
        return [leaf for index, inner in enumerate(value) for leaf in _leaves(inner, (*loc, index))]
    return [(loc, value)]


@given(st.data())
def test_inserted_lines_move_every_key_with_them(data: st.DataObject) -> None:
    """Comments and blank lines between the lines of a file shift each key by exactly their number."""
    inside_text = {6, 7, 8, 10, 11}  # lines that continue a string; nothing may be put before them
    filler = st.lists(st.sampled_from(["", "  ", "# [x]", '# "', "\t# key = 1"]), max_size=2)
    lines: list[str] = []
    new_line: dict[int, int] = {}
    for number, line in enumerate(INTRICATE.splitlines(), start=1):
        if number not in inside_text:
            lines += data.draw(filler)
        lines.append(line)
        new_line[number] = len(lines)
    text = "\n".join(lines) + "\n"
    before, after = locate(INTRICATE), locate(text)
    leaves = _leaves(tomllib.loads(text))
    assert leaves == _leaves(tomllib.loads(INTRICATE))
    for loc, _ in leaves:
        for n in range(1, len(loc) + 1):
            assert new_line[before(loc[:n]) or 0] == after(loc[:n])


_KEYS = st.text("ab-_. \"'#[]=é", max_size=5)
_TOML_VALUES = st.recursive(
    st.integers() | st.booleans() | st.text(alphabet="ab\"'\\#[]{},=\t é", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=8,
)


def _spelled(value: object) -> str:
    if isinstance(value, bool | int):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\t", "\\t") + '"'
    if isinstance(value, list):
        return "[" + ",\n".join(map(_spelled, value)) + "\n]"
    assert isinstance(value, dict)
    return "{" + ", ".join(f"{_spelled(key)} = {_spelled(inner)}" for key, inner in value.items()) + "}"


@given(st.dictionaries(_KEYS, _TOML_VALUES, max_size=4))
def test_every_value_of_any_document_is_found_where_it_stands(document: dict[str, object]) -> None:
    """The scanner agrees with tomllib about what exists, whatever strings and keys contain."""
    text = "".join(f"{_spelled(key)} = {_spelled(value)}\n" for key, value in document.items())
    line_of = locate(text)
    assert document == tomllib.loads(text)
    for loc, value in _leaves(document):
        line = line_of(loc)
        assert line is not None
        assert _spelled(value).splitlines()[0] in text.splitlines()[line - 1]


# ------------------------------------------------------------------------------------- shipped file and reference

TABLES = {
    ".".join(str(part) for part in loc if isinstance(part, str)): table
    for loc, table in all_tables(Config)
    if table is not Condition
}
ALL_KEYS = [(name, key) for name, table in TABLES.items() for key in keys_of(table)]


def _section(name: str) -> str:
    """Return the text of the reference under the heading of this table."""
    reference = (ROOT / "docs" / "administration.md").read_text(encoding="utf-8")
    match = re.search(rf"^###+ `\[+{re.escape(name)}\]+`(.*?)(?=^##|\Z)", reference, re.MULTILINE | re.DOTALL)
    return match[1] if match else ""


def test_shipped_file_loads_without_a_note() -> None:
    """What we ship is right and surprises nobody."""
    assert () == load_config(SHIPPED).notes()


def test_shipped_file_listens_on_loopback_alone() -> None:
    """A node that was just unpacked can be reached from its own machine only."""
    config = load_config(SHIPPED)
    assert ["127.0.0.1", "127.0.0.1"] == [config.receive.host, config.web.host]
    assert all(network.is_loopback for peer in config.peer for network in peer.hosts)


@pytest.mark.parametrize("name", ["node", "receive", "storage", "worker", "sender", "web", "plugins"])
def test_shipped_values_are_the_defaults(name: str) -> None:
    """The file shows the defaults; deleting a line changes nothing."""
    assert getattr(Config(), name) == getattr(load_config(SHIPPED), name)


@pytest.mark.parametrize(("table", "key"), [pair for pair in ALL_KEYS if pair[0] and pair[0] != "peer.address"])
def test_shipped_file_lists_every_key_with_a_comment(table: str, key: str) -> None:
    """Each key stands in its table, set or as "# key = ..."; except for the tables themselves, which may be unset."""
    if f"{table}.{key}" in TABLES and f"{table}.{key}" != "peer.address":
        return
    text = SHIPPED.read_text(encoding="utf-8")
    blocks = re.findall(rf"^(?:# )?\[+{re.escape(table)}\]+(.*?)(?=^(?:# )?\[|\Z)", text, re.MULTILINE | re.DOTALL)
    assert any(re.search(rf"^(# )?{key} = ", block, re.MULTILINE) for block in blocks)


@pytest.mark.parametrize("key", [key for key in keys_of(Condition) if key != "any"] + ["any = ["])
def test_shipped_file_explains_every_part_of_a_condition(key: str) -> None:
    """The page on conditions is complete."""
    assert re.search(rf"\b{re.escape(key)}", SHIPPED.read_text(encoding="utf-8").partition("# A condition names")[2])


@pytest.mark.parametrize(("table", "key"), [pair for pair in ALL_KEYS if pair[0] and pair[0] != "peer.address"])
def test_reference_documents_every_key(table: str, key: str) -> None:
    """docs/administration.md has a row for each key under its table."""
    if f"{table}.{key}" not in TABLES or f"{table}.{key}" == "peer.address":
        assert f"| `{key}` |" in _section(table)


@pytest.mark.parametrize(("table", "key"), [pair for pair in ALL_KEYS if pair[0] and pair[0] != "peer.address"])
def test_reference_gives_the_default(table: str, key: str) -> None:
    """The default in the reference is that of the schema, spelled as TOML."""
    field = keys_of(TABLES[table])[key]
    if field.is_required() or isinstance(field.default, Table):
        return
    if field.default is None:
        default = "not set"
    elif isinstance(field.default, tuple):
        default = "`[" + ", ".join(f'"{item}"' for item in field.default) + "]`"
    elif isinstance(field.default, str):
        default = f'`"{field.default}"`'
    else:
        default = f"`{str(field.default).lower()}`"
    assert f"| `{key}` | {default} |" in _section(table)


@pytest.mark.parametrize("key", list(keys_of(Condition)))
def test_reference_documents_every_part_of_a_condition(key: str) -> None:
    """Each operator and modifier has its row."""
    assert re.search(rf"^\| `{key} = ", (ROOT / "docs" / "administration.md").read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("key", [".".join(way) for way in LATER])
def test_reference_lists_what_later_versions_bring(key: str) -> None:
    """Nobody has to try out whether a published key is there yet."""
    reference = (ROOT / "docs" / "administration.md").read_text(encoding="utf-8")
    assert f"`{key}`" in reference.partition("## Not available yet")[2]
