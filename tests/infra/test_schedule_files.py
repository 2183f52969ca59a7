"""Files that run the evaluation every night, checked offline: by schemas of Kubernetes and KubeRay, and our rules."""

import copy
import importlib.resources
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from jobs import command_line, evaluate, submit
from tests import ROOT
from tests.infra.test_cluster_files import CLUSTER, SECRET, image_versions
from tests.jobs.test_submit import CRONTAB

RAYJOB = yaml.safe_load((ROOT / "infra/kuberay/rayjob.yaml").read_text())
RAYCRONJOB = yaml.safe_load((ROOT / "infra/kuberay/raycronjob.yaml").read_text())
CRONJOB = yaml.safe_load((ROOT / "infra/kubernetes/cronjob.yaml").read_text())

BARE_RAYCRONJOB = RAYCRONJOB | {"spec": RAYCRONJOB["spec"] | {"jobTemplate": {}}}
"""Its template is that of RAYJOB."""

RAY_JOB_SPECS = {"RayJob": RAYJOB["spec"], "RayCronJob": RAYCRONJOB["spec"]["jobTemplate"]}
CLUSTER_SPEC = RAYJOB["spec"]["rayClusterSpec"]
SUBMITTER = CRONJOB["spec"]["jobTemplate"]["spec"]["template"]["spec"]
SUBMIT_COMMANDS = {
    "crontab": shlex.split(CRONTAB.command),
    "CronJob": SUBMITTER["containers"][0]["command"] + SUBMITTER["containers"][0]["args"],
}
"""Before the shell has put values in the place of variables."""
ENTRYPOINTS = {name: shlex.split(spec["entrypoint"]) for name, spec in RAY_JOB_SPECS.items()} | {
    name: command[command.index("--") + 1 :] for name, command in SUBMIT_COMMANDS.items()
}

KUBERNETES = ["1.29", kubernetes_validate.latest_version()]
"""Before 1.29 the schema wanted conditions in every rule of `podFailurePolicy`."""
FREE = {"rayStartParams", "labels", "requests", "limits"}
"""Their keys are the user's."""


def pod_specs() -> dict[str, dict[str, Any]]:
    groups = {group["groupName"]: group for group in CLUSTER_SPEC["workerGroupSpecs"]}
    ray_pods = {name: group["template"]["spec"] for name, group in groups.items()}
    return ray_pods | {"head": CLUSTER_SPEC["headGroupSpec"]["template"]["spec"], "submit": SUBMITTER}


@cache
def schema_of(kind: str) -> Draft202012Validator:
    """A CronJob as Kubernetes publishes it, or KubeRay's kinds, whose pods are those of Kubernetes."""
    latest = f"kubernetes-json-schema/v{KUBERNETES[-1]}-local-strict/_definitions.json"
    definitions = json.loads((importlib.resources.files(kubernetes_validate) / latest).read_text())
    schema = {"$ref": f"{definitions['$id']}#/$defs/io.k8s.api.batch.v1.CronJob"}
    if kind != "CronJob":
        schema = yaml.safe_load((ROOT / "tests/schemas/kuberay.yaml").read_text())
    return Draft202012Validator(schema, registry=Resource.from_contents(definitions) @ Registry())


