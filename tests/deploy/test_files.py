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
CADDY = (DEPLOY / "caddy" / "Caddyfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICE: dict[str, Any] = COMPOSE["services"]["tenuto"]
DOCKERFILE = (ROOT / "Dockerfile.cuda").read_text()


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / "systemd" / "tenuto.service")
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


def test_the_rules_know_the_job() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    jobs = {job["job_name"] for job in config["scrape_configs"]}
    assert {job for rule in RULES for job in re.findall(r'job="(\w+)"', rule["expr"])} == jobs


def test_proxies_take_as_much_as_the_server_and_let_go_before_it() -> None:
    size = Bounds().body_bytes >> 20
    assert re.findall(r"client_(?:max_body|body_buffer)_size (\w+);", NGINX) == [f"{size}m"] * 2
    idle = re.findall(r"^\s+keepalive_timeout (\d+)s;", NGINX, re.M)
    idle += re.findall(r"keepalive (\d+)s", CADDY)
    assert len(idle) == 2
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
