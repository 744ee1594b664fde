"""The example for an nginx of one's own: nginx takes it, and it lets through what our own door does."""

import http.client
import shutil
import socket
import ssl
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest

from mmare.host.supervised import Household, Program
from server.membership.certificates import Pair
from server.membership.kit import init_kit
from tests.strange_servers import free_port, https_server

EXAMPLE = Path(__file__).parents[2] / "deploy" / "nginx" / "mmare.conf"
MAIN = """
daemon off;
pid {folder}/nginx.pid;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/mmare.conf;
}}
"""
REFUSED = (
    "/",
    "/docs",
    "/openapi.json",
    "/v1/control/start-run",
    "/v1/runtime/acquire-task",
    "/v1/fleet/",
    "/health/",
)
DISGUISED = (
    "/v1/fleet/../control/x",
    "/v1/fleet/%2e%2e/control/x",
    "//health",
    "/v1//fleet/pull-messages",
    "/v1/fleet/x?y",
)


def nginx():
    found = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if found is None:
        pytest.skip("nginx is not installed (Debian: nginx)")
    return found


@pytest.fixture
def kit(tmp_path):
    return init_kit(tmp_path / "kit", "join.example.org")


def written(folder, kit, port, superlink):
    """The example with this kit's files and these ports, and a file around it."""
    text = EXAMPLE.read_text()
    for old, new in (
        ("/var/lib/mmare-coordinator/kit", str(kit.folder)),
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("127.0.0.1:9095", f"127.0.0.1:{superlink}"),
    ):
        assert old in text
        text = text.replace(old, new)
    (folder / "mmare.conf").write_text(text)
    (folder / "nginx.conf").write_text(MAIN.format(folder=folder))
    return [nginx(), "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")]


def test_nginx_takes_the_example(tmp_path, kit):
    command = written(tmp_path, kit, 443, 9095)
    done = subprocess.run([*command, "-t"], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr


@pytest.mark.system
def test_it_lets_hospitals_through_and_nothing_else(tmp_path, kit):
    port = free_port()
    asked = []

    def superlink(method, path):
        asked.append((method, path))
        return 200, b"superlink"

    pair = Pair(kit.key.read_bytes(), kit.certificate.read_bytes())
    (tmp_path / "behind").mkdir()
    with https_server(tmp_path / "behind", pair, superlink) as behind, Household() as household:
        household.keep(Program("nginx", tuple(written(tmp_path, kit, port, behind)), tmp_path / "nginx.log"))
        household.look()
        context = ssl.create_default_context(cafile=str(kit.ca_certificate))

        def status(method, path):
            link = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=10)
            with closing(link):
                link.putrequest(method, path, skip_accept_encoding=True)  # the path as it is
                link.putheader("content-length", "0")
                link.endheaders()
                with link.getresponse() as answer:
                    return answer.status

        _wait_for(port, tmp_path / "nginx.log")
        assert status("GET", "/health") == 200
        assert status("POST", "/v1/fleet/pull-messages") == 200
        assert asked == [("GET", "/health"), ("POST", "/v1/fleet/pull-messages")]
        for path in (*REFUSED, *DISGUISED):
            assert status("GET", path) in (400, 403, 404), path
            assert status("POST", path) in (400, 403, 404), path
        assert status("POST", "/health") == 403
        assert status("GET", "/v1/fleet/pull-messages") == 403
        assert len(asked) == 2


def _wait_for(port, log):
    end = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
