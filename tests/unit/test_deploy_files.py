"""The files under deploy/ that need no server to be checked: they parse, and what they promise one another holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
REPOSITORY = DEPLOY.parent
DRAIN = 25


def documents(name: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")) if document]


def test_whoever_stops_a_worker_gives_it_longer_than_its_drain() -> None:
    [deployment] = [one for one in documents("kubernetes/howdah.yaml") if one["kind"] == "Deployment"]
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > DRAIN + 10
    assert int(documents("compose.yaml")[0]["services"]["howdah"]["stop_grace_period"].removesuffix("s")) > DRAIN + 10
    for unit in ("howdah.service", "howdah@.service"):
        [seconds] = re.findall(r"^TimeoutStopSec=(\d+)", (DEPLOY / "systemd" / unit).read_text(), re.MULTILINE)
        assert int(seconds) > DRAIN + 10
        [watchdog] = re.findall(r"^WatchdogSec=(\d+)", (DEPLOY / "systemd" / unit).read_text(), re.MULTILINE)
        assert int(watchdog) > 300


def test_pods_are_scraped_and_probed_where_the_daemon_answers() -> None:
    [deployment] = [one for one in documents("kubernetes/howdah.yaml") if one["kind"] == "Deployment"]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    [port] = container["ports"]
    assert port["containerPort"] == 9543
    assert {container[probe]["httpGet"]["path"] for probe in ("livenessProbe", "startupProbe")} == {"/healthz"}
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    [monitor] = documents("kubernetes/podmonitor.yaml")
    assert monitor["spec"]["podMetricsEndpoints"][0]["port"] == port["name"]
    assert (
        monitor["spec"]["selector"]["matchLabels"].items()
        <= deployment["spec"]["template"]["metadata"]["labels"].items()
    )
    assert container["securityContext"]["readOnlyRootFilesystem"]


def test_scaling_counts_what_runs_beside_what_waits() -> None:
    scaled, hpa = documents("kubernetes/keda.yaml")
    assert "'ready', 'running'" in scaled["spec"]["triggers"][0]["metadata"]["query"]
    assert hpa["spec"]["scaleTargetRef"]["name"] == scaled["spec"]["scaleTargetRef"]["name"] == "howdah"


def test_what_compose_mounts_is_there() -> None:
    [compose] = documents("compose.yaml")
    for service in compose["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source
    assert (REPOSITORY / "Dockerfile").exists()
