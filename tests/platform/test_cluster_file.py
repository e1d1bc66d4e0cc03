"""cluster.yaml is one that `ray up` takes, closed to strangers, and installs what requirements.txt pins."""

from pathlib import Path

import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

FILE = Path(__file__).resolve().parents[2] / "cluster.yaml"


def test_rays_own_schema_takes_the_file() -> None:
    validate_config(prepare_config(yaml.safe_load(FILE.read_text(encoding="utf-8"))))


def test_nothing_starts_without_token_and_the_dashboard_stays_on_loopback() -> None:
    config = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    starts = [command for command in starts if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command and "--disable-usage-stats" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert config["provider"]["use_internal_ips"] is True


def test_the_head_runs_no_tasks_and_every_value_of_an_account_is_marked() -> None:
    text = FILE.read_text(encoding="utf-8")
    assert yaml.safe_load(text)["available_node_types"]["head"]["resources"] == {"CPU": 0}
    for line in text.splitlines():
        if "ami-" in line or line.strip().startswith("region:"):
            assert "EDIT" in line
