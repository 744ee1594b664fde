"""Private names of Flower that the patched relay replaces or calls; checked against 1.41, present in 1.42.

Each name's shape is recorded and checked before anything is patched; if one differs, nothing is.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "CLIENTAPP",
    "CLIENTAPP_POINTS",
    "FLEET",
    "HEARTBEAT",
    "PULL",
    "RETRY",
    "SUPEREXEC",
    "SUPEREXEC_POINTS",
    "SUPERNODE",
    "SUPERNODE_POINTS",
    "WIRE",
    "PatchPoint",
    "apply_default",
    "differences",
    "named",
    "replace",
]


@dataclass(frozen=True)
class PatchPoint:
    """A private name and its expected shape."""

    module: str
    name: str  # dotted for a member of a class
    parameters: str | None = None  # all of a callable, comma-separated in order; None: not checked
    defaults: tuple[str, ...] = ()  # keyword-only parameters that must have a default
    kind: type | None = None  # required type
    uses: tuple[str, ...] = ()  # names that its code must mention, where replacing them is what protects

    def difference(self) -> str | None:
        """How the installed name differs, None if it does not."""
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
        parameters = ", ".join(inspect.signature(found).parameters)
        if parameters != self.parameters:
            return f"{where} takes {parameters}; expected {self.parameters}"
        given = getattr(found, "__kwdefaults__", None) or {}
        missing = [name for name in self.defaults if name not in given]
        mentioned = _mentioned(found.__code__) if self.uses else set()
        unused = [name for name in self.uses if name not in mentioned]
        said = f"{where} has no default of {', '.join(missing)}" if missing else None
        return f"{where} does not use {', '.join(unused)}" if unused else said


def _mentioned(code: CodeType) -> set[str]:
    """Names in a function and in those within it."""
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*map(_mentioned, inner))


def differences(points: Iterable[PatchPoint]) -> list[str]:
    """All differences from the recorded shapes.

    Example:
        >>> differences([PatchPoint("time", "sleep"), PatchPoint("time", "nap")])
        ['time.nap is not there']
    """
    return [found for point in points if (found := point.difference()) is not None]


def named(module: str, name: str) -> Any:  # noqa: ANN401 - any object
    """Import a module and resolve a dotted name in it; raises `ImportError` or `AttributeError`."""
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def replace(module: str, name: str, value: object) -> None:
    """Replace an existing (dotted) name of a module; raises `AttributeError` if there is none."""
    owner, _, last = name.rpartition(".")
    found = named(module, owner) if owner else importlib.import_module(module)
    if not hasattr(found, last):
        raise AttributeError(f"{module}.{name}")
    setattr(found, last, value)


def apply_default(module: str, name: str, parameter: str, value: object) -> None:
    """Change the default of a keyword-only parameter; raises `KeyError` if it has none."""
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
_PULL_OPTIONS: Final = (
    "max_concurrent_pulls",
    "max_time",
    "max_tries_per_object",
    "initial_backoff",
    "backoff_cap",
)
_PULLS: Final = ", ".join(_PULL_OPTIONS)

SUPERNODE_POINTS: Final = (
    PatchPoint(SUPERNODE, "time", kind=ModuleType),
    PatchPoint(
        SUPERNODE,
        "http_request_response",
        "server_address, insecure, root_certificates, authentication_keys, max_retries, max_wait_time",
    ),
    PatchPoint(PULL, "ObjectPushError", kind=type),
    PatchPoint(PULL, "pull_objects", f"object_ids, pull_object_fn, {_PULLS}", _PULL_OPTIONS),
    PatchPoint(RETRY, "MAX_RETRY_DELAY", kind=int),
    PatchPoint(HEARTBEAT, "exponential", "base_delay, multiplier, max_delay"),
    PatchPoint(
        WIRE,
        "ProtobufClient.__init__",
        "self, base_url, interceptors, verify, timeout, retry_invoker",
        ("timeout",),
    ),
    PatchPoint(FLEET, "FleetHttpClient.DeactivateNode", "self, request"),
    PatchPoint(FLEET, "FleetHttpClient.PullMessages", "self, request"),
    PatchPoint(FLEET, "FleetHttpClient.PushObject", "self, request"),
    PatchPoint(FLEET, "FleetHttpClient.SendNodeHeartbeat", "self, request"),
    PatchPoint(
        FLEET,
        "FleetHttpClient.from_server_address",
        "server_address, insecure, root_certificates, interceptors, retry_invoker",
    ),
    PatchPoint(
        "flwr.supernode.node_auth_http_interceptor", "NodeAuthHttpInterceptor", "private_key, public_key"
    ),
    PatchPoint(
        "flwr.supercore.interceptors.http.runtime_version", "RuntimeVersionHttpInterceptor", "component_name"
    ),
    PatchPoint("flwr.proto.fleet_pb2", "DeactivateNodeRequest"),
    PatchPoint("flwr.proto.heartbeat_pb2", "SendNodeHeartbeatRequest"),
    PatchPoint("flwr.proto.node_pb2", "Node"),
    PatchPoint("flwr.common.constant", "HEARTBEAT_DEFAULT_INTERVAL", kind=int),
)

SUPEREXEC_POINTS: Final = (
    PatchPoint(SUPEREXEC, "time", kind=ModuleType),
    PatchPoint(SUPEREXEC, "get_executor", "executor_type, executor_config, insecure, root_certificates_path"),
    PatchPoint("flwr.supercore.constant", "TaskType.CLIENT_APP"),
    PatchPoint("flwr.supercore.constant", "ExecutorType.SUBPROCESS"),
    PatchPoint(_EXECUTOR, "SubprocessExecutor", ""),
    PatchPoint(_EXECUTOR, "SubprocessExecutor.launch", "self, spec"),
    PatchPoint(_EXECUTOR, "SubprocessExecutor.reconcile", "self"),
    PatchPoint(_EXECUTOR, "SubprocessExecutor.close", "self"),
    PatchPoint(
        _EXECUTOR,
        "SubprocessExecutor.get_eligible_capacity",
        "self, supported_task_types, insecure, root_certificates_path",
    ),
    PatchPoint(
        _TYPES,
        "ExecutionSpec",
        "task_type, runtime_api_address, token, insecure, root_certificates_path, "
        "runtime_dependency_install, parent_pid, suppress_output, task_id, fab_hash",
    ),
    PatchPoint(_TYPES, "LaunchResult.accepted", ""),
    PatchPoint(_TYPES, "LaunchResult.failed", "message"),
)

CLIENTAPP_POINTS: Final = (  # in the process that answers one message, forked by SuperExec
    PatchPoint(
        CLIENTAPP,
        "run_clientapp",
        "runtime_api_address, token, insecure, certificates, parent_pid, runtime_dependency_install",
        uses=("install_from_fab", "get_load_client_app_fn", "push_message"),
    ),
    PatchPoint(CLIENTAPP, "push_message", "client, message, context"),
    PatchPoint(CLIENTAPP, "install_from_fab", "fab_file, install_dir, skip_prompt"),
    PatchPoint(CLIENTAPP, "get_load_client_app_fn", "default_app_ref, app_path, multi_app"),
    PatchPoint(
        CLIENTAPP,
        "pull_and_inflate_object_from_tree",
        f"object_tree, pull_object_fn, confirm_object_received_fn, return_type, {_PULLS}",
        _PULL_OPTIONS,
    ),
)
