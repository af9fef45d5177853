"""The compose file's server and Nginx, run as it says but for containers, and asked through Nginx."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.deploy.compose_run import ComposeRun, UnsetVariableError, interpolate, read_compose, read_variables
from tests.e2e.live_server import eventually

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
COMPOSE = DEPLOY / "docker-compose.yml"
SECRETS = {"API_KEYS": "client-key", "GRAFANA_PW": "grafana-password"}
CHAT = {"messages": [{"role": "user", "content": "Count from one to twenty."}], "temperature": 0}

needs_programs = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("nginx", "curl", "openssl", "unshare", "nsenter"))),
    reason="needs root, nginx, curl, openssl and util-linux",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compose")
    deploy = folder / "deploy"
    shutil.copytree(DEPLOY, deploy, ignore=shutil.ignore_patterns(".env", "tls"))
    subprocess.run(["sh", str(deploy / "new-env.sh")], check=True, stdout=subprocess.DEVNULL)
    environment = read_variables(deploy / ".env") | {"DRAIN_SECONDS": "300"}
    assert len(environment["API_KEYS"]) == 48
    running = ComposeRun(deploy / "docker-compose.yml", environment | SECRETS, folder)
    try:
        running.start("plugserve")
        running.start("nginx")
        yield running
    finally:
        running.stop()


@pytest.fixture
def ask(run):
    def ask(path, *options, body=None, key="client-key"):
        """(status, headers, body) of a request to Nginx over HTTPS."""
        command = ["curl", "--silent", "--show-error", "--insecure", "--include", *options, f"https://127.0.0.1{path}"]
        if key:
            command += ["--header", f"Authorization: Bearer {key}"]
        if body is not None:
            command += ["--header", "Content-Type: application/json", "--data-binary", "@-"]
        answer = subprocess.run(run.inside(*command), input=body, capture_output=True, check=True).stdout
        head, _, content = answer.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = [tuple(line.lower().split(": ", 1)) for line in lines[1:]]
        return int(lines[0].split()[1]), headers, content

    return ask


def chat(**fields):
    return json.dumps(CHAT | fields).encode()


@needs_programs
def test_the_configuration_is_read_without_warnings(run):
    root = f"/proc/{run._processes['nginx'].pid}/root"
    command = ["chroot", root, "nginx", "-t", "-c", "/etc/plugserve-nginx/nginx.conf"]
    got = subprocess.run(run.inside(*command), capture_output=True, text=True)
    assert got.returncode == 0, got.stderr
    assert "warn" not in got.stderr


@needs_programs
@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_answers_pass_with_security_headers_once(ask, version):
    status, headers, content = ask("/v1/chat/completions", version, body=chat(max_tokens=3))
    assert status == 200
    assert json.loads(content)["usage"]["completion_tokens"] == 3
    names = [name for name, _ in headers]
    for name in (
        "strict-transport-security", "x-content-type-options", "x-frame-options", "referrer-policy", "x-request-id",
    ):  # fmt: skip
        assert names.count(name) == 1, headers
    assert ("server", "nginx") in headers


@needs_programs
def test_health_is_the_servers_own_and_metrics_are_not_public(ask, run):
    assert ask("/health", key=None)[::2] == (200, b'{"status":"ok"}')
    assert ask("/v1/models", key=None)[0] == 401
    for path in ("/metrics", "/metrics/", "//metrics", "/%6detrics", "/v1/../metrics"):
        assert ask(path, "--path-as-is")[0] == 404, path
    direct = subprocess.run(run.inside("curl", "-s", "http://127.0.0.1:8000/metrics"), capture_output=True, text=True)
    assert "plugserve_num_requests_running" in direct.stdout


@needs_programs
@pytest.mark.skipif(not all(map(shutil.which, ("prometheus", "wget"))), reason="needs prometheus and wget")
def test_prometheus_scrapes_the_server_with_the_shipped_rules(run):
    run.start("prometheus")

    def ask(path):
        command = run.inside("curl", "-s", f"http://127.0.0.1:9090/api/v1/{path}")
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["data"]

    def health():
        return {one["labels"]["job"]: one["health"] for one in ask("targets")["activeTargets"]}

    eventually(lambda: health() == {"plugserve": "up", "prometheus": "up"}, 40)
    assert ask("query?query=plugserve_num_requests_running")["result"]
    assert sum(len(group["rules"]) for group in ask("rules")["groups"]) > 5


@needs_programs
def test_http_leads_to_https(run):
    command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code} %{redirect_url}", "http://127.0.0.1/v1/models?a=1"]
    got = subprocess.run(run.inside(*command), capture_output=True, text=True)
    assert got.stdout == "308 https://127.0.0.1/v1/models?a=1"


@needs_programs
@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_streams_are_not_buffered(run, version):
    command = [
        "curl", "-skN", version, "https://127.0.0.1/v1/chat/completions", "-H", "Authorization: Bearer client-key",
        "-H", "Content-Type: application/json", "-d", chat(stream=True, max_tokens=40, ignore_eos=True).decode(),
    ]  # fmt: skip
    with subprocess.Popen(run.inside(*command), stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        reads = []
        while piece := os.read(process.stdout.fileno(), 1 << 16):
            reads.append(piece)
    text = b"".join(reads)
    assert text.endswith(b"data: [DONE]\n\n")
    assert text.count(b"data: ") >= 30
    assert len(reads) >= 20  # a buffered answer comes in one or two


@needs_programs
def test_large_bodies_are_refused_in_the_apis_form(ask):
    status, _, content = ask("/v1/chat/completions", body=b'{"messages": "' + b"a" * (17 << 20) + b'"}')
    assert status == 413
    assert json.loads(content)["error"]["code"] == "request_too_large"


@needs_programs
def test_limits_answer_429_and_503_in_the_apis_form(run, ask):
    body = chat(stream=True, max_tokens=150, ignore_eos=True).decode()
    command = [
        "curl", "-skN", "-o", "/dev/null", "-w", "%{http_code}", "https://127.0.0.1/v1/chat/completions",
        "-H", "Authorization: Bearer client-key", "-H", "Content-Type: application/json", "-d", body,
    ]  # fmt: skip
    clients = [subprocess.Popen(run.inside(*command), stdout=subprocess.PIPE, text=True) for _ in range(24)]
    codes = [client.communicate(timeout=120)[0] for client in clients]
    assert set(codes) == {"200", "503"}, codes
    assert codes.count("200") == 20, codes
    config = "".join('url = "https://127.0.0.1/v1/models"\noutput = "/dev/null"\n' for _ in range(120))
    command = ["curl", "-sk", "--parallel", "--parallel-max", "5", "-w", "%{http_code}\\n", "-K", "-"]
    codes = subprocess.run(run.inside(*command), input=config, capture_output=True, text=True).stdout.split()
    assert set(codes) == {"401", "429"}, codes
    for _ in range(40):
        status, headers, content = ask("/v1/models", key=None)
        if status == 429:
            break
    else:
        pytest.fail("never 429")
    assert json.loads(content)["error"]["code"] == "rate_limit_exceeded"
    assert ("retry-after", "1") in headers
    assert ask("/health", key=None)[0] == 200  # probes have no limit
    time.sleep(2)  # the burst of the next test is free again


@needs_programs
def test_logs_hold_no_key_and_one_object_a_request(run, ask):
    ask("/v1/models?token=secret-query")
    lines = run.log("nginx").read_text().splitlines()
    objects = [json.loads(line) for line in lines if line.startswith("{")]
    assert {one["status"] for one in objects} >= {200}
    assert "client-key" not in run.log("nginx").read_text() + run.log("plugserve").read_text()
    assert "secret-query" not in run.log("nginx").read_text()


@needs_programs
def test_a_stopping_server_finishes_its_streams_and_nginx_says_when_it_is_gone(run, ask):
    """Last: it ends the server."""
    command = [
        "curl", "-skN", "https://127.0.0.1/v1/chat/completions", "-H", "Authorization: Bearer client-key",
        "-H", "Content-Type: application/json", "-d", chat(stream=True, max_tokens=30, ignore_eos=True).decode(),
    ]  # fmt: skip
    streams = [subprocess.Popen(run.inside(*command), stdout=subprocess.PIPE) for _ in range(4)]
    beginnings = [stream.stdout.read(1) for stream in streams if stream.stdout]
    run.signal("plugserve", signal.SIGTERM)
    answers = [one + stream.communicate(timeout=200)[0] for one, stream in zip(beginnings, streams, strict=True)]
    assert [answer[-14:] for answer in answers] == [b"data: [DONE]\n\n"] * 4, run.log("plugserve").read_text()[-2000:]
    ends = [answer[-700:] for answer in answers if b'"finish_reason":"length"' not in answer]
    assert ends == [], run.log("plugserve").read_text()[-2000:]
    assert run.wait("plugserve", 100) == 0
    status, headers, content = ask("/v1/models")
    assert status == 502
    assert json.loads(content)["error"]["code"] == "server_unreachable"
    assert ("retry-after", "5") in headers


# ---- the file itself


def test_every_variable_is_in_the_example_and_secrets_have_no_default():
    example = read_variables(DEPLOY / ".env.example")
    text = COMPOSE.read_text()
    used = {part.split("}")[0].split(":")[0] for part in text.split("${")[1:]}
    assert used <= set(example)
    content = read_compose(COMPOSE, example)
    for secret in content["secrets"].values():
        assert example[secret["environment"]] == ""


def test_only_nginx_publishes_ports_and_every_service_has_limits_and_rotated_logs():
    content = read_compose(COMPOSE, read_variables(DEPLOY / ".env.example"))
    for name, service in content["services"].items():
        assert ("ports" in service) == (name == "nginx"), name
        assert service["logging"]["options"]["max-size"], name
        assert service["deploy"]["resources"]["limits"]["memory"], name
        assert "latest" not in service["image"], name
        assert ("healthcheck" in service) == (name != "jaeger"), name  # whose image holds no program that could ask
    assert content["networks"]["inner"]["internal"] is True


def test_mounted_files_exist():
    for service in read_compose(COMPOSE, read_variables(DEPLOY / ".env.example"))["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./") and source != "./tls":
                assert (DEPLOY / source).is_dir(), source


@pytest.mark.parametrize(
    ("text", "expected"),
    [("${A}", "1"), ("${B:-2}", "2"), ("${E:-2}", "2"), ("${E-2}", ""), ("x$$y", "x$y"), ("${N}", "")],
)
def test_interpolation(text, expected):
    assert interpolate(text, {"A": "1", "E": ""}) == expected


def test_a_required_variable():
    with pytest.raises(UnsetVariableError, match="A: set it"):
        interpolate("${A:?set it}", {"A": ""})
