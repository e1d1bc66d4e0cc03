"""The clusters' files are ones that `ray up` takes, closed to strangers, and what is wrong with others is said."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from mien.platform.cluster_dangers import Asked, dangers
from mien.platform.cluster_file import ClusterFileError, read

ROOT = Path(__file__).resolve().parents[2]
CLUSTERS = ROOT / "experiments" / "configs" / "clusters"
FILES = [ROOT / "cluster.yaml", *sorted(CLUSTERS.glob("*.yaml"))]
ONPREMISE = CLUSTERS / "onpremise.yaml"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a home folder that holds a token as it should be."""
    token = tmp_path / "home" / ".ray" / "auth_token"
    token.parent.mkdir(parents=True)
    token.write_text("a" * 64)
    token.chmod(0o600)
    return tmp_path / "home"


def edited(path: Path, folder: Path, *changes: tuple[str, str]) -> Path:
    """Write a file to `folder` with its marked lines set, and with changes of its text, each of which must be found."""
    text = path.read_text(encoding="utf-8")
    zeros = "0" * 17
    for kind in ("ami", "sg", "fs", "subnet"):
        text = text.replace(f"{kind}-{zeros}", f"{kind}-{'1' * 17}")
    text = text.replace("192.0.2.", "10.0.0.").replace("EDIT", "set")
    for before, after in changes:
        assert before in text, f"{path.name} has no {before!r}"
        text = text.replace(before, after)
    other = folder / path.name
    other.write_text(text, encoding="utf-8")
    return other


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_rays_own_schema_takes_the_file_and_nothing_of_it_is_passed_over(path: Path) -> None:
    # Pins the private validator that cluster_file.py alone uses.
    file = read(path)
    assert file.dropped == ()
    assert file.head_start.count("ray start") == file.worker_start.count("ray start") == 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_once_its_marked_lines_are_set_a_file_has_nothing_that_hangs_or_leaks(
    path: Path, tmp_path: Path, home: Path
) -> None:
    assert dangers(read(edited(path, tmp_path)), Asked(), home) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_as_it_is_shipped_every_value_of_nobody_is_marked_and_an_error(path: Path, home: Path) -> None:
    file = read(path)
    assert file.unset()
    assert {number for number, _ in file.unset()} <= {number for number, _ in file.marked()}
    errors = [one.what for one in dangers(file, Asked(), home) if one.stops]
    assert len(errors) == len(file.unset())
    assert all("this repository's value" in what for what in errors)


def test_the_machines_are_told_as_they_will_start() -> None:
    aws, own = read(ROOT / "cluster.yaml"), read(ONPREMISE)
    assert (aws.head.cpus, aws.head.gpus) == (0, 0)
    assert [(one.name, one.least, one.most, one.cpus, one.gpus) for one in aws.workers] == [("gpu", 1, 4, 48, 4)]
    assert [(one.name, one.least, one.most, one.cpus) for one in own.workers] == [("worker", 2, 2, None)]
    assert read(CLUSTERS / "one_machine.yaml").workers == ()


def test_the_lines_on_spot_machines_are_valid_once_they_count(tmp_path: Path) -> None:
    path = edited(ROOT / "cluster.yaml", tmp_path, ("  # gpu_spot:", "  gpu_spot:"), ("  #   ", "    "))
    spot = read(path).workers[1]
    assert (spot.name, spot.spot, spot.most) == ("gpu_spot", True, 3)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("head_node_type: head", "head_node_type: hat", "head_node_type"),
        ("max_workers: 4 #", "max_workers: 0 #", "max_workers"),
        ("idle_timeout_minutes", "idle_minutes", "idle_minutes"),
        ("    resources: {CPU: 48, GPU: 4}\n", "", "resources"),
        ("provider:", "prowider:", "provider"),
        ("  type: aws", "  type: azw", "azw"),
        ("setup_commands:", "setup_commands: [", "not valid YAML"),
    ],
)
def test_what_ray_up_would_refuse_is_refused_in_its_words(before: str, after: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ClusterFileError, match=said):
        read(edited(ROOT / "cluster.yaml", tmp_path, (before, after)))


TOKEN_MOUNT = '  "~/.ray/auth_token": "~/.ray/auth_token" # made by `ray get-auth-token --generate`; never in git\n'


