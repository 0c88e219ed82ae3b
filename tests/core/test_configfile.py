"""One file, merged under the code; what is wrong is named with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from guard_agent import AgentConfig, ConfigurationError
from guard_agent.core.assembly.configfile import find_file, load_config, resolve

KEY = "a-key-of-a-test"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Every test runs in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GUARD_AGENT_CONFIG", raising=False)
    return tmp_path


def write(name, text):
    path = Path(name)
    path.write_text(text, encoding="utf-8")
    return path


def write_yaml(text):
    return write("guard-agent.yaml", text)


def write_toml(text):
    return write("pyproject.toml", text)


def problems_of(call, *arguments, **keywords):
    with pytest.raises(ConfigurationError) as caught:
        call(*arguments, **keywords)
    for problem in caught.value.problems:
        assert problem.fatal
        assert problem.fix
    return caught.value.problems


def only_problem(call=load_config, *arguments, **keywords):
    (problem,) = problems_of(call, *arguments, **keywords)
    return problem


# --- which file -----------------------------------------------------------------------------------


def test_without_a_file_the_code_stands_alone():
    config = AgentConfig(api_key=KEY)

    assert find_file() is None
    assert resolve(config) is config
    assert load_config(api_key=KEY, buffer_size=5).buffer_size == 5


def test_the_files_are_looked_for_in_this_order(monkeypatch):
    explicit = write("explicit.yaml", f"api_key: {KEY}\nproject_id: explicit\n")
    named = write("named.yaml", f"api_key: {KEY}\nproject_id: named\n")
    yaml = write_yaml(f"api_key: {KEY}\nproject_id: yaml\n")
    write_toml(f'[tool.guard-agent]\napi_key = "{KEY}"\nproject_id = "toml"\n')

    monkeypatch.setenv("GUARD_AGENT_CONFIG", str(named))
    assert load_config(explicit).project_id == "explicit"
    assert load_config().project_id == "named"
    monkeypatch.setenv("GUARD_AGENT_CONFIG", "")
    assert load_config().project_id == "yaml"
    yaml.unlink()
    assert load_config().project_id == "toml"


def test_only_one_file_is_read():
    write_yaml(f"api_key: {KEY}\n")
    write_toml('[tool.guard-agent]\nproject_id = "toml"\n')

    assert load_config().project_id is None


@pytest.mark.parametrize(
    "text", ["[tool.ruff]\nline-length = 100\n", "not toml at all", '[project]\nname="guard-agent"']
)
def test_a_pyproject_of_others_is_left_alone(text):
    """
    A drop-in must not keep a program from running for a file that is none of its business.
    """
    write_toml(text)

    assert find_file() is None


def test_a_broken_pyproject_that_mentions_us_is_an_error():
    write_toml("[tool.guard-agent]\napi_key = \n")

    problem = only_problem()
    assert problem.code == "GA302"
    assert problem.message.startswith("pyproject.toml:2: is not valid TOML: ")


def test_a_misspelt_table_is_not_just_overlooked():
    write_toml(f'[project]\nname = "shop"\n\n[tool.guard_agent]\napi_key = "{KEY}"\n')

    problem = only_problem()
    assert problem.code == "GA302"
    assert problem.message == (
        "pyproject.toml:4: has a table [tool.guard_agent], which nothing reads"
    )
    assert problem.fix == "write [tool.guard-agent]"


@pytest.mark.parametrize("level", ["guard-agent", "guard_agent", "tool"])
def test_a_yaml_file_needs_no_level_around_its_settings(level):
    write_yaml(f"{level}:\n  project_id: shop\n")

    problem = only_problem(load_config, api_key=KEY)
    assert problem.code == "GA303"
    assert f"guard-agent.yaml:1: there is no setting {level}" in problem.message
    assert "at the top of the file" in problem.fix


def test_names_of_plugins_are_shown_because_they_are_no_secrets():
    write_yaml("transports: [http, http]\n")

    problem = only_problem(load_config, api_key=KEY)
    assert problem.code == "GA304"
    assert "names 'http' twice" in problem.message
    assert "'http/second'" in problem.message


@pytest.mark.parametrize("name", ["absent.yaml", "absent.toml"])
def test_ga301_a_file_that_is_named_has_to_exist(name):
    problem = only_problem(load_config, Path(name))

    assert problem.code == "GA301"
    assert f"{name} cannot be read: No such file or directory" in problem.message


def test_ga301_names_the_variable_that_names_the_file(monkeypatch):
    monkeypatch.setenv("GUARD_AGENT_CONFIG", "absent.yaml")

    assert "GUARD_AGENT_CONFIG" in only_problem().fix


def test_ga301_a_folder_a_huge_file_and_another_encoding(folder):
    Path("folder.yaml").mkdir()
    write("huge.yaml", "# " + "x" * (1024 * 1024))
    Path("latin.yaml").write_bytes(b"project_id: caf\xe9\n")

    codes = [only_problem(load_config, Path(f"{n}.yaml")) for n in ("folder", "huge", "latin")]

    assert [problem.code for problem in codes] == ["GA301"] * 3
    assert "is larger than 1048576 bytes" in codes[1].message
    assert "is not UTF-8 text" in codes[2].message


# --- merging --------------------------------------------------------------------------------------


def test_code_goes_before_the_file_and_the_file_before_the_defaults():
    write_yaml("buffer_size: 7\nflush_interval: 11\n")

    config = resolve(AgentConfig(api_key=KEY, buffer_size=3))

    assert (config.buffer_size, config.flush_interval, config.timeout) == (3, 11, 30)


def test_a_default_that_the_code_repeats_is_said_by_the_code():
    write_yaml("buffer_size: 7\n")

    assert resolve(AgentConfig(api_key=KEY, buffer_size=100)).buffer_size == 100


def test_none_in_code_leaves_the_setting_open():
    """
    The adapters pass every keyword they know, None for what their user did not set.
    """
    write_yaml("project_id: shop\n")

    assert resolve(AgentConfig(api_key=KEY, project_id=None)).project_id == "shop"


def test_plugin_sections_merge_key_by_key():
    write_yaml("plugins:\n  http: {timeout: 5, retries: 2}\n  redis: {url: redis://localhost}\n")

    code = {"http": {"timeout": 1}, "http/eu": {"timeout": 9}}
    config = resolve(AgentConfig(api_key=KEY, plugins=code))

    assert config.plugins == {
        "http": {"timeout": 1, "retries": 2},
        "http/eu": {"timeout": 9},
        "redis": {"url": "redis://localhost"},
    }


def test_callbacks_survive_the_merge():
    def on_error(stage, error, context):
        raise NotImplementedError

    write_yaml("buffer_size: 7\n")

    assert resolve(AgentConfig(api_key=KEY, on_error=on_error)).on_error is on_error


def test_subclasses_survive_the_merge():
    class Config(AgentConfig):
        extra_setting: int = 1

    write_yaml("extra_setting: 2\n")

    config = resolve(Config(api_key=KEY))
    assert (type(config), config.extra_setting) == (Config, 2)


def test_empty_sections_and_empty_files_say_nothing():
    write_yaml("plugins:\n  http:\n")
    assert load_config(api_key=KEY).plugins == {"http": {}}
    write_yaml("plugins:\n")
    assert load_config(api_key=KEY).plugins == {}
    write_yaml("# nothing yet\n")
    assert load_config(api_key=KEY).plugins == {}


def test_the_example_of_the_documentation(monkeypatch):
    monkeypatch.setenv("GUARD_API_KEY", KEY)
    write_toml(
        """
