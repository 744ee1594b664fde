"""Rules, dashboards and the table of metrics say the same; a real Prometheus sees a real run."""

import json
import re
import subprocess

import numpy as np
import pytest
import yaml

from client.telemetry.catalogue import SITE_METRICS
from mmare.host.metric_families import Kind, metrics_table
from server.monitoring.kit_metrics import KIT_METRICS
from server.monitoring.run_metrics import METRICS
from tests.deploy.watching import (
    DASHBOARDS,
    DEPLOY,
    RULES,
    SITE_RULES,
    Prometheus,
    charts,
    end,
    expressions,
    panels,
    start_exporter,
    tool,
)
from tests.federations import run_nodes, tiny_federation, tiny_study, while_training

GROUPS = [group for rules in (RULES, SITE_RULES) for group in yaml.safe_load(rules.read_text())["groups"]]
ALERTS = [rule for group in GROUPS for rule in group["rules"] if "alert" in rule]
RECORDS = [rule for group in GROUPS for rule in group["rules"] if "record" in rule]
EXPORTED = {metric.name: metric for metric in (*METRICS, *SITE_METRICS)}
NAME = re.compile(r"\bmmare[_:][a-z0-9_:]+")
MOST_PANELS = 5  # in a row
NEVER = (  # what there is nothing of after the run of the system test, whose site cedar is well
    *("mmare_run_failed{", "mmare_sites_not_admitted"),
    *("mmare_block_starved_rounds", "mmare_modality_absent_rounds"),
    "mmare_site_left_out_timestamp_seconds",
    "mmare:site_silent:seconds and",
    *("mmare_site_worker_", "mmare:site_worker_"),  # of tests/system/test_site_metrics.py
    *(metric.name for metric in KIT_METRICS),  # as above
)


def check(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def filled(expression, runs):
    """An expression of a dashboard for site cedar of the only run."""
    journal = (runs / "one" / "rounds.jsonl").read_text()
    run = json.loads(journal.split("\n")[0])["run"].rsplit("-", 1)[1]
    for name, value in (("$study", "tiny"), ("$run", run), ("$site", "cedar")):
        expression = expression.replace(name, value)
    return expression


def unknown(expression):
    names = {re.sub(r"_bucket$", "", name) for name in NAME.findall(expression)}
    return names - set(EXPORTED) - {rule["record"] for rule in RECORDS}


@pytest.mark.parametrize("rule", [*ALERTS, *RECORDS], ids=lambda rule: rule.get("alert", rule.get("record")))
def test_rules_name_metrics_that_are_exported(rule):
    assert not unknown(rule["expr"])


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_name_metrics_that_are_exported(dashboard):
    assert not {name for expression in expressions(dashboard) for name in unknown(expression)}


def test_labels_that_rules_and_dashboards_select_by_exist():
    texts = [rule["expr"] for rule in (*ALERTS, *RECORDS)]
    texts += [expression for dashboard in DASHBOARDS for expression in expressions(dashboard)]
    for text in texts:
        for name, selector in re.findall(r"\b(mmare_[a-z0-9_]+)\{([^}]*)\}", text):
            labels = set(re.findall(r"(\w+)\s*[!=]~?", selector))
            assert labels <= set(EXPORTED[name].labels), text


def test_every_metric_is_of_use_to_a_rule_or_a_dashboard():
    texts = [rule["expr"] for rule in (*ALERTS, *RECORDS)]
    texts += [expression for dashboard in DASHBOARDS for expression in expressions(dashboard)]
    used = {re.sub(r"_bucket$", "", name) for text in texts for name in NAME.findall(text)}
    assert set(EXPORTED) <= used


@pytest.mark.parametrize(
    ("mark", "metrics"),
    [
        pytest.param("metrics", METRICS, id="coordinator"),
        pytest.param("site metrics", SITE_METRICS, id="site"),
    ],
)
def test_the_tables_in_the_readme_are_those_of_the_exporters(mark, metrics):
    text = (DEPLOY / "README.md").read_text()
    table = text.split(f"<!-- {mark} -->\n")[1].split(f"\n<!-- /{mark} -->")[0]
    assert table == metrics_table(metrics)


def test_the_names_of_both_exporters_do_not_clash():
    assert len(EXPORTED) == len(METRICS) + len(SITE_METRICS)
    assert all(metric.name.startswith("mmare_site_worker_") for metric in SITE_METRICS)
    assert not any(metric.name.startswith("mmare_site_worker_") for metric in METRICS)


def test_rules_of_one_end_name_no_metric_of_the_other():
    for rules, others in ((RULES, SITE_METRICS), (SITE_RULES, METRICS)):
        named = set(NAME.findall(rules.read_text()))
        assert not named & {metric.name for metric in others}


def test_metrics_keep_the_conventions():
    for name, metric in EXPORTED.items():
        assert name.startswith("mmare_")
        assert name.endswith("_total") == (metric.kind is Kind.COUNTER)
        assert metric.text.endswith(".")
        assert "patient" not in metric.labels
        assert "round" not in metric.labels
        assert not ("run" in metric.labels and metric.kind is not Kind.GAUGE)


def test_every_alert_has_a_severity_a_sentence_and_a_runbook():
    headings = re.findall(r"^### (\w+)$", (DEPLOY / "README.md").read_text(), flags=re.MULTILINE)
    assert sorted(headings) == sorted({rule["alert"] for rule in ALERTS})
    for rule in ALERTS:
        assert rule["labels"]["severity"] in {"critical", "warning", "info", "none"}
        summary = rule["annotations"]["summary"]
        assert summary.endswith(".")
        assert "\n" not in summary
        assert rule["annotations"]["runbook_url"] == f"deploy/README.md#{rule['alert'].lower()}"


def test_every_alert_is_tested_firing_and_not_firing():
    for rules in (RULES, SITE_RULES):
        tests = yaml.safe_load(rules.with_suffix(".test.yml").read_text())["tests"]
        cases = [case for test in tests for case in test.get("alert_rule_test", [])]
        fires = {
            (case["alertname"], alert["exp_labels"]["severity"])
            for case in cases
            for alert in case.get("exp_alerts", [])
        }
        quiet = {case["alertname"] for case in cases if not case.get("exp_alerts")}
        found = [rule for group in yaml.safe_load(rules.read_text())["groups"] for rule in group["rules"]]
        alerts = [rule for rule in found if "alert" in rule]
        assert fires == {(rule["alert"], rule["labels"]["severity"]) for rule in alerts}
        assert quiet == {rule["alert"] for rule in alerts} - {"Watchdog"}  # it never is


def test_dashboards_have_fixed_uids_and_rows_that_can_be_read():
    assert [path.stem for path in DASHBOARDS] == ["mmare-fleet", "mmare-run", "mmare-site"]
    for path in DASHBOARDS:
        content = json.loads(path.read_text())
        assert content["uid"] == path.stem
        ids = [panel["id"] for panel in content["panels"]]
        assert len(ids) == len(set(ids))
        rows = {}
        for panel in panels(path):
            assert panel["title"]
            assert panel["datasource"]["uid"] == "${datasource}"
            rows.setdefault(panel["gridPos"]["y"], []).append(panel["gridPos"]["w"])
        assert all(len(widths) <= MOST_PANELS and sum(widths) <= 24 for widths in rows.values())
        for link in content["links"]:
            assert link["url"].removeprefix("/d/") in {other.stem for other in DASHBOARDS}


@pytest.mark.system
def test_promtool_agrees():
    promtool = tool("promtool")
    for rules in (RULES, SITE_RULES):
        check(promtool, "check", "rules", str(rules))
        check(promtool, "test", "rules", str(rules.with_suffix(".test.yml")))
    for name in ("prometheus.yml", "prometheus-site.yml"):
        check(promtool, "check", "config", str(DEPLOY / "prometheus" / name))


@pytest.mark.system
@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        (("alertname=QuorumLost", "severity=critical"), "on-call"),
        (("alertname=SiteSilent", "severity=warning"), "coordinator"),
        (("alertname=CertExpiry", "severity=critical"), "on-call"),
        (("alertname=WorstSiteGap", "severity=info"), "digest"),
        (("alertname=Watchdog", "severity=none"), "dead-mans-switch"),
    ],
)
def test_amtool_agrees(labels, receiver):
    amtool, config = tool("amtool"), str(DEPLOY / "prometheus" / "alertmanager.yml")
    check(amtool, "check-config", config)
    check(
        amtool, "config", "routes", "test", "--config.file", config, f"--verify.receivers={receiver}", *labels
    )


