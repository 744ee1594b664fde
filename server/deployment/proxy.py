"""The public endpoint: an nginx that forwards only the calls of sites to SuperLink.

SuperLink serves four kinds of calls on one port: those of sites (``/v1/fleet/``), of the coordinator's
command line (``/v1/control/``, without authentication), of its own apps (``/v1/runtime/``) and its
documentation. Only the first and ``/health`` are public. The requested path must match literally: one that
matches only after decoding or normalisation is refused.

SuperLink reads and parses a body before it looks at the key that signed the call; here a call whose key is
not an admitted site's is refused by its header, with SuperLink's own answer, its body thrown away unread.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import resource
import shutil
import subprocess
from base64 import b64encode
from pathlib import Path
from string import Template
from textwrap import indent
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from mmare.errors import InputError, RunError
from mmare.host.files import write_whole
from server.membership.records import SiteState, listed

if TYPE_CHECKING:
    from server.membership.kit import Kit

__all__ = [
    "CONFIG",
    "KEY_HEADER",
    "key_header",
    "nginx_command",
    "nginx_program",
    "proxy_config",
    "shared_proxy_config",
    "write_admitted",
    "write_proxy",
]

CONFIG: Final = "nginx.conf"
ADMITTED: Final = "admitted.map"  # beside it: the keys of admitted sites
KEY_HEADER: Final = "flwr-public-key"  # of a SuperNode's calls
MOST_CONNECTIONS: Final = 10_000  # two files each; what never finishes its header holds one for 10 s
TEMPORARY: Final = ("body", "proxy", "fastcgi", "uwsgi", "scgi")  # folders that nginx needs, used or not
CHECK_S: Final = 30.0
_IPV6: Final = Path("/proc/net/if_inet6")  # lists the machine's IPv6 addresses

# Common to the coordinator's own nginx and one of the machine: the content of an http block.
_ENDPOINT: Final = Template(
    """\
# One hospital, or several behind one address: a node polls for work at most five times a second.
limit_conn_zone $$binary_remote_addr zone=mmare_connections:1m;
limit_req_zone $$binary_remote_addr zone=mmare_requests:1m rate=100r/s;

# Keys of admitted sites: mmare-server start writes them, and reloads its own nginx when a site comes or goes.
map $$http_flwr_public_key $$mmare_stranger {
    default 1;
    include $admitted;
}

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

    # Flower sends objects of at most 5 MiB and gives up on a request after 30 s.
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
        if ($$mmare_stranger) { return 401 '{"detail":"Invalid SuperNode authentication"}'; }
        proxy_pass https://mmare_superlink;
    }

    # SuperLink accepts node keys over TLS only, so this connection is encrypted and verified, too.
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
# Written by mmare-server start at each start: changes made here are lost.
daemon off;
${user}worker_processes 1;
worker_rlimit_nofile $files;
pid $folder/nginx.pid;
error_log stderr error;  # warnings tell of every update that went through a temporary file

events {
    worker_connections $connections;
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

$endpoint}
"""
)

_ABOUT: Final = """\
# For a machine on which another nginx owns port 443: put this file into /etc/nginx/conf.d/ and run
# mmare-server start with --no-proxy. In mmare-coordinator.service this needs a drop-in with the longer
# ExecStart; CAP_NET_BIND_SERVICE is then unnecessary.
#
# Only the calls that hospitals need are forwarded: SuperLink's other calls have no authentication of their
# own and must not be reachable from outside. A path that is allowed only after decoding or normalisation is
# refused.
#
# Certificate and key are the kit's: hospitals trust only its authority. nginx reads them as root when it
# starts; run nginx -s reload after mmare-server kit renew, and after kit admit and kit revoke, which change
# the list of keys that it includes.