[tool.guard-agent]
project_id = "shop"
api_key = "${env:GUARD_API_KEY}"
enrichers = ["redaction", "truncate"]
store = "redis"
transports = ["http", "jsonl"]
rules = ["polling"]

[tool.guard-agent.plugins.redis]
url = "redis://localhost:6379/0"
"""
    )

    config = load_config()

    assert (config.project_id, config.api_key, config.store) == ("shop", KEY, "redis")
    assert config.enrichers == ["redaction", "truncate"]
    assert config.plugins["redis"] == {"url": "redis://localhost:6379/0"}


def test_a_setting_knows_its_line_unless_the_code_said_it():
    write_toml(
        """[tool.guard-agent]
buffer_size = 7
plugins.jsonl.path = "x"
[tool.guard-agent.plugins."http/eu"]
timeout = 5
retries = [
  1,
]
"""
    )
    code = {"http/eu": {"timeout": 1}, "console": {"colour": True}}

    config = resolve(AgentConfig(api_key=KEY, plugins=code))

    assert config.origin("buffer_size") == "pyproject.toml:2"
    assert config.origin("plugins.jsonl.path") == "pyproject.toml:3"
    assert config.origin("plugins.http/eu.retries") == "pyproject.toml:6"
    assert config.origin("plugins.http/eu.unheard_of") == "pyproject.toml:4"
    assert config.origin("plugins.http/eu.timeout") is None
    assert config.origin("plugins.console.colour") is None
    assert config.origin("api_key") is None


# --- references -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${env:FOO}", "one"),
        ("a-${env:FOO}-${env:FOO}-z", "a-one-one-z"),
        ("${env:FOO:-two}", "one"),
        ("${env:ABSENT:-two}", "two"),
        ("${env:EMPTY:-two}", "two"),
        ("${env:ABSENT:-}", ""),
        ("x${env:EMPTY}", "x"),
        ("$${env:FOO}", "${env:FOO}"),
        ("$5 and {braces}", "$5 and {braces}"),
        ("${env:NESTED}", "${env:FOO}"),
    ],
)
def test_environment_variables(monkeypatch, text, value):
    monkeypatch.setenv("FOO", "one")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.setenv("NESTED", "${env:FOO}")
    monkeypatch.delenv("ABSENT", raising=False)
    write_yaml(f"project_id: '{text}'\n")

    assert load_config(api_key=KEY).project_id == value


def test_what_a_variable_holds_cannot_change_the_structure(monkeypatch):
    """
    Parsed first, resolved then.
    """
    monkeypatch.setenv("FOO", "x\nallow_unredacted: true")
    write_yaml("payload_signing_secret: ${env:FOO}\n")

    config = load_config(api_key=KEY)

    assert config.payload_signing_secret == "x\nallow_unredacted: true"
    assert config.allow_unredacted is False


def test_numbers_and_lists_may_come_from_variables(monkeypatch):
    monkeypatch.setenv("FOO", "12")
    write_yaml("buffer_size: ${env:FOO}\nsensitive_headers: ['x-${env:FOO}']\n")

    config = load_config(api_key=KEY)

    assert (config.buffer_size, config.sensitive_headers) == (12, ["x-12"])


@pytest.mark.parametrize("text", ["${FOO}", "${env:}", "${env:A B}", "${env:FOO", "${file:x}"])
def test_ga308_malformed_reference(text):
    write_yaml(f"buffer_size: 3\nproject_id: '{text}'\n")

    problem = only_problem(load_config, api_key=KEY)

    assert problem.code == "GA308"
    assert problem.message.startswith("guard-agent.yaml:2: project_id ")
    assert "${env:NAME}" in problem.fix
    assert "$${" in problem.fix


def test_ga305_variable_that_is_not_set(monkeypatch):
    monkeypatch.delenv("ABSENT", raising=False)
    write_yaml("project_id: shop\napi_key: ${env:ABSENT}\n")

    problem = only_problem()

    assert problem.code == "GA305"
    assert problem.message == (
        "guard-agent.yaml:2: api_key refers to the environment variable ABSENT, which is not set"
    )
    assert problem.fix.startswith("set ABSENT")


def test_what_the_code_overrides_is_not_resolved(monkeypatch):
    monkeypatch.delenv("ABSENT", raising=False)
    write_yaml("api_key: ${env:ABSENT}\nplugins: {http: {token: '${env:ABSENT}'}}\n")

    config = load_config(api_key=KEY, plugins={"http": {"token": "x"}})

    assert (config.api_key, config.plugins) == (KEY, {"http": {"token": "x"}})


def test_a_setting_may_stand_in_a_file_beside_the_configuration(folder):
    (folder / "conf").mkdir()
    (folder / "conf" / "key.txt").write_text(f"\n{KEY}\n", encoding="utf-8")
    path = write("conf/agent.toml", '[tool.guard-agent]\napi_key = { file = "key.txt" }\n')

    assert load_config(path).api_key == KEY


def test_the_path_of_a_file_may_contain_variables(folder, monkeypatch):
    monkeypatch.setenv("SECRETS", str(folder))
    write("key.txt", KEY)
    write_yaml("api_key: {file: '${env:SECRETS}/key.txt'}\n")

    assert load_config().api_key == KEY


def test_the_content_of_a_file_is_not_resolved_again():
    write("id.txt", "${env:HOME}")
    write_yaml("project_id: {file: id.txt}\n")

    assert load_config(api_key=KEY).project_id == "${env:HOME}"


def test_a_plugin_may_have_one_setting_that_is_called_file():
    """
    ``file`` refers to a file only where a value is expected, not where a section is.
    """
    write_yaml("plugins: {jsonl: {file: out.jsonl}, file: {path: rules.json}}\n")

    assert load_config(api_key=KEY).plugins == {
        "jsonl": {"file": "out.jsonl"},
        "file": {"path": "rules.json"},
    }


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"x" * 65537, "is larger than 65536 bytes"),
        (b"\xff\xfe\xff", "is not UTF-8 text"),
    ],
)
def test_ga306_file_that_cannot_be_used(folder, content, reason):
    if content is not None:
        (folder / "key.txt").write_bytes(content)
    write_yaml("api_key:\n  file: key.txt\n")

    problem = only_problem()

    assert problem.code == "GA306"
    assert problem.message.startswith("guard-agent.yaml:1: api_key refers to the file ")
    assert reason in problem.message


# --- what is wrong in a file ----------------------------------------------------------------------


def test_ga303_unknown_setting():
    write_yaml(f"api_key: {KEY}\n\nbufer-size: 7\n")

    problem = only_problem()

    assert problem.code == "GA303"
    assert problem.message == (
        "guard-agent.yaml:3: there is no setting bufer-size; did you mean 'buffer_size'?"
    )
    assert problem.fix == "write buffer_size"


def test_ga303_section_of_a_plugin_at_the_wrong_place():
    write_toml('[tool.guard-agent]\n[tool.guard-agent.redis]\nurl = "x"\n')

    problem = only_problem(load_config, api_key=KEY)

    assert problem.message == "pyproject.toml:2: there is no setting redis"
    assert problem.fix == "settings of a plugin go into its section: plugins.redis"


def test_ga304_invalid_value_is_named_but_not_shown():
    write_yaml(f"api_key: {KEY}\nbuffer_size: many-secrets\n")

    problem = only_problem()

    assert problem.code == "GA304"
    assert problem.message.startswith("guard-agent.yaml:2: buffer_size: Input should be a valid")
    assert "Records that lead to a flush" in problem.fix
    assert "many-secrets" not in str(problem)


def test_ga304_invalid_value_from_code():
    write_yaml("buffer_size: 7\n")

    problem = only_problem(load_config, api_key=KEY, flush_interval=-1)

    assert problem.code == "GA304"
    assert problem.message.startswith("in code: flush_interval: ")


def test_ga304_section_that_is_no_table():
    write_yaml("plugins:\n  http: [1]\n")

    problem = only_problem(load_config, api_key=KEY)

    assert problem.message.startswith("guard-agent.yaml:2: plugins.http: Input should be")


def test_ga307_the_key_is_missing():
    write_yaml("project_id: shop\n")

    problem = only_problem()

    assert problem.code == "GA307"
    assert "api_key is required" in problem.message
    assert "guard-agent.yaml" in problem.fix


def test_all_problems_are_shown_together(monkeypatch):
    monkeypatch.delenv("ABSENT", raising=False)
    write_yaml(
        "api_key: ${env:ABSENT}\nproject_id: {file: absent}\nbufer_size: 1\nflush_interval: -1\n"
    )

    problems = problems_of(load_config)

    assert [(p.code, p.message.split(": ")[0]) for p in problems] == [
        ("GA305", "guard-agent.yaml:1"),
        ("GA306", "guard-agent.yaml:2"),
        ("GA304", "guard-agent.yaml:4"),
        ("GA303", "guard-agent.yaml:3"),
    ]


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("a: 1\n b: 2\n", 2, "is not valid YAML"),
        ("a: 'x\n", 2, "is not valid YAML"),
        ("a: [1, 2\n", 2, "is not valid YAML"),
        ("a: 1\n--- \nb: 2\n", 2, "is not valid YAML"),
        ("a: *nowhere\n", 1, "is not valid YAML"),
        ("store: memory\nrules: []\nstore: redis\n", 3, "says 'store' twice"),
        ("plugins:\n  http:\n    a: 1\n    a: 2\n", 4, "says 'a' twice"),
        ("- a\n- b\n", 1, "holds list, not settings"),
        ("a: 1\n2: b\n", 2, "has a name that is no text"),
        ("plugins:\n  on: {a: 1}\n", 2, "has a name that is no text"),
        ("a: !!python/object/apply:os.getcwd []\n", 1, "has a value of the type"),
        ("a: !!python/name:os.getcwd x\n", 1, "is not valid YAML"),
        ("a: 2024-02-31\n", 1, "has a value that is no timestamp"),
        ("<<: 3\n", 1, "merges something that is no mapping"),
    ],
)
def test_ga302_yaml_that_is_not_well_formed(text, line, what):
    write_yaml(text)

    problem = only_problem()

    assert problem.code == "GA302"
    assert problem.message.startswith(f"guard-agent.yaml:{line}: {what}")


def test_ga302_says_that_references_need_quotes_within_brackets():
    write_yaml("sensitive_headers: [${env:FOO}]\n")

    assert "put '${env:NAME}' into quotes" in only_problem().fix


def test_ga302_never_quotes_the_file():
    write_yaml("api_key: 's3cret-value\n")

    assert "s3cret" not in str(only_problem())


def test_ga302_aliases_cannot_explode():
    levels = [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)]
    write_yaml("a0: &a0 [x]\n" + "".join(levels))

    assert "more than 10000 values" in only_problem().message


def test_ga302_merge_keys_cannot_explode():
    levels = [f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40)]
    write_yaml("a0: &a0 {x: 1}\n" + "".join(levels))

    assert "more than 10000 values" in only_problem().message


@pytest.mark.parametrize(
    "write_nested",
    [
        lambda: write_yaml("a: " + "[" * 50 + "]" * 50),
        lambda: write_yaml("a: " + "[" * 1500),
        lambda: write_yaml("a: &a [*a]"),
        lambda: write_toml("[tool.guard-agent]\na = " + "[" * 5000 + "]" * 5000),
    ],
)
def test_ga302_nothing_nests_without_end(write_nested):
    write_nested()

    problem = only_problem()
    assert problem.code == "GA302"
    assert "nested too deeply" in problem.message


def test_aliases_and_merge_keys_work_as_in_yaml():
    write_yaml(
        """