def misspellings(manifest: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The manifest with one key misspelt, for every key that is not the user's."""
    for path in paths(manifest):
        broken = copy.deepcopy(manifest)
        parent = broken
        for step in path[:-1]:
            parent = parent[step]
        parent[path[-1] + "x"] = parent.pop(path[-1])
        yield ".".join(map(str, path)), broken


def paths(node: Any, above: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield (*above, key)
            yield from paths(value, (*above, key)) if key not in FREE else ()
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from paths(value, (*above, index))


@pytest.mark.parametrize("manifest", [RAYJOB, RAYCRONJOB, CRONJOB], ids=lambda one: one["kind"])
def test_the_schema_accepts_the_file(manifest):
    schema_of(manifest["kind"]).validate(manifest)


@pytest.mark.parametrize("manifest", [RAYJOB, BARE_RAYCRONJOB, CRONJOB], ids=lambda one: one["kind"])
def test_the_schema_would_notice_any_misspelt_key(manifest):
    schema = schema_of(manifest["kind"])
    assert schema.is_valid(manifest)
    assert [path for path, broken in misspellings(manifest) if schema.is_valid(broken)] == []


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_the_cronjob_at_every_version(version):
    kubernetes_validate.validate(CRONJOB, version, strict=True)


def test_both_kinds_of_kuberay_run_the_same():
    spec = copy.deepcopy(RAYJOB["spec"])
    assert spec.pop("jobId") == RAYJOB["metadata"]["name"]
    assert spec == RAYCRONJOB["spec"]["jobTemplate"]


def test_one_substitution_changes_the_date_of_a_rayjob_everywhere():
    text = (ROOT / "infra/kuberay/rayjob.yaml").read_text()
    (day,) = set(re.findall(r"\d{4}-\d\d-\d\d", text))
    dated = yaml.safe_load("\n".join(line.replace(day, "2027-01-31", 1) for line in text.splitlines()))
    assert dated["metadata"]["name"] == dated["spec"]["jobId"] == "eval-2027-01-31"


def test_the_schedules_agree_and_count_days_like_the_ids():
    schedules = {CRONTAB.schedule, CRONJOB["spec"]["schedule"], RAYCRONJOB["spec"]["schedule"]}
    assert schedules == {"15 2 * * *"}
    assert {CRONJOB["spec"]["timeZone"], RAYCRONJOB["spec"]["timeZone"]} == {"Etc/UTC"}


def test_images_and_versions_are_those_of_the_cluster_file():
    images = {container["image"] for pod in pod_specs().values() for container in pod["containers"]}
    assert images == {CLUSTER["docker"]["image"]}
    assert CLUSTER_SPEC["rayVersion"] == image_versions()[1]


def test_the_evaluation_expects_what_the_groups_can_grow_to():
    cpus, gpus = 0, 0
    for group in CLUSTER_SPEC["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        cpus += group["maxReplicas"] * int(limits["cpu"])
        gpus += group["maxReplicas"] * int(limits.get("nvidia.com/gpu", 0))
    expected = command_line.parse(ENTRYPOINTS["RayJob"][3:], evaluate.EvaluateArguments, description="").cfg.runtime
    assert (expected.expect_cpus, expected.expect_gpus) == (cpus, gpus)


@pytest.mark.parametrize("name", ENTRYPOINTS)
def test_the_evaluation_takes_the_flags_of_every_file(name):
    python, module, *flags = ENTRYPOINTS[name][0], ENTRYPOINTS[name][1:3], *ENTRYPOINTS[name][3:]
    assert (python, module) == ("python", ["-m", "jobs.evaluate"])
    cfg = command_line.parse(flags, evaluate.EvaluateArguments, description="").cfg
    assert cfg.history
    assert cfg.baseline == "last-good"


@pytest.mark.parametrize("name", SUBMIT_COMMANDS)
def test_the_submitter_takes_the_flags_of_every_file(name):
    python, _, module, *flags = SUBMIT_COMMANDS[name]
    assert (python, module) == ("python", "jobs.submit")
    args = submit.parse_submission(flags)
    assert (args.name, args.wait, args.command) == ("eval", True, ENTRYPOINTS[name])


@pytest.mark.parametrize("name", pod_specs())
def test_no_pod_runs_as_root_or_can_become_it(name):
    pod = pod_specs()[name]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_token_is_on_and_comes_from_a_secret():
    assert CLUSTER_SPEC["authOptions"] == {"mode": "token"}
    (container,), (token, _) = SUBMITTER["containers"], SUBMITTER["volumes"]
    environment = {one["name"]: one["value"] for one in container["env"]}
    assert environment["RAY_AUTH_MODE"] == CRONTAB.environment["RAY_AUTH_MODE"] == "token"
    assert "RAY_AUTH_TOKEN" not in environment.keys() | CRONTAB.environment.keys()
    mount = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}[token["name"]]
    assert environment["RAY_AUTH_TOKEN_PATH"] == f"{mount}/{token['secret']['items'][0]['path']}"
    assert token["secret"]["defaultMode"] == 0o440


def test_the_crontab_holds_no_secret():
    assert not SECRET.search((ROOT / "infra/cron/crontab").read_text())
