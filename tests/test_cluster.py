"""The cluster manifest: fields that KubeRay knows, one version everywhere, nothing open, pools that fit its groups.

A strict model of the subset that we write stands in for KubeRay's CRD (1.4 MB); the rules beside it are ones that its
operator enforces and that a schema does not know.
"""

import re
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from ctxasr_ray import cli, layout
from ctxasr_ray.stage import GATHERED, Resources

ROOT = Path(__file__).parents[1]
# RFC 1035 label; the operator appends to the name of a RayJob, so that 47 characters are left for it.
Name = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=47)]
Labels = dict[Annotated[str, Field(pattern=r"^([a-z0-9.-]+/)?[A-Za-z0-9._-]+$")], str]
Amount = Annotated[str | int, Field(union_mode="left_to_right")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


class Metadata(Strict):
    name: Name
    labels: Labels


class PodMetadata(Strict):
    labels: Labels


class Seccomp(Strict):
    type: Literal["RuntimeDefault"]


class PodSecurity(Strict):
    run_as_non_root: Literal[True]
    run_as_user: Annotated[int, Field(ge=1000)]
    run_as_group: int
    fs_group: int
    seccomp_profile: Seccomp


class Capabilities(Strict):
    drop: list[Literal["ALL"]] = Field(min_length=1)


class ContainerSecurity(Strict):
    allow_privilege_escalation: Literal[False]
    capabilities: Capabilities


class Requirements(Strict):
    requests: dict[str, Amount]
    limits: dict[str, Amount]


class SecretKey(Strict):
    name: str
    key: str


class ValueFrom(Strict):
    secret_key_ref: SecretKey


class Variable(Strict):
    name: str
    value: str | None = None
    value_from: ValueFrom | None = None


class Port(Strict):
    name: str
    container_port: int


class Mount(Strict):
    name: str
    mount_path: str
    read_only: bool = False


class Container(Strict):
    name: Name
    image: Annotated[str, Field(pattern=r"^[^\s:]+(/[^\s:]+)+:\d+\.\d+\.\d+-py\d{3}$")]
    security_context: ContainerSecurity
    resources: Requirements
    ports: list[Port] = []
    env: list[Variable] = []
    volume_mounts: list[Mount] = []


class EmptyDir(Strict):
    medium: Literal["Memory"]
    size_limit: str


class Claim(Strict):
    claim_name: Name
    read_only: bool


class Volume(Strict):
    name: str
    empty_dir: EmptyDir | None = None
    persistent_volume_claim: Claim | None = None


class Toleration(Strict):
    key: str
    operator: Literal["Exists"]
    effect: Literal["NoSchedule"]


class Pod(Strict):
    restart_policy: Literal["Never"]
    automount_service_account_token: Literal[False]
    termination_grace_period_seconds: int = 30
    security_context: PodSecurity
    containers: list[Container] = Field(min_length=1, max_length=1)
    volumes: list[Volume] = []
    tolerations: list[Toleration] = []

    @model_validator(mode="after")
    def mounts_have_volumes(self) -> "Pod":
        volumes = {volume.name for volume in self.volumes}
        missing = {mount.name for container in self.containers for mount in container.volume_mounts} - volumes
        if missing:
            raise ValueError(f"mounted, but no volume: {missing}")
        return self


class Template(Strict):
    metadata: PodMetadata
    spec: Pod


class Head(Strict):
    service_type: Literal["ClusterIP"]
    ray_start_params: dict[str, str]
    template: Template


class Group(Strict):
    group_name: Name
    replicas: int = Field(ge=1)
    min_replicas: int
    max_replicas: int
    labels: Labels
    ray_start_params: dict[str, str]
    template: Template

    @model_validator(mode="after")
    def replicas_are_in_bounds(self) -> "Group":
        if not self.min_replicas <= self.replicas <= self.max_replicas:
            raise ValueError("minReplicas <= replicas <= maxReplicas")
        if {"labels", "resources"} & self.ray_start_params.keys():
            raise ValueError("labels stand at the group; KubeRay refuses them in rayStartParams as well")
        return self


class Auth(Strict):
    mode: Literal["token"]


class Cluster(Strict):
    ray_version: str
    auth_options: Auth
    head_group_spec: Head
    worker_group_specs: list[Group] = Field(min_length=1)


class Spec(Strict):
    entrypoint: str
    submission_mode: Literal["K8sJobMode", "HTTPMode", "SidecarMode"]
    backoff_limit: int = Field(ge=0)
    active_deadline_seconds: int = Field(gt=0)
    shutdown_after_job_finishes: Literal[True]  # ttlSecondsAfterFinished is refused without it
    ttl_seconds_after_finished: int = Field(ge=0)
    submitter_pod_template: Template
    ray_cluster_spec: Cluster


class RayJob(Strict):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: Spec


@dataclass
class Node:
    """What is free on one worker."""

    labels: dict[str, str]
    cpus: float
    gpus: float

    def fits(self, asked: Resources) -> bool:
        labelled = asked.label_selector.items() <= self.labels.items()
        return labelled and self.cpus >= asked.num_cpus and self.gpus >= asked.num_gpus


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "cluster" / "rayjob.yaml").read_text()))


