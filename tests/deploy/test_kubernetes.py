"""The Kubernetes manifests against Kubernetes' own schemas, and the chart that they come from."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from plugserve.core.settings.settings_reader import read_settings

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
CHART = DEPLOY / "helm/plugserve"
kubernetes_validate = pytest.importorskip("kubernetes_validate")
needs_helm = pytest.mark.skipif(shutil.which("helm") is None, reason="helm is not installed")

VARIANTS = {
    "defaults": ["auth.existingSecret=plugserve-keys"],
    "gpus": ["auth.existingSecret=keys", "gpus=2", "settings.tensor_parallel_size=2", "huggingFace.existingSecret=hf"],
    "many": [
        "auth.allowAnyone=true", "autoscaling.enabled=true", "ingress.enabled=true", "ingress.tlsSecret=tls",
        "models.existingClaim=shared", "replicas=3", "imagePullSecrets[0].name=pull", "env[0].name=A", "env[0].value=b",
        "nodeSelector.gpu=h100", "tolerations[0].operator=Exists", "priorityClassName=high", "podAnnotations.a=b",
    ],
}  # fmt: skip


def validated(text):
    """The objects in text, each valid for its kind in three versions of Kubernetes."""
    objects = [one for one in yaml.safe_load_all(text) if one]
    for one in objects:
        for version in ("1.27", "1.31", "1.34"):
            kubernetes_validate.validate(one, version, strict=True)
    return {one["kind"]: one for one in objects}


def rendered(*values):
    command = ["helm", "template", "plugserve", str(CHART), *(part for value in values for part in ("--set", value))]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_manifests_are_valid_and_their_probes_are_the_documented_ones():
    objects = validated((DEPLOY / "kubernetes/plugserve.yaml").read_text())
    assert set(objects) == {"ConfigMap", "PersistentVolumeClaim", "Service", "Deployment"}
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    page = (DEPLOY.parent / "docs/operations.md").read_text()
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        (line,) = [line for line in page.splitlines() if line.startswith(f"{name}:")]
        documented = yaml.safe_load(line)[name]
        probe = container[name]
        assert probe["httpGet"]["path"] == documented["httpGet"]["path"]
        assert probe["failureThreshold"] == documented["failureThreshold"]
        assert probe["periodSeconds"] == documented["periodSeconds"]
    settings = yaml.safe_load(objects["ConfigMap"]["data"]["plugserve.yaml"])
    assert pod["terminationGracePeriodSeconds"] > settings["shutdown_timeout"]
    assert pod["enableServiceLinks"] is False


def test_the_settings_of_the_config_map_are_plugserves(tmp_path):
    objects = validated((DEPLOY / "kubernetes/plugserve.yaml").read_text())
    file = tmp_path / "plugserve.yaml"
    file.write_text(objects["ConfigMap"]["data"]["plugserve.yaml"])
    (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["args"][1] == "--config=/etc/plugserve/plugserve.yaml"
    assert read_settings(["--config", str(file)], {}).settings.max_num_seqs == 128


@needs_helm
def test_the_plain_manifests_are_the_charts_defaults():
    text = rendered(*VARIANTS["defaults"]).stdout
    assert list(yaml.safe_load_all(text)) == list(
        yaml.safe_load_all((DEPLOY / "kubernetes/plugserve.yaml").read_text())
    )


@needs_helm
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_of_the_chart_is_valid(name):
    result = rendered(*VARIANTS[name])
    assert result.returncode == 0, result.stderr
    objects = validated(result.stdout)
    if name == "many":
        assert set(objects) >= {"HorizontalPodAutoscaler", "Ingress", "PodDisruptionBudget"}
        assert "replicas" not in objects["Deployment"]["spec"]
    if name == "gpus":
        (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 2


@needs_helm
def test_a_server_for_everyone_has_to_be_asked_for():
    result = rendered()
    assert result.returncode != 0
    assert "auth.existingSecret: name a Secret" in result.stderr
