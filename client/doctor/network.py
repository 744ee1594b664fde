"""The way to the coordinator, row by row, as far as it goes."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

from client.doctor.certificates import read_authority, read_certificate
from client.doctor.findings import Obstacle, fine, problem, warning
from client.doctor.proxies import proxy_for, unread_ranges
from client.doctor.way_out import NOT_REACHED, TOTAL_S, Answer, Steps, Way, addresses_of, reached

if TYPE_CHECKING:
    from pathlib import Path

    from client.doctor.findings import Finding
    from mmare.wire.joining import Coordinator

__all__ = ["clock_finding", "look_at_network"]

# SuperNodes sign the time; the coordinator's SuperLink takes what is at most so far from its own
# (SYSTEM_TIME_TOLERANCE and TIMESTAMP_TOLERANCE of flwr.common.constant).
MOST_AHEAD_S: Final = 5.0
MOST_BEHIND_S: Final = 305.0
NOTED_AHEAD_S: Final = 2.0
NOTED_BEHIND_S: Final = 30.0

RENEW_DAYS: Final = 30
RENEW_AUTHORITY_DAYS: Final = 90
LOOPBACK: Final = "127.0.0.1"


def look_at_network(coordinator: Coordinator, ca: Path, runtime_port: int) -> list[Finding]:
    """Try the way to the coordinator; stops at the first step that fails.

    Nothing but an empty question is sent, and only to the coordinator itself.

    Args:
        coordinator: To reach.
        ca: PEM file of the federation's authority.
        runtime_port: On loopback, which no proxy must be asked for.
    """
    findings: list[Finding] = []
    step = "proxy"
    try:
        proxy = proxy_for("https", coordinator.host, coordinator.port)
        findings.append(fine("proxy", f"{proxy}" if proxy else f"none on the way to {coordinator.host}"))
        findings += _other_proxies(runtime_port)
        way = Way(coordinator, ca, proxy, end=time.monotonic() + TOTAL_S)
        step = "name"
        addresses = addresses_of(way.first[0], way.end)
        if addresses != [way.first[0]]:
            findings.append(fine("name", f"{way.first[0]} is {', '.join(addresses)}"))
        step = "connection"
        row, address = _connection(way, addresses)
        findings.append(row)
        way = replace(way, address=address)
        steps = Steps()
        try:
            health = way.ask("GET", "/health", steps)
        finally:
            step = steps.at
            findings += _passed(way, steps)
        findings.append(_health(health))
        if "date" in health.headers:
            findings.append(clock_finding(health))
        step = "fleet"
        findings.append(_fleet(way.ask("POST", "/v1/fleet/pull-messages", Steps())))
    except Obstacle as obstacle:
        findings.append(problem(step, obstacle.found, obstacle.advice))
    return findings


def _other_proxies(runtime_port: int) -> list[Finding]:
    """What else the environment says of proxies."""
    findings = []
    try:
        loopback = proxy_for("http", LOOPBACK, runtime_port)
    except Obstacle as obstacle:
        findings.append(problem("proxy", obstacle.found, obstacle.advice))
        loopback = None
    if loopback is not None:
        findings.append(
            fine(
                "proxy",
                f"{loopback.variable} is set and NO_PROXY lacks {LOOPBACK}: mmare-site start adds {LOOPBACK} "
                "and localhost for what it starts; whoever starts Flower's programs in another way must set "
                f"NO_PROXY={LOOPBACK},localhost",
            )
        )
    ranges = unread_ranges()
    if ranges:
        findings.append(
            warning(
                "proxy",
                f"NO_PROXY holds ranges of addresses, {', '.join(ranges)}, which Flower does not read",
                "name the coordinator itself in NO_PROXY if it is to be reached without the proxy",
            )
        )
    return findings


def _connection(way: Way, addresses: list[str]) -> tuple[Finding, str]:
    """The TCP connection, and the address that answers.

    Raises:
        Obstacle: If none does.
    """
    found = reached(way, addresses)
    good = [address for address, obstacle in found.items() if obstacle is None]
    bad = [obstacle for obstacle in found.values() if obstacle is not None]
    port = way.first[1]
    if not good:
        raise bad[0]
    if bad:
        silent = ", ".join(address for address, obstacle in found.items() if obstacle is not None)
        row = warning(
            "connection",
            f"TCP port {port} answers at {', '.join(good)}, but not at {silent}",
            "Flower tries all in turn and waits up to 30 s for each: have the firewall let all of them "
            "through, or take those that do not answer out of the name's addresses",
        )
        return row, good[0]
    return fine("connection", f"TCP port {port} answers at {', '.join(good)}"), good[0]


def _passed(way: Way, steps: Steps) -> list[Finding]:
    """Rows of the steps that a request has left behind."""
    rows = []
    if way.proxy is not None and steps.at in ("TLS", "coordinator"):
        rows.append(fine("way out", f"the proxy connects to {way.coordinator.address}"))
    return [*rows, *_tls(way, steps)] if steps.at == "coordinator" else rows


def _tls(way: Way, steps: Steps) -> list[Finding]:
    certificate = read_certificate(steps.certificate)
    now = datetime.now(UTC)
    days = certificate.days_left(now)
    host = way.coordinator.host
    said = f"{steps.tls}; the certificate is the federation's, for {host}, valid for {days} more days"
    authority = read_authority(way.ca)
    findings = [fine("TLS", said)]
    if days < RENEW_DAYS:
        findings = [warning("TLS", said, "remind the coordinator to run mmare-server kit renew")]
    if authority.days_left(now) < RENEW_AUTHORITY_DAYS:
        findings.append(
            warning(
                "TLS",
                f"the federation's authority expires in {authority.days_left(now)} days",
                "ask the coordinator for a bundle with a new one before then",
            )
        )
    return findings


def _health(answer: Answer) -> Finding:
    if answer.status == http.client.OK:
        return fine("coordinator", "answers on /health")
    if answer.status in NOT_REACHED:
        return _no_superlink("coordinator", answer)
    return problem(
        "coordinator",
        f"/health answers {answer.status}, expected 200",
        "tell the coordinator that its proxy does not let /health through",
    )


def _fleet(answer: Answer) -> Finding:
    """Whether SuperNodes are let through: without a key Flower answers 401."""
    if answer.status == http.client.UNAUTHORIZED and _of_flower(answer):
        return fine("fleet", "/v1/fleet/ is open to nodes with a key, and to nobody else")
    if answer.status == http.client.OK:
        return warning(
            "fleet",
            "/v1/fleet/ answers without asking for a key",
            "tell the coordinator that node authentication is off: any machine could pass for a hospital",
        )
    if answer.status in NOT_REACHED:
        return _no_superlink("fleet", answer)
    return problem(
        "fleet",
        f"/v1/fleet/ answers {answer.status}, expected 401 of Flower",
        "tell the coordinator that its proxy does not let /v1/fleet/ through, or another program answers",
    )


def _no_superlink(check: str, answer: Answer) -> Finding:
    return problem(
        check,
        f"the coordinator's proxy answers {answer.status}: Flower's SuperLink behind it does not run",
        "tell the coordinator; this hospital has nothing to do",
    )


def _of_flower(answer: Answer) -> bool:
    """Whether an answer is the program's and not its proxy's."""
    try:
        return "detail" in json.loads(answer.body)
    except (ValueError, TypeError):
        return False


def clock_finding(answer: Answer) -> Finding:
    """This machine's clock against the coordinator's, from an answer's date.

    The date has whole seconds and was written between question and answer, so the difference is known to
    within a second and the time between them.

    Args:
        answer: With a header ``date``.
    """
    try:
        there = parsedate_to_datetime(answer.headers["date"]).timestamp()
    except ValueError:
        return warning("clock", "the coordinator says no date that can be read", "compare the clocks by hand")
    least, most = answer.sent - there - 1.0, answer.received - there
    off = (least + most) / 2
    said = f"{abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} the coordinator's"
    advice = (
        "set this machine's clock, best with a time service (timedatectl set-ntp true): Flower refuses a "
        f"node whose clock is more than {MOST_AHEAD_S:.0f} s ahead or {MOST_BEHIND_S:.0f} s behind"
    )
    if least > MOST_AHEAD_S or most < -MOST_BEHIND_S:
        return problem("clock", said, advice)
    if off > NOTED_AHEAD_S or off < -NOTED_BEHIND_S:
        return warning("clock", said, advice)
    return fine("clock", "agrees with the coordinator's" if abs(off) <= NOTED_AHEAD_S else said)