plugins:
  http: &http {timeout: 5, retries: 2}
  http/eu:
    <<: *http
    timeout: 9
  http/us: *http
  http/both: {<<: [*http, {timeout: 1, deadline: 3}]}
"""
    )

    assert load_config(api_key=KEY).plugins == {
        "http": {"timeout": 5, "retries": 2},
        "http/eu": {"timeout": 9, "retries": 2},
        "http/us": {"timeout": 5, "retries": 2},
        # Of several merged mappings the first goes before the others.
        "http/both": {"timeout": 5, "retries": 2, "deadline": 3},
    }


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        ("[tool.guard-agent]\na = 1\na = 2\n", ":3", "is not valid TOML"),
        ("[tool]\nguard-agent = 3\n", ":2", "'tool.guard-agent' is no table"),
    ],
)
def test_ga302_toml_that_is_not_well_formed(text, place, what):
    write_toml(text)

    problem = only_problem()

    assert problem.code == "GA302"
    assert problem.message.startswith(f"pyproject.toml{place}: {what}")


def test_ga302_named_toml_file_without_our_table():
    path = write("other.toml", "[tool.ruff]\n")

    problem = only_problem(load_config, path)

    assert problem.code == "GA302"
    assert "has no table [tool.guard-agent]" in problem.message