"""


def proxy_config(kit: Kit, user: str = "", *, ipv6: bool = False) -> str:
    """Complete configuration of the coordinator's own nginx.

    Args:
        user: User and group of the worker, separated by a space; only if root starts nginx.
        ipv6: Also listen on IPv6 addresses.

    Raises:
        InputError: If the kit's path has characters that nginx does not accept.
    """
    endpoint = indent(_endpoint(kit, f"listen [::]:{kit.port} ssl;" if ipv6 else ""), "    ")
    files = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 2 * MOST_CONNECTIONS)
    return _MAIN.substitute(
        folder=kit.nginx,
        user=f"user {user};\n" if user else "",
        endpoint=endpoint,
        files=files,
        connections=files // 2,
    )


def shared_proxy_config(kit: Kit) -> str:
    """The same endpoint as a ``conf.d`` file for an nginx that the machine runs anyway.

    Raises:
        InputError: If the kit's path has characters that nginx does not accept.
    """
    return _ABOUT + _endpoint(kit, f"server_name {kit.host};")


def _endpoint(kit: Kit, also: str) -> str:
    if set(str(kit.folder)) & set("\"'$;{}\\ \t\n#"):
        raise InputError(f"{kit.folder}: nginx accepts no path with blanks, quotes or any of $;{{}}\\#")
    return _ENDPOINT.substitute(
        also=also,
        certificate=kit.certificate,
        key=kit.key,
        authority=kit.ca_certificate,
        port=kit.port,
        superlink_port=kit.superlink_port,
        admitted=kit.nginx / f"{ADMITTED}*",  # which may be none
    )


def key_header(public_key: str) -> str:
    """A key in OpenSSH format as SuperNodes name theirs in `KEY_HEADER`; `ValueError` if it is none."""
    key = load_ssh_public_key(public_key.encode())
    return b64encode(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).decode()


def write_admitted(kit: Kit) -> None:
    """Write the list of keys that nginx lets in: patterns, since nginx's tables take no values that long.

    Raises:
        InputError: If a site's record cannot be read, or the list not be written.
    """
    path = kit.nginx / ADMITTED
    keys = []
    for record in listed(kit):
        try:
            keys += [key_header(record.public_key)] if record.state is SiteState.ADMITTED else []
        except ValueError:
            raise InputError(f"{kit.sites}: the record of {record.site} holds no public key") from None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, "".join(f'"~^{re.escape(key)}$" 0;\n' for key in keys).encode())
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({type(error).__name__})") from None


def nginx_program() -> str:
    """Path of nginx.

    Raises:
        InputError: If it is not installed.
    """
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    found = shutil.which("nginx", path=places)
    if found is None:
        raise InputError(
            "nginx: not installed; install it, or put another proxy in front of SuperLink as mmare-server "
            "kit nginx shows, and start with --no-proxy"
        )
    return found


def nginx_command(kit: Kit) -> tuple[str, ...]:
    """Command that runs nginx in the foreground."""
    return (nginx_program(), "-p", str(kit.nginx), "-e", "stderr", "-c", str(kit.nginx / CONFIG))


def write_proxy(kit: Kit) -> None:
    """Write the configuration and let nginx check it.

    Raises:
        InputError: If nginx is not installed or does not accept the kit's path.
        RunError: If nginx rejects the configuration.
    """
    path = kit.nginx / CONFIG
    content = proxy_config(kit, _worker(), ipv6=_has_ipv6())
    write_admitted(kit)
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
        emerg = next((line for line in checked.stderr.splitlines() if "[emerg]" in line), "no output")
        reason = re.sub(r"^.*\[emerg\] [0-9#]+: ", "", emerg)
        raise RunError(f"{path}: nginx rejects it: {reason}")


def _worker() -> str:
    """The current user if it is root: nginx's default worker user could not read the kit."""
    if os.geteuid() != 0:
        return ""
    return f"{pwd.getpwuid(os.geteuid()).pw_name} {grp.getgrgid(os.getegid()).gr_name}"


def _has_ipv6() -> bool:
    try:
        return bool(_IPV6.read_text(encoding="ascii").strip())
    except OSError:
        return False
