"""The files that describe machines: checked offline by Ray's own launcher, botocore's model of EC2, and our rules."""

import copy
import json
import re
import tomllib

import botocore.session
import botocore.validate
import pytest
import ray
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from ray.autoscaler._private.util import prepare_config, validate_config

from tests import ROOT

CLUSTER = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
NODE_TYPES = CLUSTER["available_node_types"]
DOCKERFILE = (ROOT / "infra/Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
YAML_FILES = sorted(
    path
    for folder in (".", "infra", "jobs", "pipeline", ".github")
    for path in (ROOT / folder).glob("*.y*ml" if folder == "." else "**/*.y*ml")
)
RAY_PIN = next(one.specifier for one in map(Requirement, PROJECT["dependencies"]) if one.name == "ray")
RAY_PORTS = {6379, 8265, 10001}

# Shapes of credentials, and `password: something` where something is neither empty, a variable nor a placeholder.
SECRET = re.compile(
    r"(AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_\w{20,}|-----BEGIN [A-Z ]*PRIVATE KEY|X-Amz-Signature|AWS_SECRET_ACCESS_KEY"
    r"|\b[0-9a-f]{32,64}\b|(?i:password|secret|token)\w*\s*[:=]\s*(?![~/$<{\s])['\"]?(?!token\b)[\w+/=-]{12,}"
)


def image_versions() -> tuple[str, str]:
    """Version of this package and of Ray, as the image's tag names them."""
    tag = CLUSTER["docker"]["image"].rsplit(":", 1)[1]
    package, ray_version = tag.split("-ray")
    return package, ray_version


def run_options() -> str:
    return " ".join(CLUSTER["docker"]["run_options"])


def start_commands(which: str) -> str:
    return " ".join(CLUSTER[f"{which}_start_ray_commands"])


def test_ray_accepts_the_cluster_file():
    validate_config(prepare_config(copy.deepcopy(CLUSTER)))


def test_ray_would_notice_a_misspelt_key():
    broken = copy.deepcopy(CLUSTER) | {"max_worker": 3}
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(broken))


@pytest.mark.parametrize("node_type", NODE_TYPES)
def test_ec2_accepts_every_node_config(node_type):
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    request = NODE_TYPES[node_type]["node_config"] | {"MinCount": 1, "MaxCount": 1}
    report = botocore.validate.ParamValidator().validate(request, shape)
    assert not report.has_errors(), report.generate_report()
    assert request["InstanceType"] in shape.members["InstanceType"].enum


def test_image_runs_the_oldest_ray_that_is_allowed():
    package, ray_version = image_versions()
    assert package == PROJECT["version"]
    (floor,) = [one.version for one in RAY_PIN if one.operator == ">="]
    assert Version(ray_version) == Version(floor), "raise the pin of pyproject.toml and the image together"
    assert ray.__version__ in RAY_PIN


def test_dockerfile_starts_from_the_same_ray_and_never_becomes_root():
    assert re.search(r"^ARG RAY_VERSION=(\S+)", DOCKERFILE, re.M)[1] == image_versions()[1]
    (base,) = re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)
    assert base.startswith("rayproject/ray:${RAY_VERSION}-py311")
    assert '"ray[data,default]==${RAY_VERSION}"' in DOCKERFILE
    assert re.findall(r"^USER (\S+)", DOCKERFILE, re.M)[-1:] == ["ray"]
    assert "sudo" not in DOCKERFILE


def test_dockerfile_copies_what_exists():
    copied = [line.split()[2:-1] for line in DOCKERFILE.splitlines() if line.startswith("COPY")]
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages <= {name for names in copied for name in names}


def test_head_gives_no_cpus_and_is_not_spot():
    head = NODE_TYPES[CLUSTER["head_node_type"]]
    assert head["resources"]["CPU"] == 0
    assert head["max_workers"] == 0
    assert "InstanceMarketOptions" not in head["node_config"]
    assert "--num-cpus=0" in start_commands("head")


