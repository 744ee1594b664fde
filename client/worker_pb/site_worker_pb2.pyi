from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Question(_message.Message):
    __slots__ = ("header", "payload")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    header: str
    payload: bytes
    def __init__(self, header: _Optional[str] = ..., payload: _Optional[bytes] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("header", "payload")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    header: str
    payload: bytes
    def __init__(self, header: _Optional[str] = ..., payload: _Optional[bytes] = ...) -> None: ...

class StatusQuestion(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusAnswer(_message.Message):
    __slots__ = ("site", "software", "pid", "uptime_s", "messages", "last_contact", "busy_s", "studies")
    SITE_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    LAST_CONTACT_FIELD_NUMBER: _ClassVar[int]
    BUSY_S_FIELD_NUMBER: _ClassVar[int]
    STUDIES_FIELD_NUMBER: _ClassVar[int]
    site: str
    software: str
    pid: int
    uptime_s: float
    messages: int
    last_contact: float
    busy_s: float
    studies: _containers.RepeatedCompositeFieldContainer[StudyTally]
    def __init__(self, site: _Optional[str] = ..., software: _Optional[str] = ..., pid: _Optional[int] = ..., uptime_s: _Optional[float] = ..., messages: _Optional[int] = ..., last_contact: _Optional[float] = ..., busy_s: _Optional[float] = ..., studies: _Optional[_Iterable[_Union[StudyTally, _Mapping]]] = ...) -> None: ...

class StudyTally(_message.Message):
    __slots__ = ("study_hash", "name", "approved", "released", "refused", "released_bytes", "max_releases")
    STUDY_HASH_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    APPROVED_FIELD_NUMBER: _ClassVar[int]
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    RELEASED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_RELEASES_FIELD_NUMBER: _ClassVar[int]
    study_hash: str
    name: str
    approved: bool
    released: int
    refused: int
    released_bytes: int
    max_releases: int
    def __init__(self, study_hash: _Optional[str] = ..., name: _Optional[str] = ..., approved: _Optional[bool] = ..., released: _Optional[int] = ..., refused: _Optional[int] = ..., released_bytes: _Optional[int] = ..., max_releases: _Optional[int] = ...) -> None: ...