@pytest.fixture(scope="module")
def job() -> RayJob:
    return RayJob.model_validate(documents()[0])


def templates(job: RayJob) -> list[Template]:
    cluster = job.spec.ray_cluster_spec
    groups = [group.template for group in cluster.worker_group_specs]
    return [job.spec.submitter_pod_template, cluster.head_group_spec.template, *groups]


def words(job: RayJob) -> list[str]:
    return shlex.split(job.spec.entrypoint)


def gib(quantity: str | int) -> float:
    return int(str(quantity).removesuffix("Gi"))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "backofLimit"), 2),
        (("spec", "backoffLimit"), -1),
        (("spec", "shutdownAfterJobFinishes"), False),
        (("spec", "rayClusterSpec", "headGroupSpec", "serviceType"), "LoadBalancer"),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "disabled"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "minReplicas"), 3),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "hostNetwork"), True),
        (("metadata", "name"), "Evaluate_1"),
    ],
)
def test_the_model_refuses_a_manifest_that_an_operator_would(path: tuple[str | int, ...], value: Any) -> None:
    manifest: Any = documents()[0]
    *place, last = path
    inner = manifest
    for key in place:
        inner = inner[key]
    inner[last] = value
    with pytest.raises(ValidationError):
        RayJob.model_validate(manifest)


def test_ray_has_one_version_in_manifest_image_dockerfile_constraints_and_package(job: RayJob) -> None:
    version = job.spec.ray_cluster_spec.ray_version
    images = {container.image for template in templates(job) for container in template.spec.containers}
    assert len(images) == 1
    tag = images.pop().rpartition(":")[2]
    assert tag.startswith(f"{version}-py")
    dockerfile = (ROOT / "cluster" / "Dockerfile").read_text()
    assert f"FROM rayproject/ray:{tag}\n" in dockerfile
    assert f"\nray=={version}\n" in (ROOT / "constraints.txt").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (pin,) = (line for line in project["dependencies"] if line.startswith("ray["))
    major, minor, _ = version.split(".")
    assert pin.endswith(f">={major}.{minor},<{major}.{int(minor) + 1}")
    low, high = re.findall(r"3\.(\d+)", project["requires-python"])
    assert int(low) <= int(tag.removeprefix(f"{version}-py3")) < int(high)


def test_the_dockerfile_copies_what_exists_and_runs_as_a_user(job: RayJob) -> None:
    lines = (ROOT / "cluster" / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[2:-1]]
    assert copied
    missing = [name for name in copied if not (ROOT / name).exists() and name not in ("README.md", "LICENSE")]
    assert missing == []
    user = job.spec.ray_cluster_spec.head_group_spec.template.spec.security_context.run_as_user
    assert lines[-1] == f"USER {user}"