def test_pools_are_labelled_scale_from_zero_and_refine_on_spot():
    assert all(kind["labels"] == {"pool": name} for name, kind in NODE_TYPES.items())
    assert all(kind["min_workers"] == 0 for kind in NODE_TYPES.values())
    assert NODE_TYPES["gpu"]["resources"]["GPU"] > 0
    assert "GPU" not in NODE_TYPES["crf"]["resources"]
    assert NODE_TYPES["crf"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


@pytest.mark.parametrize("node_type", NODE_TYPES)
def test_node_credentials_are_out_of_reach_of_a_redirect(node_type):
    options = NODE_TYPES[node_type]["node_config"]["MetadataOptions"]
    assert options["HttpTokens"] == "required"
    assert options["HttpPutResponseHopLimit"] == 1


def test_token_authentication_is_on_and_the_token_is_a_file():
    assert "--env RAY_AUTH_MODE=token" in run_options()
    assert "RAY_AUTH_TOKEN=" not in run_options()
    (token_path,) = re.findall(r"RAY_AUTH_TOKEN_PATH=(\S+)", run_options())
    mounted = [remote.replace("~", "/home/ray") for remote in CLUSTER["file_mounts"]]
    assert token_path in mounted


def test_no_port_of_ray_is_open_to_the_network():
    for rule in CLUSTER["provider"]["security_group"].get("IpPermissions", []):
        assert not RAY_PORTS & set(range(rule["FromPort"], rule["ToPort"] + 1))
    assert "--dashboard-host=127.0.0.1" in start_commands("head")
    assert "0.0.0.0" not in start_commands("head") + start_commands("worker") + run_options()


def test_launcher_puts_every_node_behind_a_group_without_addresses(tmp_path, monkeypatch):
    moto = pytest.importorskip("moto")
    boto3 = pytest.importorskip("boto3")
    from ray.autoscaler._private.aws.config import bootstrap_aws

    (tmp_path / ".ssh").mkdir()
    fakes = {"HOME": str(tmp_path), "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    for name, value in fakes.items():
        monkeypatch.setenv(name, value)
    with moto.mock_aws():
        ec2 = boto3.resource("ec2", region_name=CLUSTER["provider"]["region"])
        group = ec2.create_security_group(GroupName="atrous", Description="Atrous")
        group.authorize_ingress(
            IpPermissions=[{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group.id}]}],
        )
        launched = bootstrap_aws(prepare_config(copy.deepcopy(CLUSTER)))
        group.reload()
        used = [kind["node_config"]["SecurityGroupIds"] for kind in launched["available_node_types"].values()]
        assert used == [[group.id]] * len(NODE_TYPES)
        assert all(not rule["IpRanges"] and not rule["Ipv6Ranges"] for rule in group.ip_permissions)


def test_objects_spill_to_the_local_disk_and_sockets_do_not_run_out():
    for which in ("head", "worker"):
        assert "--object-spilling-directory=/mnt/nvme" in start_commands(which)
    assert ":/mnt/nvme" in run_options()
    assert int(re.search(r"--ulimit nofile=(\d+)", run_options())[1]) >= 65536


def test_no_yaml_file_holds_a_secret():
    assert YAML_FILES
    assert [path for path in YAML_FILES if SECRET.search(path.read_text())] == []


@pytest.mark.parametrize(
    "leak",
    ["AKIA" + "IOSFODNN7EXAMPLE", "auth_token: " + "c2VjcmV0LXRva2Vu", "RAY_AUTH_TOKEN=" + 32 * "a", "ghp_" + 36 * "x"],
)
def test_the_search_for_secrets_finds_them(leak):
    assert SECRET.search(f"env:\n  - {leak}\n")


def test_example_policies_name_actions_and_buckets():
    blocks = re.findall(r"```json\n(.*?)```", (ROOT / "docs/SECURITY.md").read_text(), re.S)
    statements = [one for block in blocks for one in json.loads(block)["Statement"]]
    assert statements
    for statement in statements:
        assert not any(action.endswith("*") for action in statement["Action"]), statement
        if any(action.startswith("s3:") for action in statement["Action"]):
            assert all(name.startswith("arn:aws:s3:::") and name != "arn:aws:s3:::*" for name in statement["Resource"])