@pytest.mark.parametrize(
    ("path", "before", "after", "said"),
    [
        (FILES[0], "RAY_AUTH_MODE=token ray start --head", "ray start --head", "without asking for a token"),
        (FILES[0], "RAY_AUTH_MODE=token ray start --address", "ray start --address", "without asking for a token"),
        (FILES[0], TOKEN_MOUNT, "", "not brought to the nodes"),
        (FILES[0], "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "dashboard listens on 0.0.0.0"),
        (FILES[0], "--port=6379", "--port=6379 --include-dashboard=false", "dashboard is turned off"),
        (FILES[0], " --autoscaling-config=~/ray_bootstrap_config.yaml", "", "no --autoscaling-config"),
        (FILES[0], "--address=$RAY_HEAD_IP:6379", "--address=auto", "RAY_HEAD_IP"),
        (FILES[0], "-r ~/mien/requirements.txt", "'ray[default]' torch==2.13.0", r"'ray\[default\]' is installed in"),
        (FILES[0], "CPU: 48, GPU: 4", "CPU: 5, GPU: 4", "keeps 1 CPUs for data beside 4 trainers"),
        (
            FILES[0],
            "mountpoint -q $MIEN_STORAGE || (sudo mkdir -p $MIEN_STORAGE && sudo mount",
            "(echo",
            "all nodes share",
        ),
        (FILES[0], "use_internal_ips: true", "use_internal_ips: false", "public addresses"),
        (FILES[0], ", SecurityGroupIds: *network", "", "gpu have no SecurityGroupIds"),
        (FILES[0], "resources: {CPU: 0}", "resources: {CPU: 8}", "head takes tasks"),
        (FILES[0], " --disable-usage-stats --autoscaling", " --autoscaling", "usage statistics"),
        (FILES[0], "max_workers: 4 #", "min_workers: 2\nmax_workers: 4 #", "passes over min_workers"),
        (FILES[0], "max_workers: 4 #", "max_workers: 3 #", "types may have 4 workers and the cluster 3"),
        (FILES[0], "head_node_type: head", "docker: {image: x, container_name: y}\nhead_node_type: head", "--shm-size"),
        (
            FILES[0],
            "g5.12xlarge, ImageId",
            "g5.12xlarge, InstanceMarketOptions: {MarketType: spot}, ImageId",
            "all workers",
        ),
        (FILES[0], "MIEN_STORAGE=/shared", "RAY_AUTH_TOKEN=abc MIEN_STORAGE=/shared", "secret stands in the file"),
        (ONPREMISE, "RAY_enable_autoscaler_v2=0 ", "", "one worker too few"),
        (ONPREMISE, "requirements-gpu.txt", "requirements.txt", "mamba-ssm is not installed"),
    ],
)
def test_what_hangs_or_leaks_is_said_with_its_reason_and_remedy(
    path: Path, before: str, after: str, said: str, tmp_path: Path, home: Path
) -> None:
    found = dangers(read(edited(path, tmp_path, (before, after))), Asked(), home)
    assert len(found) == 1 and found[0].why and found[0].advice
    assert re.search(said, str(found[0])), str(found[0])


@pytest.mark.parametrize(
    ("ports", "stops"), [("FromPort: 22, ToPort: 22", False), ("FromPort: 0, ToPort: 65535", True)]
)
def test_a_port_that_is_open_to_the_world_is_found(ports: str, stops: bool, tmp_path: Path, home: Path) -> None:
    rule = f"{{IpProtocol: tcp, {ports}, IpRanges: [{{CidrIp: 0.0.0.0/0}}]}}"
    group = ("  type: aws", f"  type: aws\n  security_group: {{IpPermissions: [{rule}]}}")
    found = dangers(read(edited(FILES[0], tmp_path, group)), Asked(), home)
    assert [one.stops for one in found] == [stops] and "open to the world" in found[0].what


def test_workers_that_find_no_room_are_found(tmp_path: Path, home: Path) -> None:
    file = read(edited(FILES[0], tmp_path))
    assert dangers(file, Asked(16, 1, 1), home) == []
    (found,) = dangers(file, Asked(17, 1, 1), home)
    assert found.stops and "room for 16 workers, and 17 are asked for" in found.what
    (found,) = dangers(file, Asked(16, 12, 1), home)
    assert "keeps 0 CPUs for data" in found.what


def test_a_token_that_is_not_there_or_is_read_by_others_is_found(tmp_path: Path, home: Path) -> None:
    file = read(edited(ONPREMISE, tmp_path))
    (home / ".ray" / "auth_token").chmod(0o644)
    assert [one.what.split(" (")[0] for one in dangers(file, Asked(), home)] == [
        "others on this machine can read the token"
    ]
    shutil.rmtree(home / ".ray")
    assert [one.what.split(" (")[0] for one in dangers(file, Asked(), home)] == ["there is no token on this machine"]


def test_the_storage_and_the_image_are_named_once() -> None:
    for path in FILES:
        lines = [line.partition("#")[0] for line in path.read_text(encoding="utf-8").splitlines()]
        assert sum("MIEN_STORAGE=" in line for line in lines) == 1
        assert not [line for line in lines if "/shared" in line and "MIEN_STORAGE=" not in line]
    content = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    images = [kind["node_config"]["ImageId"] for kind in content["available_node_types"].values()]
    assert len(images) == 2 and len(set(images)) == 1
