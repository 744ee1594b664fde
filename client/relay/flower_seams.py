"""What the warm relay replaces or calls of Flower that Flower never promised; seen in 1.41, there in 1.42.

Each name is written down with its shape and checked before anything is touched: where one of them differs,
nothing is replaced.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "CLIENTAPP",
    "CLIENTAPP_SEAMS",
    "FLEET",
    "HEARTBEAT",
    "PULL",
    "RETRY",
    "SUPEREXEC",
    "SUPEREXEC_SEAMS",
    "SUPERNODE",
    "SUPERNODE_SEAMS",
    "WIRE",
    "Seam",
    "apply_default",
    "differences",
    "named",
    "replace",
]


@dataclass(frozen=True)
class Seam:
    """A private name, and what it must look like.

    Args:
        module: Where it lives.
        name: With dots for what is inside a class.
        parameters: Of a function or class, all of them in order; none where it is something else.
        defaults: Of these parameters, those that only a keyword can set and that have a default.
        kind: That it must be an instance of; none for anything.
    """

    module: str
    name: str
    parameters: tuple[str, ...] | None = None
    defaults: tuple[str, ...] = ()
    kind: type | None = None

    def difference(self) -> str | None:  # noqa: PLR0911 - one return a shape
        """What is not as written down, in a few words; none where all is."""
        where = f"{self.module}.{self.name}"
        try:
            found = named(self.module, self.name)
        except (ImportError, AttributeError):
            return f"{where} is not there"
        if self.kind is not None and not isinstance(found, self.kind):
            return f"{where} is a {type(found).__name__}, expected {self.kind.__name__}"
        if self.parameters is None:
            return None
        if not callable(found):
            return f"{where} cannot be called"
        parameters = tuple(inspect.signature(found).parameters)
        if parameters != self.parameters:
            return f"{where} takes {', '.join(parameters)}; expected {', '.join(self.parameters)}"
        given = getattr(found, "__kwdefaults__", None) or {}
        lacking = [name for name in self.defaults if name not in given]
        if lacking:
            return f"{where} has no default of {', '.join(lacking)}"
        return None


def differences(seams: Iterable[Seam]) -> list[str]:
    """What is not as written down, over all names.

    Example:
        >>> differences([Seam("time", "sleep"), Seam("time", "nap")])
        ['time.nap is not there']
    """
    return [found for seam in seams if (found := seam.difference()) is not None]


def named(module: str, name: str) -> Any:  # noqa: ANN401 - whatever it is
    """What a module has under a name, with dots for what is inside of it.

    Raises:
        ImportError: If there is no such module.
        AttributeError: If it has no such name.
    """
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def replace(module: str, name: str, value: object) -> None:
    """Put something else in a module under a name that it has, with dots for what is inside of a class."""
    inside, _, last = name.rpartition(".")
    found = named(module, inside) if inside else importlib.import_module(module)
    if not hasattr(found, last):
        raise AttributeError(f"{module}.{name}")
    setattr(found, last, value)


def apply_default(module: str, name: str, parameter: str, value: object) -> None:
    """Give a parameter that only a keyword can set another default.

    Raises:
        KeyError: If it has none.
    """
    function = named(module, name)
    if parameter not in (function.__kwdefaults__ or {}):
        raise KeyError(f"{module}.{name}({parameter}=)")
    function.__kwdefaults__[parameter] = value


SUPERNODE: Final = "flwr.supernode.start_client_internal"
SUPEREXEC: Final = "flwr.supercore.superexec.run_superexec"
CLIENTAPP: Final = "flwr.supernode.runtime.run_clientapp"
FLEET: Final = "flwr.supernode.fleet_http_client"
HEARTBEAT: Final = "flwr.supercore.heartbeat"
RETRY: Final = "flwr.supercore.retry.http_retry"
WIRE: Final = "flwr.supercore.protobuf.client"
PULL: Final = "flwr.supercore.inflatable.inflatable_utils"

_EXECUTOR: Final = "flwr.supercore.superexec.executor.subprocess_executor"
_TYPES: Final = "flwr.supercore.superexec.executor.types"
_BACKOFF: Final = (
    "max_concurrent_pulls",
    "max_time",
    "max_tries_per_object",
    "initial_backoff",
    "backoff_cap",
)

SUPERNODE_SEAMS: Final = (
    Seam(SUPERNODE, "time", kind=ModuleType),
    Seam(
        SUPERNODE,
        "http_request_response",
        (
            *("server_address", "insecure", "root_certificates", "authentication_keys"),
            *("max_retries", "max_wait_time"),
        ),
    ),
    Seam(PULL, "ObjectPushError", kind=type),
    Seam(PULL, "pull_objects", ("object_ids", "pull_object_fn", *_BACKOFF), _BACKOFF),
    Seam(RETRY, "MAX_RETRY_DELAY", kind=int),
    Seam(HEARTBEAT, "exponential", ("base_delay", "multiplier", "max_delay")),
    Seam(
        WIRE,
        "ProtobufClient.__init__",
        ("self", "base_url", "interceptors", "verify", "timeout", "retry_invoker"),
        ("timeout",),
    ),
    Seam(FLEET, "FleetHttpClient.DeactivateNode", ("self", "request")),
    Seam(FLEET, "FleetHttpClient.PullMessages", ("self", "request")),
    Seam(FLEET, "FleetHttpClient.PushObject", ("self", "request")),
    Seam(FLEET, "FleetHttpClient.SendNodeHeartbeat", ("self", "request")),
    Seam(
        FLEET,
        "FleetHttpClient.from_server_address",
        ("server_address", "insecure", "root_certificates", "interceptors", "retry_invoker"),
    ),
    Seam(
        "flwr.supernode.node_auth_http_interceptor", "NodeAuthHttpInterceptor", ("private_key", "public_key")
    ),
    Seam(
        "flwr.supercore.interceptors.http.runtime_version",
        "RuntimeVersionHttpInterceptor",
        ("component_name",),
    ),
    Seam("flwr.proto.fleet_pb2", "DeactivateNodeRequest"),
    Seam("flwr.proto.heartbeat_pb2", "SendNodeHeartbeatRequest"),
    Seam("flwr.proto.node_pb2", "Node"),
    Seam("flwr.common.constant", "HEARTBEAT_DEFAULT_INTERVAL", kind=int),
)

SUPEREXEC_SEAMS: Final = (
    Seam(SUPEREXEC, "time", kind=ModuleType),
    Seam(
        SUPEREXEC, "get_executor", ("executor_type", "executor_config", "insecure", "root_certificates_path")
    ),
    Seam("flwr.supercore.constant", "TaskType.CLIENT_APP"),
    Seam("flwr.supercore.constant", "ExecutorType.SUBPROCESS"),
    Seam(_EXECUTOR, "SubprocessExecutor", ()),
    Seam(_EXECUTOR, "SubprocessExecutor.launch", ("self", "spec")),
    Seam(_EXECUTOR, "SubprocessExecutor.reconcile", ("self",)),
    Seam(_EXECUTOR, "SubprocessExecutor.close", ("self",)),
    Seam(
        _EXECUTOR,
        "SubprocessExecutor.get_eligible_capacity",
        ("self", "supported_task_types", "insecure", "root_certificates_path"),
    ),
    Seam(
        _TYPES,
        "ExecutionSpec",
        (
            *("task_type", "runtime_api_address", "token", "insecure", "root_certificates_path"),
            *("runtime_dependency_install", "parent_pid", "suppress_output", "task_id", "fab_hash"),
        ),
    ),
    Seam(_TYPES, "LaunchResult.accepted", ()),
)

CLIENTAPP_SEAMS: Final = (
    Seam(
        CLIENTAPP,
        "run_clientapp",
        (
            *("runtime_api_address", "token", "insecure", "certificates", "parent_pid"),
            "runtime_dependency_install",
        ),
    ),
    Seam(CLIENTAPP, "push_message", ("client", "message", "context")),
    Seam(CLIENTAPP, "install_from_fab", ("fab_file", "install_dir", "skip_prompt")),
    Seam(CLIENTAPP, "get_load_client_app_fn", ("default_app_ref", "app_path", "multi_app")),
    Seam(
        CLIENTAPP,
        "pull_and_inflate_object_from_tree",
        ("object_tree", "pull_object_fn", "confirm_object_received_fn", "return_type", *_BACKOFF),
        _BACKOFF,
    ),
)
"""Of the process that answers one message; SuperExec forks it."""
