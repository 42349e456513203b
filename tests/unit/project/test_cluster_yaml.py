"""What `cluster.yaml` promises, checked without a cloud account and without a network."""

import copy
import ipaddress
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.command_runner import SSHCommandRunner, _with_interactive
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.support.project import ROOT

START_COMMANDS = ("head_start_ray_commands", "worker_start_ray_commands")


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    """The file as written."""
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def cluster(written: dict[str, Any]) -> dict[str, Any]:
    """The file as `ray up` sees it, with Ray's defaults for AWS filled in."""
    return prepare_config(copy.deepcopy(written))


@pytest.fixture
def node(cluster: dict[str, Any], tmp_path: Path) -> dict[str, str]:
    """The environment a node's commands get from mask_ray.env, which the set-up writes."""
    (writes_env,) = (c for c in cluster["setup_commands"] if "cat > ~/mask_ray.env" in c)
    home = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    subprocess.run(["bash", "-c", f"({writes_env})"], env=home, check=True)
    shown = subprocess.run(
        ["bash", "-c", ". ~/mask_ray.env && env -0"], env=home, check=True, capture_output=True
    )
    return dict(line.split("=", 1) for line in shown.stdout.decode().split("\0") if line)


def commands(cluster: dict[str, Any]) -> Iterator[str]:
    # Ray has put setup_commands at the front of both.
    for stage in ("head_setup_commands", "worker_setup_commands", *START_COMMANDS):
        yield from cluster[stage]


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        yield value
        return
    for item in value:
        yield from leaves(item)


def test_ray_accepts_it(cluster: dict[str, Any]) -> None:
    validate_config(cluster)


def test_head_type_exists_and_has_no_gpu(cluster: dict[str, Any]) -> None:
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"].get("CPU", 0) >= 1
    assert "GPU" not in head["resources"]
    assert head["max_workers"] == 0


def test_cpu_workers_disappear_when_idle(cluster: dict[str, Any]) -> None:
    cpu = cluster["available_node_types"]["cpu_worker"]
    assert "GPU" not in cpu["resources"]
    assert cpu["min_workers"] == 0 < cpu["max_workers"]


def test_gpu_workers_have_gpus_and_bounds(written: dict[str, Any]) -> None:
    gpu = written["available_node_types"]["gpu_worker"]
    assert gpu["resources"]["GPU"] >= 1
    assert 0 <= gpu["min_workers"] <= gpu["max_workers"]
    assert gpu["max_workers"] >= 1


def test_every_worker_type_may_reach_its_maximum(cluster: dict[str, Any]) -> None:
    asked = sum(kind["max_workers"] for kind in cluster["available_node_types"].values())
    assert asked <= cluster["max_workers"]


def test_no_node_type_gets_rays_own_security_group(cluster: dict[str, Any]) -> None:
    """Ray opens SSH to 0.0.0.0/0 in a group it makes, and makes one for a type without ids."""
    for name, kind in cluster["available_node_types"].items():
        assert kind["node_config"].get("SecurityGroupIds"), name


def test_no_address_range_is_the_whole_internet(cluster: dict[str, Any]) -> None:
    for value in leaves(cluster):
        try:
            network = ipaddress.ip_network(value if isinstance(value, str) else "")
        except ValueError:
            continue
        assert network.prefixlen > 0, value


def test_dashboard_listens_on_loopback(cluster: dict[str, Any]) -> None:
    (start,) = (c for c in cluster["head_start_ray_commands"] if "ray start" in c)
    assert "--dashboard-host=127.0.0.1" in start.split()


def test_disks_are_encrypted(cluster: dict[str, Any]) -> None:
    for name, kind in cluster["available_node_types"].items():
        disks = kind["node_config"]["BlockDeviceMappings"]
        assert [disk["Ebs"]["Encrypted"] for disk in disks] == [True] * len(disks), name
        assert disks, name


def test_packages_come_from_the_lock_file(cluster: dict[str, Any]) -> None:
    syncs = [c for c in commands(cluster) if "uv sync" in c]
    assert syncs
    assert all({"--locked", "--no-dev"} <= set(c.split()) for c in syncs)
    assert cluster["file_mounts"]["~/mask_ray/uv.lock"] == "uv.lock"


def test_horovod_with_nccl_is_installed_last(cluster: dict[str, Any]) -> None:
    """Each `uv sync` puts the ordinary build back."""
    setup = cluster["worker_setup_commands"]
    assert "horovod-*.whl" in setup[-1]
    assert "uv sync" not in setup[-1]


