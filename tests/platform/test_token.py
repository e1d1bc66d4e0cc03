"""The dashboard of a local cluster lets in who holds the token, and nobody else; the token is its user's alone."""

import os
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from mien.platform.cluster import keep_token_private

PROGRAM = """
import sys
import ray
from mien.platform.cluster import ClusterConfig, connect
with connect(ClusterConfig(num_cpus=1, object_store_gib=0.1, dashboard=True)):
    print("url", ray._private.worker.get_dashboard_url(), flush=True)
    sys.stdin.readline()
"""


def answer(url: str, token: str | None) -> int:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.mark.ray
def test_who_has_no_token_gets_401_and_who_has_it_200(tmp_path: Path, processes: Any) -> None:
    # A home of its own: the token is made there, as on a machine on which Ray has never run.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment["HOME"] = str(tmp_path)
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=pipe, stdout=pipe, text=True, env=environment) as one:
        assert one.stdin is not None and one.stdout is not None
        try:
            url = next(line.split()[1] for line in one.stdout if line.startswith("url "))
            started = processes.living(one.pid)
            file = tmp_path / ".ray" / "auth_token"
            token = file.read_text().strip()
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            assert url.startswith("127.0.0.1:")
            for path in ("api/version", "api/jobs/", "nodes?view=summary"):
                said = [answer(f"http://{url}/{path}", given) for given in (None, "0" * len(token), token)]
                assert said == [401, 403, 200], path
        finally:
            one.stdin.close()
            one.wait(60)
    left = processes.wait_until_gone(started)
    processes.end(left)
    assert not left


def test_a_token_that_others_could_read_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    keep_token_private()  # none is there
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("a" * 64)
    token.chmod(0o644)
    keep_token_private()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
