"""The cluster manifest: fields that KubeRay knows, one version everywhere, nothing open, pools that fit its groups.

A strict model of the subset that we write stands in for KubeRay's CRD (1.4 MB); the rules beside it are ones that its
operator enforces and that a schema does not know.
"""

import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from ctxasr_ray import cli, run_commands

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
    automount_service_account_token: bool
    service_account_name: Name | None = None
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
        if self.automount_service_account_token and self.service_account_name is None:
            raise ValueError("a pod without an account of its own gets no token of Kubernetes")
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
    replicas: int = Field(ge=0)
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


class AutoscalerOptions(Strict):
    version: Literal["v2"]  # needs restartPolicy Never
    idle_timeout_seconds: int = Field(gt=0)
    upscaling_mode: Literal["Default", "Aggressive", "Conservative"]
    resources: Requirements


class Cluster(Strict):
    ray_version: str
    auth_options: Auth
    enable_in_tree_autoscaling: bool = False
    autoscaler_options: AutoscalerOptions | None = None
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


class RayCluster(Strict):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: Cluster

    @model_validator(mode="after")
    def only_the_head_of_a_scaling_cluster_has_an_account(self) -> "RayCluster":
        groups = [group.template.spec for group in self.spec.worker_group_specs]
        if any(pod.automount_service_account_token for pod in groups):
            raise ValueError("workers need no token of Kubernetes")
        return self


def documents(name: str = "rayjob") -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "cluster" / f"{name}.yaml").read_text()))


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
    parsed = run_commands.parse_evaluate("evaluate", [recipe, *options])
    assert parsed.root.startswith("s3://"), "workers on several nodes need a root that all of them reach"


