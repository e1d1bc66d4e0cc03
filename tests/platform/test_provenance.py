"""What is recorded of a run holds no secret: neither those of the environment nor those of an address."""

from pathlib import Path

import pytest

from mien.platform.provenance import SecretError, refuse_secrets
from mien.platform.run import Run

TOKEN = "r4y-t0ken-0f-th1s-test"


def written(folder: Path) -> bytes:
    """Return all that lies in a folder."""
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_record_holds_nothing_of_the_secrets_around_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD"):
        monkeypatch.setenv(name, TOKEN)
    with Run.start(tmp_path / "run", {"lr": 1e-3}, seed=0, command="python experiments/x.py lr=1e-3") as run:
        run.log({"step": 1, "loss": 0.5})
    assert TOKEN.encode() not in written(tmp_path / "run") and b"0.5" in written(tmp_path / "run")


@pytest.mark.parametrize("name", ["RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "DB_PASSWORD", "SOME_API_KEY"])
@pytest.mark.parametrize("where", ["config", "command"])
def test_a_secret_in_settings_or_command_is_refused_before_anything_is_written(
    name: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, TOKEN)
    config = {"data": {"root": f"s3://bucket/{TOKEN}" if where == "config" else "s3://bucket"}}
    command = f"python experiments/x.py key={TOKEN if where == 'command' else 'none'}"
    said = "data.root holds one" if where == "config" else "the command line holds one"
    with pytest.raises(SecretError, match=f"{said} .*{name}") as caught:
        Run.start(tmp_path / "run", config, seed=0, command=command)
    assert TOKEN not in str(caught.value) and not (tmp_path / "run").exists()


def test_rays_token_is_known_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(f"{TOKEN}\n")
    with pytest.raises(SecretError, match="Ray's token"):
        refuse_secrets({"note": f"Bearer {TOKEN}"})


@pytest.mark.parametrize(
    "address",
    [
        "s3://AKIA123:verysecret@bucket/clips",
        "https://:password@host/",
        "https://host/clip.mp4?X-Amz-Signature=0a1b",
        "https://host/clip.mp4?a=b&sig=0a1b",
    ],
)
def test_an_address_that_lets_in_whoever_has_it_is_refused(address: str) -> None:
    with pytest.raises(SecretError, match="part of an address"):
        refuse_secrets({"data.root": address})


@pytest.mark.parametrize(
    "value",
    [
        "s3://bucket/a:b@c",
        "https://host:8265/a@b",
        "output/study",
        "tokens",
        3e-4,
        None,
        "git@host:name",
        "file:///a?b=c",
    ],
)
def test_what_is_no_secret_passes(value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("SSH_KEY_TOKEN_FILE", str(Path(__file__).parent))
    refuse_secrets({"value": value, "beside": f"false {Path(__file__).parent}"})
