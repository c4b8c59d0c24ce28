"""The files of deploy/ against each other, the code's bounds and docs/operations.md."""

import configparser
import re
from itertools import pairwise
from typing import Any

import pytest
import uvicorn
import yaml

from tenuto.serving import CLOSE_CONNECTIONS_S
from tenuto.settings import Settings
from tenuto.wire.bounds import Bounds
from tests.deploy.conftest import DEPLOY, ROOT
from tests.deploy.dashboards import DASHBOARD, OPERATIONS, RULES, documented_samples, named

CLOSING_S = Settings.model_fields["drain_s"].default + CLOSE_CONNECTIONS_S
NGINX = (DEPLOY / "nginx" / "tenuto.conf").read_text()
UPSTREAM = (DEPLOY / "ray" / "upstream.conf").read_text()
CLUSTER = (ROOT / "docs" / "cluster.md").read_text()
DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
RAYCLUSTER, RAY_SERVICE = yaml.safe_load_all((DEPLOY / "ray" / "raycluster.yaml").read_text())
CADDY = (DEPLOY / "caddy" / "Caddyfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICE: dict[str, Any] = COMPOSE["services"]["tenuto"]
DOCKERFILE = (ROOT / "Dockerfile.cuda").read_text()


def unit(path: str = "systemd/tenuto.service") -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / path)
    return parser


def anchors() -> set[str]:
    """As GitHub makes them of headings."""
    titles = re.findall(r"^##+ (.+)$", OPERATIONS, re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_what_dashboard_and_rules_name_is_documented() -> None:
    ours = {name for name in named() if name.startswith("tenuto_")}
    assert len(ours) > 20
    assert ours <= documented_samples()


def test_every_metric_is_on_the_dashboard_or_in_a_rule() -> None:
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in documented_samples()}
    assert families == {re.sub(r"_(bucket|sum|count)$", "", name) for name in named()} & families


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(set(ids)) == len(ids)
    places = [panel["gridPos"] for panel in panels]
    for before, after in pairwise(places):
        beside = after["y"] == before["y"] and after["x"] == before["x"] + before["w"]
        assert beside or (after["x"] == 0 and after["y"] == before["y"] + before["h"])
    assert all(place["x"] + place["w"] <= 24 for place in places)


def test_the_datasource_is_a_variable() -> None:
    variables = DASHBOARD["templating"]["list"]
    assert [v["name"] for v in variables] == ["datasource", "instance", "model"]
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    users = [*panels, *variables[1:], *DASHBOARD["annotations"]["list"]]
    assert {user["datasource"]["uid"] for user in users} == {"${datasource}"}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_says_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert rule["annotations"]["summary"]
    path, anchor = rule["annotations"]["runbook"].split("#")
    assert (ROOT / path).is_file()
    assert anchor == rule["alert"].lower()
    assert anchor in anchors()


