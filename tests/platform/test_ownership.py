"""A run does not go on from what somebody else made or could have changed, unless its user trusts him."""

import json
import os
from pathlib import Path

import pytest

from mien.platform.ownership import TRUST, OwnerError, user_name
from mien.platform.run import Run

CONFIG = {"lr": 1e-3}
STRANGER = 54321
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to other users")


@needs_root
@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "study.db", "trials", "checkpoints"])
def test_a_strangers_folder_is_refused_until_he_is_trusted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Run.start(tmp_path, CONFIG, seed=0)
    if not (tmp_path / name).exists():
        (tmp_path / name).mkdir()
    before = (tmp_path / "environment.json").read_bytes()
    os.chown(tmp_path / name, STRANGER, STRANGER)
    with pytest.raises(OwnerError, match=f"{name} was made by {STRANGER}, not {user_name(os.geteuid())}.*{TRUST}="):
        Run.start(tmp_path, CONFIG, seed=0)
    assert (tmp_path / "environment.json").read_bytes() == before
    monkeypatch.setenv(TRUST, "somebody, 9999999")
    with pytest.raises(OwnerError):
        Run.start(tmp_path, CONFIG, seed=0)
    monkeypatch.setenv(TRUST, f"somebody, {STRANGER}")
    Run.start(tmp_path, CONFIG, seed=0)
    assert len(json.loads((tmp_path / "environment.json").read_text())["resumed"]) == 1


@needs_root
def test_a_folder_that_was_made_for_one_is_ones_own(tmp_path: Path) -> None:
    os.chown(tmp_path, STRANGER, STRANGER)  # as a volume that a container was given
    for _ in range(2):
        Run.start(tmp_path, CONFIG, seed=0)


@pytest.mark.parametrize("name", ["", "study.db", "trials"])
def test_what_everyone_may_write_to_is_refused(name: str, tmp_path: Path) -> None:
    Run.start(tmp_path, CONFIG, seed=0)
    path = tmp_path / name
    if not path.exists():
        path.mkdir() if name == "trials" else path.touch()
    path.chmod(0o777)
    with pytest.raises(OwnerError, match="everyone may write to"):
        Run.start(tmp_path, CONFIG, seed=0)
    path.chmod(0o755)
    Run.start(tmp_path, CONFIG, seed=0)
