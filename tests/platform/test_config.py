"""A setting is born once, set by a recipe, overridden on the command line, and checked before anything starts."""

import errno
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import BaseModel, Field, model_validator

from mien.platform import config as settings
from mien.platform.config import ConfigError
from mien.platform.storage import StorageError

ROOT = Path(__file__).resolve().parents[2]


class Adam(BaseModel, frozen=True, extra="forbid"):
    name: Literal["adam"] = "adam"
    lr: float = Field(1e-3, description="learning rate", gt=0)
    betas: tuple[float, float] = Field((0.9, 0.999), description="moments")


class Sgd(BaseModel, frozen=True, extra="forbid"):
    name: Literal["sgd"] = "sgd"
    momentum: float = Field(0.9, description="momentum", ge=0)


class Loop(BaseModel, frozen=True, extra="forbid"):
    warmup_steps: int = Field(10, description="steps", ge=0)
    steps: int = Field(100, description="steps", gt=0)

    @model_validator(mode="after")
    def _order(self) -> "Loop":
        if self.warmup_steps > self.steps:
            raise ValueError("warmup_steps must not exceed steps")
        return self


class Program(BaseModel, frozen=True, extra="forbid"):
    optim: Annotated[Adam | Sgd, Field(discriminator="name")] = Field(Adam(lr=0.5), description="optimiser")
    loop: Loop = Field(Loop(), description="loop")
    extra: Loop | None = Field(None, description="a second loop")
    labels: str | None = Field(None, description="label file")


def write(folder: Path, tree: object) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_command_line_beats_recipe_beats_default(tmp_path: Path) -> None:
    recipe = write(tmp_path, {"optim": {"lr": 0.1}, "loop": {"steps": 50}})
    config = settings.parse(Program, ["--config", str(recipe), "optim.lr=3e-4"], "").config
    # 1e-4 is text to YAML, and a number to us.
    assert config.optim == Adam(lr=3e-4)
    assert config.loop == Loop(steps=50)


def test_a_variants_name_alone_stands_for_it_and_keeps_what_was_set_of_it(tmp_path: Path) -> None:
    recipe = write(tmp_path, {"optim": "sgd"})
    assert settings.load(Program, recipe, {}).optim == Sgd()
    assert settings.load(Program, recipe, {"optim.momentum": 0.5, "optim.name": "sgd"}).optim == Sgd(momentum=0.5)
    config = settings.load(Program, write(tmp_path, {"optim": {"name": "adam", "lr": 0.25}}), {"optim": "adam"})
    assert config.optim == Adam(lr=0.25)
    with pytest.raises(ConfigError, match=r"optim\.name must be one of adam, sgd; got 'adm' \(did you mean adam\?\)"):
        settings.load(Program, write(tmp_path, {"optim": "adm"}), {})


@pytest.mark.parametrize("words", [["loop.steps=7"], ["--loop.steps", "7"], ["--loop.steps=7"]])
def test_every_spelling_of_an_override_is_the_same(words: list[str]) -> None:
    words = [*words, "loop.warmup_steps=1", "--output", "here"]
    call = settings.parse(Program, words, "")
    assert call.config.loop.steps == 7
    assert call.output == Path("here")


def test_a_partial_override_keeps_the_rest_of_a_default_section() -> None:
    assert settings.load(Program, None, {"optim.betas": [0.5, 0.6]}).optim == Adam(lr=0.5, betas=(0.5, 0.6))


def test_naming_another_variant_drops_the_settings_of_the_old_one() -> None:
    assert settings.load(Program, None, {"optim.name": "sgd"}).optim == Sgd()


def test_an_optional_section_starts_from_its_own_defaults() -> None:
    assert settings.load(Program, None, {"extra.steps": 20}).extra == Loop(steps=20)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"optim.lrr": 1}, "unknown setting optim.lrr; did you mean optim.lr?"),
        ({"stesp": 1}, "unknown setting stesp; "),
        ({"warmup_steps": 1}, "did you mean loop.warmup_steps?"),
        ({"optim.name": "adan"}, r"optim.name must be one of adam, sgd; got 'adan' \(did you mean adam\?\)"),
        ({"optim.lr": -1}, "optim.lr: .*greater than 0; got -1"),
        ({"loop.steps": "many"}, "loop.steps: .*integer.*; got 'many'"),
        ({"loop.steps": 5}, "loop: warmup_steps must not exceed steps"),
    ],
)
def test_a_wrong_setting_is_named_with_its_path(overrides: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        settings.load(Program, None, overrides)


def test_a_missing_recipe_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        settings.load(Program, tmp_path / "no.yaml", {})


def test_what_was_dumped_rebuilds_the_same_config() -> None:
    config = settings.load(Program, None, {"optim.name": "sgd", "loop.steps": 20})
    assert settings.rebuild(Program, yaml.safe_load(settings.dump(config))) == config


def test_overrides_are_tried_against_a_config() -> None:
    config = settings.with_overrides(Program(), {"optim.lr": "1e-4", "labels": "a.csv"})
    assert (config.optim, config.labels) == (Adam(lr=1e-4), "a.csv")
    with pytest.raises(ConfigError, match=r"unknown setting optim\.alpa"):
        settings.with_overrides(Program(), {"optim.alpa": 1})


def test_help_lists_every_setting_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings.parse(Program, ["--help"], "What it does.", flags={"demo": "small world"})
    shown = capsys.readouterr().out
    for key in ("optim.lr ([adam] float) = 0.001", "optim.momentum ([sgd] float)", "loop.steps (int) = 100", "--demo"):
        assert key in shown


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("alpha must be at least 0, got -1"),
        StorageError(errno.ENOSPC, "alpha must be at least 0, got -1"),
    ],
)
def test_a_program_tells_a_users_mistake_without_a_traceback(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(_: object) -> None:
        raise error

    with pytest.raises(SystemExit) as stop:
        settings.run_program(main)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: alpha must be at least 0, got -1\n"


def test_a_fault_of_ours_shows_where_it_is() -> None:
    def main(_: object) -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError):
        settings.run_program(main)


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_who_has_enough_ends_a_program_quietly(lines: int) -> None:
    """As with `| head`, whether the pipe breaks while the program prints or when it ends."""
    program = (
        "import sys\nfrom mien.platform.config import run_program\n"
        f"run_program(lambda _: (sys.stdin.readline(), [print('a line') for _ in range({lines})]))\n"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, stderr=pipe, cwd=ROOT) as one:
        assert one.stdin is not None and one.stdout is not None and one.stderr is not None
        one.stdout.close()
        one.stdin.close()
        assert one.stderr.read() == b""
    assert one.returncode == 141


def test_another_pipe_that_broke_is_told() -> None:
    program = (
        "import os\nfrom mien.platform.config import run_program\n"
        "ends = os.pipe()\nos.close(ends[0])\nrun_program(lambda _: os.write(ends[1], b'x'))\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert said.returncode == 1 and "BrokenPipeError" in said.stderr


def test_ctrl_c_ends_any_program_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def main(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        settings.run_program(main)
    assert stop.value.code == 130
    assert "stopped; the same command begins again" in capsys.readouterr().err