def test_every_alert_is_fired_by_a_test_and_every_section_has_its_alert() -> None:
    alerts = {rule["alert"] for rule in RULES}
    tests = yaml.safe_load((DEPLOY / "prometheus" / "tenuto.rules.test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == alerts
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == alerts
    assert set(re.findall(r"^### (Tenuto\w+)$", OPERATIONS, re.M)) == alerts


def test_links_within_the_page_lead_somewhere() -> None:
    assert set(re.findall(r"\]\(#([\w-]+)\)", OPERATIONS)) <= anchors()
    assert set(re.findall(r"\]\(operations\.md#([\w-]+)\)", CLUSTER)) <= anchors()


def test_the_rules_know_the_job() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    jobs = {job["job_name"] for job in config["scrape_configs"]}
    assert {job for rule in RULES for job in re.findall(r'job="(\w+)"', rule["expr"])} == jobs


def test_proxies_take_as_much_as_the_server_and_let_go_before_it() -> None:
    size = Bounds().body_bytes >> 20
    assert re.findall(r"client_(?:max_body|body_buffer)_size (\w+);", NGINX) == [f"{size}m"] * 2
    idle = re.findall(r"^\s+keepalive_timeout (\d+)s;", NGINX, re.M)
    idle += re.findall(r"^\s+keepalive_timeout (\d+)s;", UPSTREAM, re.M)
    idle += re.findall(r"keepalive (\d+)s", CADDY)
    assert len(idle) == 3
    assert max(map(int, idle)) < uvicorn.Config(app="").timeout_keep_alive


def test_the_unit_leaves_time_to_end_and_the_gpus_in_sight() -> None:
    service = unit()["Service"]
    assert service["KillMode"] == "mixed"
    assert int(service["TimeoutStopSec"]) > CLOSING_S
    assert service["Restart"] == "on-failure"
    # Each would take the devices or the just-in-time compilers away.
    hiding = {"PrivateDevices", "DevicePolicy", "DeviceAllow", "ProtectClock"}
    hiding |= {"MemoryDenyWriteExecute", "ProcSubset"}
    assert not hiding & service.keys()


def test_the_containers_have_time_to_end_memory_to_share_and_what_outlives_them() -> None:
    assert int(SERVICE["stop_grace_period"].removesuffix("s")) > CLOSING_S
    assert SERVICE["ipc"] == "host"
    assert (DEPLOY / SERVICE["build"]["context"] / SERVICE["build"]["dockerfile"]).is_file()
    kept = re.search(r"^VOLUME (.+)$", DOCKERFILE, re.M)
    assert kept is not None
    mounts = dict(volume.split(":")[:2] for volume in SERVICE["volumes"])
    assert {mounts[name] for name in COMPOSE["volumes"]} == set(yaml.safe_load(kept[1]))
    assert all((DEPLOY / name).is_file() for name in mounts if name.startswith("."))
    assert SERVICE["ports"] == ["127.0.0.1:8000:8000"]


def ray_environment(name: str) -> dict[str, str]:
    text = (DEPLOY / "ray" / name).read_text()
    words = " ".join(re.findall(r"^Environment=(.+)$", text, re.M)).split()
    return dict(word.split("=", 1) for word in words)


@pytest.mark.parametrize("name", ["ray-head", "ray-worker", "tenuto-front@"])
def test_nobody_talks_to_ray_without_the_token_and_ray_comes_back(name: str) -> None:
    assert ray_environment(f"{name}.service").items() >= {
        ("RAY_AUTH_MODE", "token"),
        ("RAY_AUTH_TOKEN_PATH", "/etc/tenuto/ray.token"),
        ("RAY_USAGE_STATS_ENABLED", "0"),
    }
    found = unit(f"ray/{name}.service")
    assert found["Service"]["Restart"] == "always"
    assert "RestartPreventExitStatus" not in found["Service"]
    assert found["Unit"]["StartLimitIntervalSec"] == "0"


def test_a_front_end_ends_and_begins_with_its_hosts_part_of_ray() -> None:
    front, hosts = unit("ray/tenuto-front@.service"), {"ray-head.service", "ray-worker.service"}
    assert set(front["Unit"]["PartOf"].split()) == hosts
    for words in (front["Unit"]["After"], front["Install"]["WantedBy"]):
        assert hosts < set(words.split())


def test_hosts_and_front_ends_have_time_to_end() -> None:
    drain_s = int(ray_environment("ray-worker.service")[DRAIN])
    worker, front = unit("ray/ray-worker.service"), unit("ray/tenuto-front@.service")
    assert int(worker["Service"]["TimeoutStopSec"]) > drain_s
    assert int(front["Service"]["TimeoutStopSec"]) > CLOSING_S
    gpu_pod, front_pod = (pod_of(group) for group in RAYCLUSTER["spec"]["workerGroupSpecs"])
    assert {"name": DRAIN, "value": str(drain_s)} in gpu_pod["containers"][0]["env"]
    assert gpu_pod["terminationGracePeriodSeconds"] > drain_s
    assert front_pod["terminationGracePeriodSeconds"] > CLOSING_S


def pod_of(group: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = group["template"]["spec"]
    return found


def test_the_kubernetes_cluster_is_the_units_one() -> None:
    spec = RAYCLUSTER["spec"]
    head, (gpu, front) = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert f'"ray[serve]=={spec["rayVersion"]}"' in (ROOT / "pyproject.toml").read_text()
    assert spec["authOptions"] == {"mode": "token"}
    assert "redisAddress" in spec["gcsFaultToleranceOptions"]
    assert RAYCLUSTER["metadata"]["annotations"]["ray.io/overwrite-container-cmd"] == "true"
    for group in (head, gpu, front):
        [container] = pod_of(group)["containers"]
        assert "$KUBERAY_GEN_RAY_START_CMD" in container["args"][0]
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]
    # No replica where there is no GPU; front ends are not idle hosts; without GPUs none is used.
    assert head["rayStartParams"] == front["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}
    assert front["minReplicas"] == front["maxReplicas"] > 1
    assert gpu["maxReplicas"] > gpu["minReplicas"] > 0
    assert RAY_SERVICE["spec"]["selector"] == front["template"]["metadata"]["labels"]
