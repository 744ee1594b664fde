"""Rules for the kernel's firewall: who of this machine may call SuperLink, and how much of the door is one's.

SuperLink's control calls on 127.0.0.1 ask for no key, so every user of the machine could submit and stop runs
there. A proxy counts connections only once their header is complete, the kernel from the first packet.
"""

from __future__ import annotations

import pwd
import shutil
import subprocess
from string import Template
from typing import TYPE_CHECKING, Final

from mmare.errors import InputError, RunError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from server.membership.kit import Kit

__all__ = ["apply_firewall", "firewall_rules"]

TABLE: Final = "mmare_coordinator"
APPLY_S: Final = 30.0
_RULES: Final = Template(
    """\
# Of mmare-server kit firewall; applied again, it replaces itself.
table inet $table
delete table inet $table
table inet $table {
    set one {
        type ipv4_addr
        flags dynamic
    }
    set one6 {
        type ipv6_addr
        flags dynamic
    }
    chain control {
        type filter hook output priority filter; policy accept;
        oifname "lo" tcp dport $superlink_port meta skuid != { $users } counter reject with tcp reset
    }
    chain door {
        type filter hook input priority filter; policy accept;
        iifname "lo" accept
        tcp dport $port ct state new add @one { ip saddr ct count over $most } counter reject with tcp reset
        tcp dport $port ct state new add @one6 { ip6 saddr ct count over $most } counter reject with tcp reset
    }
}
"""
)
MOST: Final = 64  # connections of one address, as nginx allows


def firewall_rules(kit: Kit, users: Iterable[str] = ()) -> str:
    """The rules of a coordinator, for ``nft -f``.

    Args:
        users: Beside root and the kit's owner, who may call SuperLink, such as that of another nginx.

    Raises:
        InputError: If there is no such user.
    """
    allowed = {0, kit.folder.stat().st_uid}
    for user in users:
        try:
            allowed.add(pwd.getpwnam(user).pw_uid)
        except KeyError:
            raise InputError(f"--user is {user[:40]!r}, which this machine does not have") from None
    numbers = ", ".join(map(str, sorted(allowed)))
    return _RULES.substitute(
        table=TABLE, superlink_port=kit.superlink_port, port=kit.port, users=numbers, most=MOST
    )


def apply_firewall(rules: str) -> None:
    """Hand rules to the kernel, all or none.

    Raises:
        InputError: If nft is missing.
        RunError: If it does not take them.
    """
    program = shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin")
    if program is None:
        raise InputError("nft: not installed (Debian: nftables); expected it, since the rules are for it")
    done = subprocess.run(  # noqa: S603 - our own command
        [program, "-f", "-"], input=rules, capture_output=True, text=True, timeout=APPLY_S, check=False
    )
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or ["no word"])[0]
        raise RunError(f"nft does not take the rules: {why}")