def fit(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = cli.main(["plan", *words])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_every_pool_of_the_job_fits_its_own_worker_groups(job: RayJob, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = fit([*words(job)[2:], "--cluster", str(ROOT / "cluster" / "rayjob.yaml")], capsys)
    assert (code, "Every pool fits" in said) == (0, True)


LLM = ["whisper_llm", "--first-pass.resources.label-selector", "role", "first-pass"]
LLM += ["--scorers.0.resources.label-selector", "role", "lm"]


@pytest.mark.parametrize(
    ("file", "options", "said"),
    [
        (
            "rayjob",
            ["--scorers.0.resources.num-gpus", "2"],
            "needs 2 GPU, but the largest node with its labels (lm) has 1 GPU",
        ),
        ("rayjob", ["--scorers.0.resources.num-actors", "3"], "2 x lm hold fewer than 3 of them"),
        (
            "rayjob",
            ["--scorers.0.resources.num-cpus", "9"],
            "needs 9 CPU, but the largest node with its labels (lm) has 8",
        ),
        ("rayjob", ["--scorers.0.resources.memory-bytes", str(2**36)], "needs 64 GiB of memory"),
        (
            "rayjob",
            ["--scorers.0.resources.label-selector", "role", "llm"],
            "no group of nodes has the label {'role': 'llm'}",
        ),
        ("launcher_aws", ["--first-pass.resources.num-actors", "5"], "4 x first-pass hold fewer than 5 of them"),
        ("raycluster", ["--first-pass.resources.num-actors", "9"], "8 x first-pass hold fewer than 9 of them"),
        ("launcher_hosts", [], "names hosts and not what they have"),
    ],
)
def test_a_cluster_that_is_too_small_is_refused_in_words(
    file: str, options: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, text = fit([*LLM, *options, "--cluster", str(ROOT / "cluster" / f"{file}.yaml")], capsys)
    assert (code, said in " ".join(text.split())) == (1, True), text


def test_pools_that_only_fit_one_at_a_time_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = documents("launcher_aws")[0]
    manifest["available_node_types"] = {
        "head": manifest["available_node_types"]["head"],
        "gpu": {"max_workers": 1, "resources": {"CPU": 8, "GPU": 1, "memory": 2**35}},
    }
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(manifest))
    code, said = fit(["whisper_llm", "--cluster", str(tmp_path / "one.yaml")], capsys)
    assert (code, "fits alone, but not beside the pools" in said) == (1, True)
    halves = ["--first-pass.resources.num-gpus", "0.5", "--scorers.0.resources.num-gpus", "0.5"]
    assert fit(["whisper_llm", *halves, "--cluster", str(tmp_path / "one.yaml")], capsys)[0] == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [("kind: Pod\n", "expected KubeRay's RayJob or RayCluster"), ("a: [", "is no YAML"), ("", "holds nothing")],
)
def test_a_file_that_is_no_cluster_is_refused(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(text)
    code, words = fit(["quickstart", "--cluster", str(tmp_path / "c.yaml")], capsys)
    assert (code, said in words) == (1, True), words
    assert fit(["quickstart", "--cluster", str(tmp_path / "none.yaml")], capsys)[0] == 1
    with pytest.raises(SystemExit, match="2"):
        fit(["quickstart", "--cluster"], capsys)


def test_the_standing_cluster_scales_per_role_and_is_as_closed_as_the_job() -> None:
    cluster = RayCluster.model_validate(documents("raycluster")[0])
    assert cluster.spec.enable_in_tree_autoscaling
    assert cluster.spec.autoscaler_options is not None
    job = RayJob.model_validate(documents()[0]).spec.ray_cluster_spec
    assert cluster.spec.ray_version == job.ray_version
    images = {c.image for g in (cluster.spec, job) for c in g.head_group_spec.template.spec.containers}
    assert len(images) == 1
    roles = {group.labels["role"] for group in cluster.spec.worker_group_specs}
    assert roles == {"first-pass", "lm", "speech-text"}
    assert all(group.min_replicas == 0 < group.max_replicas for group in cluster.spec.worker_group_specs)
    for variable in cluster.spec.head_group_spec.template.spec.containers[0].env:
        assert variable.value_from is not None or not re.search("KEY|SECRET|TOKEN", variable.name)


@pytest.mark.parametrize("name", ["launcher_aws", "launcher_hosts"])
def test_ray_itself_takes_the_launcher_files(name: str, tmp_path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    text = (ROOT / "cluster" / f"{name}.yaml").read_text()
    prepared = prepare_config(yaml.safe_load(text))
    validate_config(prepared)
    assert "RAY_AUTH_MODE=token" in " ".join(prepared["docker"]["run_options"])
    assert "--dashboard-host=127.0.0.1" in " ".join(prepared["head_start_ray_commands"])
    assert not re.search(r"AKIA|BEGIN .*KEY|secret", text)
    (check,) = prepared["setup_commands"]
    assert "ray/.ray/auth_token" in next(iter(prepared["file_mounts"]))
    for place, expected in ((tmp_path / "with", 0), (tmp_path / "without", 1)):
        (place / ".ray").mkdir(parents=True)
        if expected == 0:
            (place / ".ray" / "auth_token").write_text("x")
        assert (
            subprocess.run(["bash", "-c", check], env={"HOME": str(place), "PATH": os.environ["PATH"]}).returncode
            == expected
        )
    with pytest.raises(Exception, match="Additional properties are not allowed"):
        validate_config(prepare_config(yaml.safe_load(text)) | {"max_workerz": 1})


@pytest.mark.skipif("KUBERAY_CRD_DIR" not in os.environ, reason="KUBERAY_CRD_DIR names no folder of KubeRay's CRDs")
@pytest.mark.parametrize(("name", "plural"), [("rayjob", "rayjobs"), ("raycluster", "rayclusters")])
def test_the_full_schema_of_kuberay_takes_the_manifests(name: str, plural: str) -> None:
    import jsonschema

    crd = yaml.safe_load((Path(os.environ["KUBERAY_CRD_DIR"]) / f"ray.io_{plural}.yaml").read_text())
    (schema,) = [v["schema"]["openAPIV3Schema"] for v in crd["spec"]["versions"] if v["name"] == "v1"]
    jsonschema.validate(documents(name)[0], _closed(schema))


def _closed(schema: Any) -> Any:
    """The schema as the API server reads it: unknown fields are pruned there, and an error here."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {}
    found = {key: _closed(value) for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    if "properties" in schema and "x-kubernetes-preserve-unknown-fields" not in schema:
        found.setdefault("additionalProperties", False)
    return found


def test_the_slurm_script_is_a_shell_script_without_secrets() -> None:
    path = ROOT / "cluster" / "slurm.sh"
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    text = path.read_text()
    assert "RAY_AUTH_MODE=token" in text
    assert "--include-dashboard=false" in text
    refused = subprocess.run(["bash", path], capture_output=True, text=True, check=False, env={})
    assert refused.returncode != 0


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "ray://no.such.host.invalid:10001"])
def test_a_cluster_that_cannot_be_reached_is_refused_in_words(address: str) -> None:
    from ctxasr_ray.distributed.cluster import refuse_unreachable

    with pytest.raises(ValueError, match=re.escape(f"no Ray cluster answers at '{address}'")):
        refuse_unreachable(address)
    refuse_unreachable("auto")


@pytest.mark.parametrize("address", ["nonsense", "ray://head", ":6379"])
def test_what_is_no_address_is_refused_in_words(address: str) -> None:
    from ctxasr_ray.distributed.cluster import refuse_unreachable

    with pytest.raises(ValueError, match=re.escape(f"'{address}' is no address of a Ray cluster; expected HOST:6379")):
        refuse_unreachable(address)


SRUN = """#!/usr/bin/env bash
for word in "$@"; do case $word in --port=*) port=${word#--port=};; esac; done
case " $* " in
  *" --head "*) HEAD ;;
  *) echo "worker: $*" >> "$LOG"; sleep 1 ;;
esac
"""
LISTENS = """sleep 1.5; exec python3 -c "import socket, sys, time
s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); time.sleep(4)" $port"""


@pytest.mark.parametrize(("head", "code"), [(LISTENS, 0), ("echo no such node >&2; exit 1", 1), ("exec sleep 6", 1)])
def test_slurm_starts_workers_when_the_head_answers_and_gives_up_when_it_does_not(
    head: str, code: int, tmp_path: Path
) -> None:
    programs = {
        "srun": SRUN.replace("HEAD", head),
        "scontrol": "#!/bin/sh\nprintf '127.0.0.1\\nother\\n'\n",
        ".venv/bin/ctxasr": '#!/bin/sh\necho "driver: $*" >> "$LOG"\n',
    }
    for name, text in programs.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(tmp_path / "log"), "HEAD_WAIT_S": "3"}
    slurm = {"SUBMIT_DIR": str(tmp_path), "JOB_ID": str(os.getpid()), "JOB_NODELIST": "x", "CPUS_PER_TASK": "1"}
    environment |= {f"SLURM_{name}": value for name, value in slurm.items()}
    command = ["bash", str(ROOT / "cluster" / "slurm.sh"), "evaluate", "quickstart"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    said = (tmp_path / "log").read_text().splitlines() if (tmp_path / "log").exists() else []
    assert sorted(line.partition(":")[0] for line in said) == (["driver", "worker"] if code == 0 else [])
    assert ("did not answer on port" in done.stderr) == (code == 1)
    assert not list(tmp_path.glob(".ray_token*")), "the token goes with the job"


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
