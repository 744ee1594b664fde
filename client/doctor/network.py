"""Checks of the connection to the coordinator, up to the first step that fails."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

from client.doctor.certificates import read_authority, read_certificate
from client.doctor.findings import Obstacle, Verdict, fine, problem, warning
from client.doctor.proxies import proxy_for, unread_ranges
from client.doctor.route import NOT_REACHED, TOTAL_S, Answer, Route, Trace, resolve, try_addresses
from client.doctor.speed import measure_speed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from client.doctor.findings import Finding
    from mmare.wire.joining import Coordinator

__all__ = ["check_network", "clock_finding"]

# SuperNodes sign the time; SuperLink accepts these differences from its own
# (SYSTEM_TIME_TOLERANCE and TIMESTAMP_TOLERANCE of flwr.common.constant).
MOST_AHEAD_S: Final = 5.0
MOST_BEHIND_S: Final = 305.0
NOTED_AHEAD_S: Final = 2.0
NOTED_BEHIND_S: Final = 30.0

RENEW_DAYS: Final = 30
RENEW_AUTHORITY_DAYS: Final = 90
LOOPBACK: Final = "127.0.0.1"
FLEET: Final = "/v1/fleet/pull-messages"


def check_network(
    coordinator: Coordinator,
    ca: Path,
    runtime_port: int,
    tell_speed: Callable[[float], None] = lambda _: None,
    key: str = "",
) -> list[Finding]:
    """Check the connection to the coordinator; what is sent has no content, and goes only to it.

    Args:
        coordinator: The one to reach.
        ca: PEM file of the federation's authority.
        runtime_port: On loopback, which must not go through a proxy.
        tell_speed: Gets the bytes per second that the line sends, if it was measured.
        key: Of the site, as its SuperNode names it.
    """
    findings: list[Finding] = []
    step = "proxy"
    try:
        proxy = proxy_for("https", coordinator.host, coordinator.port)
        findings.append(fine("proxy", f"{proxy}" if proxy else f"none for {coordinator.host}"))
        findings += _other_proxies(runtime_port)
        route = Route(coordinator, ca, proxy, end=time.monotonic() + TOTAL_S)
        step = "name"
        addresses = resolve(route.first[0], route.end)
        if addresses != [route.first[0]]:
            findings.append(fine("name", f"{route.first[0]} is {', '.join(addresses)}"))
        step = "connection"
        row, address = _connection(route, addresses)
        findings.append(row)
        route = replace(route, address=address)
        trace = Trace()
        try:
            health = route.ask("GET", "/health", trace)
        finally:
            step = trace.at
            findings += _passed(route, trace)
        findings.append(_health(health))
        if "date" in health.headers:
            findings.append(clock_finding(health))
        step = "fleet"
        answer = route.ask("POST", FLEET, Trace())
        findings.append(_fleet(answer))
        step = "speed"
        if findings[-1].verdict is Verdict.OK:
            tell_speed(measure_speed(replace(route, key=key), FLEET, answer))
    except Obstacle as obstacle:
        findings.append(problem(step, obstacle.found, obstacle.advice))
    return findings


def _other_proxies(runtime_port: int) -> list[Finding]:
    """Other proxy settings of the environment."""
    findings = []
    try:
        loopback = proxy_for("http", LOOPBACK, runtime_port)
    except Obstacle as obstacle:
        findings.append(problem("proxy", obstacle.found, obstacle.advice))
        loopback = None
    if loopback is not None:
        found = (
            f"{loopback.variable} is set and NO_PROXY lacks {LOOPBACK}: mmare-site start adds {LOOPBACK} "
            "and localhost for its programs; to start Flower's programs otherwise, set "
            f"NO_PROXY={LOOPBACK},localhost"
        )
        findings.append(fine("proxy", found))
    ranges = unread_ranges()
    if ranges:
        found = f"NO_PROXY holds ranges of addresses, {', '.join(ranges)}, which Flower ignores"
        advice = "name the coordinator itself in NO_PROXY to reach it without the proxy"
        findings.append(warning("proxy", found, advice))
    return findings


def _connection(route: Route, addresses: list[str]) -> tuple[Finding, str]:
    """Check TCP and return the first address that answers; raises `Obstacle` if none does."""
    found = try_addresses(route, addresses)
    good = [address for address, obstacle in found.items() if obstacle is None]
    bad = [obstacle for obstacle in found.values() if obstacle is not None]
    port = route.first[1]
    if not good:
        raise bad[0]
    if bad:
        silent = ", ".join(address for address, obstacle in found.items() if obstacle is not None)
        row = warning(
            "connection",
            f"TCP port {port} answers at {', '.join(good)}, but not at {silent}",
            "Flower tries all in turn and waits up to 30 s for each: have the firewall allow all of them, or "
            "remove those that do not answer from the DNS entry",
        )
        return row, good[0]
    return fine("connection", f"TCP port {port} answers at {', '.join(good)}"), good[0]


def _passed(route: Route, trace: Trace) -> list[Finding]:
    """Rows of the steps that a request has passed."""
    rows = []
    if route.proxy is not None and trace.at in ("TLS", "coordinator"):
        rows.append(fine("tunnel", f"the proxy connects to {route.coordinator.address}"))
    return [*rows, *_tls(route, trace)] if trace.at == "coordinator" else rows


def _tls(route: Route, trace: Trace) -> list[Finding]:
    certificate = read_certificate(trace.certificate)
    now = datetime.now(UTC)
    days = certificate.days_left(now)
    host = route.coordinator.host
    found = f"{trace.tls}; the certificate is the federation's, for {host}, valid for {days} more days"
    authority = read_authority(route.ca)
    findings = [fine("TLS", found)]
    if days < RENEW_DAYS:
        findings = [warning("TLS", found, "remind the coordinator to run mmare-server kit renew")]
    if authority.days_left(now) < RENEW_AUTHORITY_DAYS:
        found = f"the federation's authority expires in {authority.days_left(now)} days"
        findings.append(warning("TLS", found, "ask the coordinator for a bundle with a new one before then"))
    return findings


def _health(answer: Answer) -> Finding:
    if answer.status == http.client.OK:
        return fine("coordinator", "answers on /health")
    if answer.status in NOT_REACHED:
        return _no_superlink("coordinator", answer)
    return problem(
        "coordinator",
        f"/health answers {answer.status}, expected 200",
        "inform the coordinator that its proxy blocks /health",
    )


def _fleet(answer: Answer) -> Finding:
    """Check that SuperNodes get through: without a key, Flower answers 401."""
    if answer.status == http.client.UNAUTHORIZED and _of_flower(answer):
        return fine("fleet", "/v1/fleet/ is open only to nodes with a key")
    if answer.status == http.client.OK:
        return warning(
            "fleet",
            "/v1/fleet/ answers without asking for a key",
            "inform the coordinator that node authentication is off: any machine could pose as a hospital",
        )
    if answer.status in NOT_REACHED:
        return _no_superlink("fleet", answer)
    return problem(
        "fleet",
        f"/v1/fleet/ answers {answer.status}, expected 401 of Flower",
        "inform the coordinator that its proxy blocks /v1/fleet/, or that another program answers",
    )


def _no_superlink(check: str, answer: Answer) -> Finding:
    return problem(
        check,
        f"the coordinator's proxy answers {answer.status}: Flower's SuperLink behind it does not run",
        "inform the coordinator; there is nothing to do at this hospital",
    )


def _of_flower(answer: Answer) -> bool:
    """Whether an answer is Flower's, not its proxy's."""
    try:
        return "detail" in json.loads(answer.body)
    except (ValueError, TypeError):
        return False


def clock_finding(answer: Answer) -> Finding:
    """Compare this machine's clock with the ``date`` header of an answer.

    It has whole seconds and was written between request and answer, so the difference is known to within a
    second plus that time.
    """
    try:
        there = parsedate_to_datetime(answer.headers["date"]).timestamp()
    except ValueError:
        return warning("clock", "the coordinator sends no valid date", "compare the clocks by hand")
    least, most = answer.sent - there - 1.0, answer.received - there
    off = (least + most) / 2
    found = f"{abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} the coordinator's"
    advice = (
        "set this machine's clock, best with a time service (timedatectl set-ntp true): Flower rejects a "
        f"node whose clock is more than {MOST_AHEAD_S:.0f} s ahead or {MOST_BEHIND_S:.0f} s behind"
    )
    if least > MOST_AHEAD_S or most < -MOST_BEHIND_S:
        return problem("clock", found, advice)
    if off > NOTED_AHEAD_S or off < -NOTED_BEHIND_S:
        return warning("clock", found, advice)
    return fine("clock", "agrees with the coordinator's" if abs(off) <= NOTED_AHEAD_S else found)
