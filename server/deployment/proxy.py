"""The public door: an nginx in front of SuperLink that lets sites through to it, and nothing else.

SuperLink answers four kinds of calls on one port: those of sites (``/v1/fleet/``), of the coordinator's
command line (``/v1/control/``, without any authentication), of its own apps (``/v1/runtime/``) and of people
who read its documentation. Only the first, and ``/health``, are for the outside. What a caller wrote must be
such a path letter by letter: a path that only becomes one when it is decoded or tidied up is refused.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import shutil
import subprocess
from pathlib import Path
from string import Template
from textwrap import indent
from typing import TYPE_CHECKING, Final

from mmare.errors import InputError, RunError
from mmare.host.files import write_whole

if TYPE_CHECKING:
    from server.membership.kit import Kit

__all__ = ["CONFIG", "nginx_command", "nginx_program", "proxy_config", "shared_proxy_config", "write_proxy"]

CONFIG: Final = "nginx.conf"
TEMPORARY: Final = ("body", "proxy", "fastcgi", "uwsgi", "scgi")  # folders that nginx wants, used or not
CHECK_S: Final = 30.0
_IPV6: Final = Path("/proc/net/if_inet6")  # names the machine's addresses of that kind

# What an nginx of the coordinator's own and one of the machine's have in common: goes into an http block.
_DOOR: Final = Template(
    """\
# One hospital, or several behind one address: a node looks for work five times a second at most.
limit_conn_zone $$binary_remote_addr zone=mmare_connections:1m;
limit_req_zone $$binary_remote_addr zone=mmare_requests:1m rate=100r/s;

upstream mmare_superlink {
    server 127.0.0.1:$superlink_port max_fails=0;
    keepalive 32;
}

server {
    listen $port ssl;
    $also

    ssl_certificate $certificate;
    ssl_certificate_key $key;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_cache shared:mmare_sites:1m;

    server_tokens off;
    limit_conn mmare_connections 64;
    limit_req zone=mmare_requests burst=200 nodelay;

    # Flower cuts what it sends into objects of 5 MiB and gives up on a request after 30 s.
    client_max_body_size 16m;
    client_body_buffer_size 64k;
    client_header_timeout 10s;
    client_body_timeout 30s;
    send_timeout 30s;
    keepalive_timeout 75s;
    keepalive_requests 100000;
    reset_timedout_connection on;

    location / {
        return 404;
    }

    location = /health {
        if ($$request_uri != "/health") { return 404; }
        limit_except GET { deny all; }
        proxy_pass https://mmare_superlink;
    }

    location ~ ^/v1/fleet/[a-z][a-z-]*$$ {
        if ($$request_uri !~ "^/v1/fleet/[a-z][a-z-]*$$") { return 404; }
        limit_except POST { deny all; }
        proxy_pass https://mmare_superlink;
    }

    # SuperLink takes node keys over TLS only, so the way to it is encrypted, and checked, too.
    proxy_ssl_verify on;
    proxy_ssl_trusted_certificate $authority;
    proxy_ssl_name localhost;
    proxy_ssl_server_name on;
    proxy_ssl_protocols TLSv1.2 TLSv1.3;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_connect_timeout 5s;
    proxy_send_timeout 60s;
    proxy_read_timeout 60s;
    proxy_next_upstream off;
    proxy_buffers 16 64k;
    proxy_buffer_size 64k;
    proxy_busy_buffers_size 128k;
    proxy_max_temp_file_size 32m;
}
"""
)

_MAIN: Final = Template(
    """\
# Written by mmare-server start at each start: what is changed here is lost.
daemon off;
${user}worker_processes 1;
pid $folder/nginx.pid;
error_log stderr warn;

events {
    worker_connections 1024;
}