def test_the_entry_point_is_a_job_of_ours_with_options_that_its_parser_takes(job: RayJob) -> None:
    python, script, recipe, *options = words(job)
    assert python == "python"
    assert script.startswith("/opt/ctxasr/")
    assert (ROOT / script.removeprefix("/opt/ctxasr/")).is_file()
    parsed = cli.parse_evaluate("evaluate", [recipe, *options])
    assert parsed.root.startswith("s3://"), "workers on several nodes need a root that all of them reach"


def test_every_pool_fits_the_worker_groups_with_its_label(job: RayJob) -> None:
    experiment = cli.parse_evaluate("evaluate", words(job)[2:]).experiment
    steps = [step for step in layout.line(experiment).steps if step.config.WRITES not in {*GATHERED, "utterances"}]
    nodes = [
        Node(group.labels, float(limits["cpu"]), float(limits["nvidia.com/gpu"]))
        for group in job.spec.ray_cluster_spec.worker_group_specs
        for limits in [group.template.spec.containers[0].resources.limits] * group.replicas
    ]
    steps.sort(key=lambda step: -step.config.resources.num_gpus)
    assert sum(step.config.resources.num_gpus > 0 for step in steps) == 2
    for step in steps:
        asked = step.config.resources
        for _ in range(asked.num_actors):
            fitting = [node for node in nodes if node.fits(asked)]
            assert fitting, f"no node left for an actor of step '{step.name}', which asks for {asked}"
            fitting[0].cpus -= asked.num_cpus
            fitting[0].gpus -= asked.num_gpus


def test_memory_is_guaranteed_and_shared_memory_holds_the_object_store(job: RayJob) -> None:
    for template in templates(job):
        for container in template.spec.containers:
            assert container.resources.requests["memory"] == container.resources.limits["memory"]
    for group in job.spec.ray_cluster_spec.worker_group_specs:
        (shm,) = (volume.empty_dir for volume in group.template.spec.volumes if volume.name == "shm")
        assert shm is not None
        assert int(group.ray_start_params["object-store-memory"]) <= gib(shm.size_limit) * 2**30
        assert gib(shm.size_limit) < gib(group.template.spec.containers[0].resources.limits["memory"])


def test_the_driver_s_node_runs_no_stage_and_secrets_come_from_a_secret(job: RayJob) -> None:
    head = job.spec.ray_cluster_spec.head_group_spec
    assert head.ray_start_params["num-cpus"] == "0"
    for template in templates(job):
        for variable in template.spec.containers[0].env:
            if re.search("KEY|SECRET|TOKEN|PASSWORD", variable.name):
                assert variable.value is None
                assert variable.value_from is not None


def test_only_the_job_s_own_pods_and_the_operator_reach_it(job: RayJob) -> None:
    policy = documents()[1]
    assert policy["kind"] == "NetworkPolicy"
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    wanted = policy["spec"]["podSelector"]["matchLabels"]
    for template in templates(job):
        assert wanted.items() <= template.metadata.labels.items()
    own, operator = policy["spec"]["ingress"]
    assert own["from"] == [{"podSelector": {"matchLabels": wanted}}]
    assert operator["ports"] == [{"protocol": "TCP", "port": 8265}]
    assert len(documents()) == 2


def test_the_readme_s_commands_name_what_exists(job: RayJob) -> None:
    text = (ROOT / "cluster" / "README.md").read_text()
    commands = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    for path in re.findall(r"cluster/[\w.]+", " ".join(commands)):
        assert (ROOT / path).is_file(), path
    image = job.spec.submitter_pod_template.spec.containers[0].image
    assert f"docker push {image}" in " ".join(commands)
    known = {line.split()[1] for line in commands if line.startswith("ctxasr ")}
    assert known <= cli.COMMANDS.keys()
