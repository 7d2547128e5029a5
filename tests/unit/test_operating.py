"""What calls somebody at night is explained, and so is every figure that is exported."""

from __future__ import annotations

import re
from pathlib import Path

from support.exposition import full_exposition

from howdah.doctor.examine import EXAMINATIONS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
RULES = (ROOT / "deploy" / "prometheus" / "howdah.rules.yml").read_text(encoding="utf-8")
TESTS = (ROOT / "deploy" / "prometheus" / "howdah.rules.test.yml").read_text(encoding="utf-8")
ALERTS = re.findall(r"alert: (\w+)", RULES)


def exported() -> set[str]:
    names = re.findall(r"^# TYPE (howdah_\w+) \w+$", full_exposition(), re.MULTILINE)
    return {name for name in names if not name.endswith("_created")}


def test_every_exported_metric_is_on_the_page_and_every_metric_there_is_exported() -> None:
    named = set(re.findall(r"`(howdah_\w+)`", PAGE)) - {"howdah_worker", "howdah_reader"}
    assert named == exported()


def test_every_alert_has_a_severity_a_summary_and_a_runbook_that_exists() -> None:
    anchors = {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)}
    blocks = re.split(r"- alert: ", RULES)[1:]
    assert len(blocks) == len(ALERTS) >= 10
    for block in blocks:
        name = block.split()[0]
        assert re.search(r"severity: (critical|warning)\b", block), name
        assert re.search(r"summary: .{20,}", block), name
        runbook = re.search(r"runbook: docs/operating\.md#(\S+)", block)
        assert runbook is not None, name
        assert runbook[1] in anchors, name
        assert runbook[1] == name.lower()


def test_every_alert_is_tested_and_uses_only_metrics_that_are_exported() -> None:
    for name in ALERTS:
        assert f"alertname: {name}\n" in TESTS, name
    used = {re.sub(r"_bucket$", "", name) for name in re.findall(r"(?<![:\w])howdah_\w+", re.sub("#.*", "", RULES))}
    assert used <= exported()


def test_every_line_of_the_doctor_is_on_the_page() -> None:
    for topic in (*EXAMINATIONS, "poison", "listen", "port", "notifications", "autovacuum", "bloat"):
        assert re.search(rf"^\| .*`{topic}`.*\|", PAGE, re.MULTILINE), topic
