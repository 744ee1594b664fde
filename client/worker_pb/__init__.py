r"""Generated from ``client/worker_pb/site_worker.proto`` with grpcio-tools 1.81.1; do not edit.

From the repository's root::

    python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. \
        client/worker_pb/site_worker.proto

The code runs with grpcio and protobuf from the versions of the tools on, so these stay at the newest whose
protobuf Flower allows. `tests/client/test_worker.py` makes the files again where the tools are installed.
"""
