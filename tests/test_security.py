"""What SECURITY.md promises of the source: nothing foreign is unpickled, run or read as more than plain data."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("models", "data_pipelines", "platform", "experiments")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
# Calls that run what a file or a text says, by the end of their dotted name.
RUNS_CODE = re.compile(
    r"(^|\.)(pickle|cloudpickle|dill|joblib|marshal|shelve)\.(load|loads|open|Unpickler)$"
    r"|^(eval|exec|__import__)$|(^|\.)yaml\.(load|load_all|unsafe_load|full_load|unsafe_load_all|full_load_all)$"
    r"|(^|\.)os\.(system|popen)$|(^|\.)pd\.read_pickle$|(^|\.)torch\.(hub\.load|jit\.load|package\.\w+)$"
)
# A process that reads files talks with the one that started it through a pipe of its own.
OWN_PIPES = {"data_pipelines/isolation.py": {"pickle.loads"}}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]


def given(call: ast.Call, option: str) -> object:
    values = [word.value for word in call.keywords if word.arg == option]
    return values[0].value if values and isinstance(values[0], ast.Constant) else None


@pytest.mark.parametrize("path", FILES, ids=name)
def test_nothing_runs_what_a_file_says(path: Path) -> None:
    found = {called for call in calls(path) if RUNS_CODE.search(called := ast.unparse(call.func))}
    assert found <= OWN_PIPES.get(name(path), set())


@pytest.mark.parametrize("path", FILES, ids=name)
def test_tensors_are_loaded_as_tensors_alone(path: Path) -> None:
    for call in calls(path):
        called = ast.unparse(call.func)
        if called.endswith("torch.load"):
            assert given(call, "weights_only") is True, f"{name(path)}:{call.lineno} must say weights_only=True"
        if called.endswith(("np.load", "numpy.load")):
            assert given(call, "allow_pickle") is not True, f"{name(path)}:{call.lineno}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_shell_sees_what_a_user_wrote(path: Path) -> None:
    for call in calls(path):
        assert given(call, "shell") is not True, f"{name(path)}:{call.lineno} must give a list of words"


def test_the_rules_find_what_they_forbid(tmp_path: Path) -> None:
    """The patterns above would be worth nothing if they matched nothing."""
    for line in ("pickle.load(f)", "cloudpickle.loads(x)", "yaml.load(f)", "eval(x)", "ray.cloudpickle.loads(x)"):
        path = tmp_path / "a.py"
        path.write_text(line)
        assert RUNS_CODE.search(ast.unparse(calls(path)[0].func)), line
    for line in ("yaml.safe_load(f)", "torch.load(f)", "json.loads(x)", "rebuild(eval_config)"):
        path.write_text(line)
        assert not RUNS_CODE.search(ast.unparse(calls(path)[0].func)), line


@pytest.mark.parametrize("page", ["README.md", "SECURITY.md"])
def test_no_page_shows_a_way_around_the_token(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for line in text.splitlines():
        if re.match(r"\s{4,}.*\bray start\b", line):
            assert "RAY_AUTH_MODE=token" in line, line
    assert "RAY_AUTH_MODE=token" in text
    assert "--dashboard-host=0.0.0.0" not in text and "RAY_AUTH_MODE=disabled" not in text