def test_nodes_get_every_file_the_project_builds_from(cluster: dict[str, Any]) -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = pyproject["project"]
    packages = pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed = {"pyproject.toml", "uv.lock", project["readme"], *project["license-files"], *packages}
    mounted = {f"~/mask_ray/{name}": name for name in needed}
    assert mounted.items() <= cluster["file_mounts"].items()
    assert [name for name in needed if not (ROOT / name).exists()] == []


def test_nodes_run_a_python_that_the_project_supports(cluster: dict[str, Any]) -> None:
    (sync,) = (c for c in cluster["setup_commands"] if "uv sync" in c)
    assert "--python 3.11" in sync
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert pyproject["project"]["requires-python"].startswith(">=3.11,")


def test_every_node_gets_the_token(cluster: dict[str, Any]) -> None:
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize("stage", START_COMMANDS)
def test_ray_starts_with_token_authentication(cluster: dict[str, Any], stage: str) -> None:
    starts = [c for c in cluster[stage] if "ray start" in c]
    assert len(starts) == 1
    assert "RAY_AUTH_MODE=token ray start" in " ".join(starts[0].split())


@pytest.mark.parametrize("stage", START_COMMANDS)
def test_start_commands_read_the_environment(cluster: dict[str, Any], stage: str) -> None:
    assert all(c.startswith(". ~/mask_ray.env") for c in cluster[stage])


def test_environment_of_a_node(node: dict[str, str]) -> None:
    home = node["HOME"]
    assert node["PATH"].split(":")[0] == f"{home}/mask_ray/.venv/bin"
    assert node["RAY_AUTH_MODE"] == "token"
    assert node["RAY_SERVE_ENABLE_HA_PROXY"] == node["RAY_SERVE_USE_GRPC_BY_DEFAULT"] == "1"
    assert "OMP_NUM_THREADS" not in node


def test_state_is_shared(node: dict[str, str], cluster: dict[str, Any]) -> None:
    mounted = Path("/mnt/shared")
    assert any(f" {mounted} nfs4 " in c and "/etc/fstab" in c for c in cluster["setup_commands"])
    assert mounted in Path(node["MASK_RAY_HOME"]).parents
    assert node["MLFLOW_TRACKING_URI"].startswith(("http://", "https://"))


def test_serve_listens_where_other_nodes_reach_it(cluster: dict[str, Any]) -> None:
    """With HAProxy, Serve on loopback refuses requests routed between nodes."""
    (start,) = (c for c in cluster["head_start_ray_commands"] if "serve start" in c)
    assert "--http-host=0.0.0.0" in start.split()
    assert "RAY_AUTH_MODE=token serve start" in " ".join(start.split())


def test_every_command_is_valid_bash_as_ray_sends_it(cluster: dict[str, Any]) -> None:
    for command in commands(cluster):
        sent = " ".join(_with_interactive(command)).replace("bash --login -c -i", "bash -n -c")
        parsed = subprocess.run(["bash", "-c", sent], capture_output=True, text=True)
        assert parsed.returncode == 0, f"{command}\n{parsed.stderr}"


def test_history_and_environments_are_not_copied(cluster: dict[str, Any]) -> None:
    assert {".git", ".venv"} <= set(cluster["rsync_exclude"])
    flags = SSHCommandRunner._create_rsync_filter_args(None, cluster)
    assert flags[flags.index(".venv") - 1] == "--exclude"
    assert "dir-merge,- .gitignore" in flags
    assert not [local for local in cluster["file_mounts"].values() if Path(local) == Path()]


def test_every_node_has_the_services_token(cluster: dict[str, Any], tmp_path: Path) -> None:
    (makes_token,) = (c for c in cluster["setup_commands"] if "openssl rand" in c)
    (writes_env,) = (c for c in cluster["setup_commands"] if "cat > ~/mask_ray.env" in c)
    (tmp_path / "mask_ray").mkdir()
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}

    def on_node(command: str) -> str:
        here = command.replace("/mnt/shared", str(tmp_path))
        done = subprocess.run(["bash", "-c", here], env=environment, capture_output=True, text=True)
        return done.stdout

    for _ in range(2):
        on_node(f"({makes_token})")
    on_node(writes_env)
    token_file = tmp_path / "mask_ray" / "service_token"
    printed = on_node('. ~/mask_ray.env; echo "$MASK_RAY_TOKENS"; echo "$MASK_RAY_TOKEN"')

    assert re.fullmatch(r"cluster:([0-9a-f]{64})\n\1\n", printed)
    assert token_file.read_text() == printed.splitlines()[0] + "\n"
    assert token_file.stat().st_mode & 0o777 == 0o600


def test_without_the_services_token_a_deploy_fails(node: dict[str, str]) -> None:
    # Set but empty, which is an error.
    assert node["MASK_RAY_TOKENS"] == ""