http {
    client_body_temp_path $folder/body;
    proxy_temp_path $folder/proxy;
    fastcgi_temp_path $folder/fastcgi;
    uwsgi_temp_path $folder/uwsgi;
    scgi_temp_path $folder/scgi;

    default_type text/plain;
    log_format refused '$$time_iso8601 $$remote_addr "$$request" $$status';
    map $$status $$refused { ~^[23] 0; default 1; }
    access_log /dev/stdout refused if=$$refused;

$door}
"""
)

_ABOUT: Final = """\
# For a coordinator whose port 443 belongs to an nginx of its own: this file goes into /etc/nginx/conf.d/, and
# mmare-server start gets --no-proxy. In mmare-coordinator.service that takes a drop-in with the longer
# ExecStart, and CAP_NET_BIND_SERVICE is not needed any more.
#
# Only what hospitals need is let through: SuperLink's other calls have no authentication of their own and
# must not be reachable from outside. A path that only becomes an allowed one when it is decoded or tidied up
# is refused.
#
# Certificate and key are the kit's: hospitals trust its authority and no other. nginx reads them as root when
# it starts; after mmare-server kit renew: nginx -s reload.

"""


def proxy_config(kit: Kit, user: str = "", *, ipv6: bool = False) -> str:
    """The whole configuration of the coordinator's own nginx.

    Args:
        kit: Of the coordinator; its paths are used as they are.
        user: User and group of the worker, apart by a space; for a root that starts it only.
        ipv6: Listen on addresses of that kind, too.

    Raises:
        InputError: If a path has signs that nginx cannot take.
    """
    door = indent(_door(kit, f"listen [::]:{kit.port} ssl;" if ipv6 else ""), "    ")
    return _MAIN.substitute(folder=kit.nginx, user=f"user {user};\n" if user else "", door=door)


def shared_proxy_config(kit: Kit) -> str:
    """The same public door for an nginx that the machine runs anyway, as a file of ``conf.d``.

    Raises:
        InputError: If a path has signs that nginx cannot take.
    """
    return _ABOUT + _door(kit, f"server_name {kit.host};")


def _door(kit: Kit, also: str) -> str:
    if set(str(kit.folder)) & set("\"'$;{}\\ \t\n#"):
        raise InputError(f"{kit.folder}: nginx takes no path with blanks, quotes or any of $;{{}}\\#")
    return _DOOR.substitute(
        also=also,
        certificate=kit.certificate,
        key=kit.key,
        authority=kit.ca_certificate,
        port=kit.port,
        superlink_port=kit.superlink_port,
    )


def nginx_program() -> str:
    """Where nginx is.

    Raises:
        InputError: If it is not installed.
    """
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    found = shutil.which("nginx", path=places)
    if found is None:
        raise InputError(
            "nginx: not installed; install it, or let another proxy stand in front of SuperLink as "
            "mmare-server kit nginx shows and start with --no-proxy"
        )
    return found


def nginx_command(kit: Kit) -> tuple[str, ...]:
    """That runs the public door in the foreground."""
    return (nginx_program(), "-p", str(kit.nginx), "-e", "stderr", "-c", str(kit.nginx / CONFIG))


def write_proxy(kit: Kit) -> None:
    """Write the configuration and let nginx check it.

    Raises:
        InputError: If nginx is not installed or a path has signs that it cannot take.
        RunError: If nginx does not accept the configuration.
    """
    path = kit.nginx / CONFIG
    content = proxy_config(kit, _worker(), ipv6=_has_ipv6())
    try:
        for name in TEMPORARY:
            (kit.nginx / name).mkdir(parents=True, exist_ok=True)
        write_whole(path, content.encode())
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({type(error).__name__})") from None
    checked = subprocess.run(  # noqa: S603 - our own command
        [*nginx_command(kit), "-t", "-q"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=CHECK_S,
        check=False,
    )
    if checked.returncode != 0:
        said = next((line for line in checked.stderr.splitlines() if "[emerg]" in line), "no word")
        words = re.sub(r"^.*\[emerg\] [0-9#]+: ", "", said)
        raise RunError(f"{path}: nginx does not take it: {words}")


def _worker() -> str:
    """Of a root that starts it, nginx would make its worker another user's, who cannot enter the kit."""
    if os.geteuid() != 0:
        return ""
    return f"{pwd.getpwuid(os.geteuid()).pw_name} {grp.getgrgid(os.getegid()).gr_name}"


def _has_ipv6() -> bool:
    try:
        return bool(_IPV6.read_text(encoding="ascii").strip())
    except OSError:
        return False