# A real Prometheus


def lost(*_):
    raise ConnectionError("the line is dead")


def not_a_number(site, header, payload):
    answer, tensors = site(header, payload)
    return answer, np.full(len(tensors) // 4, np.nan, np.float32).tobytes()


@pytest.mark.system
def test_prometheus_sees_a_run_with_a_lost_site_and_an_update_of_nan(tmp_path):
    tool("prometheus")
    runs = tmp_path / "runs"
    runs.mkdir()
    exporter, port = start_exporter(runs)
    prometheus = Prometheus(tmp_path / "prometheus", {"mmare": port}, (RULES,))
    try:
        prometheus.wait_for("mmare_exporter_last_read_timestamp_seconds", 30)
        federation = tiny_federation(tmp_path / "federation", tiny_study(federation={"min_sites": 1}))
        looked = []

        def look(event):
            """While the run is under way: after three rounds Prometheus must have noticed."""
            if event["event"] == "checkpoint" and event["round"] == 3:
                prometheus.wait_for_sites("SiteSilent", {"ash", "birch"})
                prometheus.wait_for_sites("NonFinite", {"birch"})
                looked.append(event)

        faults = {0: while_training(lost), 1: while_training(not_a_number)}
        run_nodes(federation, runs / "one", faults=faults, listeners=(look,))
        assert len(looked) == 1
        prometheus.wait_for("mmare_runs_finished_total == 1")
        assert prometheus.query("mmare_rounds_finished_total")[0][1] == 4
        left_out = {
            (labels["site"], labels["reason"]): count
            for labels, count in prometheus.query("mmare_site_left_out_total > 0")
        }
        assert {key: count >= 4 for key, count in left_out.items()} == {
            ("ash", "node_failed"): True,
            ("birch", "non_finite"): True,
        }
        assert prometheus.query("mmare_sites_expected")[0][1] == 3
        assert prometheus.query('mmare_score{split="test", metric="balanced_accuracy"}')
        prometheus.wait_for("absent(ALERTS{alertname='SiteSilent', alertstate='firing'})")
        assert prometheus.query('ALERTS{alertname="Watchdog", alertstate="firing"}')
        assert not prometheus.query('ALERTS{alertname="ExporterSilent"}')
        everything = {each for dashboard in DASHBOARDS for each in charts(dashboard)}
        never = {each for each in everything if any(name in each for name in NEVER)}
        for expression in sorted(everything - never):
            prometheus.wait_for(filled(expression, runs))  # a rate needs two scrapes
        assert [each for each in never if prometheus.query(filled(each, runs))] == []
        end(exporter)
        assert exporter.returncode == 0
    finally:
        end(prometheus.process)
        end(exporter)
        exporter.stderr.close()
