"""One configuration from files, flags and settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from nas.config import Config, parse_value
from nas.errors import ConfigError


def test_flags_override_the_file_and_settings_override_both(tmp_path: Path) -> None:
    file = tmp_path / "search.toml"
    file.write_text('space = "lecture"\ntrials = 7\ntime = "10m"\n[options.strategy]\npopulation = 8\ntournament = 3\n')
    config = Config.load(file, {"trials": 9, "seed": None}, ["strategy.population=32", "data.limit=500"])
    assert (config.space, config.trials, config.seed, config.time) == ("lecture", 9, 0, 600)
    assert config.options == {"strategy": {"population": 32, "tournament": 3}, "data": {"limit": 500}}
    assert Config.of(config.to_json()) == config


@pytest.mark.parametrize(
    ("text", "value"),
    [("32", 32), ("0.5", 0.5), ("true", True), ("[1, 2]", [1, 2]), ("sgd", "sgd"), ('"7"', "7"), ("a b=c", "a b=c")],
)
def test_values_of_settings(text: str, value: object) -> None:
    assert parse_value(text) == value


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trials": 0}, "trials: expected a whole number of at least 1, got 0"),
        ({"trials": "many"}, "trials: expected a whole number, got 'many'"),
        ({"trials": True}, "trials: expected a whole number, got True"),
        ({"space": 3}, "space: expected text, got 3"),
        ({"time": "soon"}, "time: expected a time such as 90s"),
        ({"time": "-5s"}, "time: expected a time such as 90s"),
        ({"spacee": "x"}, "unknown key 'spacee'; did you mean 'space'?"),
        ({"options": {"model": {}}}, "options: unknown section 'model'"),
        ({"options": 3}, "options: expected a table"),
        ({"objectives": []}, "objectives: expected at least one"),
    ],
)
def test_wrong_values_are_one_clear_line(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.of(values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("setting", ["population=3", "strategy.population", "model.x=1", "=", ""])
def test_wrong_settings(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"is not SECTION\.NAME=VALUE"):
        Config.load(None, {}, [setting])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        Config.load(tmp_path / "none.toml", {})
    (tmp_path / "bad.toml").write_text("space = ")
    with pytest.raises(ConfigError, match="is not TOML"):
        Config.load(tmp_path / "bad.toml", {})
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        Config.load(tmp_path / "binary.toml", {})
