"""The rules of the house that a machine can check: rooms, imports, names, sizes, configs, recipes."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("models", "data_pipelines", "platform", "experiments")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
RAY_FILES = {
    "data_pipelines/blocks.py",
    "data_pipelines/clips.py",
    "platform/trainer.py",
    "platform/worker.py",
    "platform/tune.py",
    "platform/trial.py",
    "platform/gauges.py",
    "platform/cluster.py",
    "platform/cluster_file.py",
    "platform/preflight.py",
    "experiments/benchmarks/simulated_actors.py",
}
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "base", "core", "misc", "engine", "manager"}
MAX_LINES = 300


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tracked() -> list[Path]:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode != 0:
        pytest.skip("not a git checkout: what is tracked cannot be asked")
    return [ROOT / line for line in listing.stdout.splitlines() if (ROOT / line).is_file()]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)} uses a relative import; rooms are imported as mien.<room>"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("folder", [".", *ROOMS, "tests"])
def test_import_platform_is_the_standard_librarys_from_everywhere(folder: str) -> None:
    program = "import platform, sys; sys.exit(not hasattr(platform, 'python_implementation'))"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT / folder, check=False).returncode == 0


def test_no_room_holds_an_init_file() -> None:
    assert [name(path) for room in (*ROOMS, "tests") for path in (ROOT / room).rglob("__init__.py")] == []


@pytest.mark.parametrize("path", FILES, ids=name)
def test_rooms_meet_only_in_experiments(path: Path) -> None:
    room = name(path).split("/")[0]
    wrong = {
        module
        for module in imports(path)
        for other in ROOMS
        if module.startswith(f"mien.{other}") and other != room and room != "experiments"
    }
    assert not wrong, f"{name(path)} imports {sorted(wrong)}; only experiments joins the rooms"
    bare = {module for module in imports(path) if module.split(".")[0] in ROOMS and module != "platform"}
    assert not bare, f"{name(path)} imports {sorted(bare)} without the prefix mien."


@pytest.mark.parametrize("path", FILES, ids=name)
def test_ray_appears_in_the_named_files_only(path: Path) -> None:
    if name(path) not in RAY_FILES:
        assert not {module for module in imports(path) if module.split(".")[0] == "ray"}


def test_models_know_neither_files_nor_yaml() -> None:
    for path in (ROOT / "models").glob("*.py"):
        assert not imports(path) & {"yaml", "os", "shutil", "tempfile"}, name(path)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_is_small_named_by_a_noun_and_explained(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    assert path.stem not in FORBIDDEN_NAMES
    assert ast.get_docstring(ast.parse(text)), "a module says what stands here and why"


def classes(path: Path) -> list[ast.ClassDef]:
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ClassDef)]


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_config_is_frozen_and_refuses_unknown_keys(path: Path) -> None:
    for node in classes(path):
        if any(isinstance(base, ast.Name) and base.id == "BaseModel" for base in node.bases):
            options = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
            assert options == {"frozen": True, "extra": "forbid"}, f"{name(path)}: {node.name}"


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.py")), ids=name)
def test_a_programs_docstring_shows_its_command(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert f"python experiments/{path.name}" in docstring


def test_the_repository_holds_no_path_of_a_machine_and_no_weights() -> None:
    machine = re.compile(r"(?<![\w.])/(?:work|root|home|Users|mnt)/\w")
    for path in tracked():
        assert path.suffix not in {".pth", ".pt", ".ckpt", ".mp4", ".parquet", ".safetensors"}, name(path)
        if path.suffix in {".png", ".jpg", ".npz"} or path == Path(__file__).resolve():
            continue
        found = machine.search(path.read_text(encoding="utf-8"))
        assert found is None, f"{name(path)} holds the path of a machine: {found.group(0) if found else ''}"


def test_generated_files_are_ignored() -> None:
    for generated in (".venv/x", ".types/mien", "output/demo/report.html", "models/__pycache__/a.pyc"):
        ignored = subprocess.run(["git", "check-ignore", "-q", generated], cwd=ROOT, check=False).returncode
        if ignored == 128:
            pytest.skip("not a git checkout")
        assert ignored == 0, f"{generated} must be ignored by git"


def test_requirements_are_pinned_exactly() -> None:
    for file in ROOT.glob("requirements*.txt"):
        for line in file.read_text(encoding="utf-8").splitlines():
            if line and not line.startswith(("#", "-r ")):
                assert re.fullmatch(r"[\w.-]+(\[[\w,]+\])?==[\w.+]+", line.split(" ")[0]), f"{file.name}: {line}"
