"""The body of a request -> uploads: one raw image, or a multipart form. Nothing of it touches the disk."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import anyio
from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from models.serve.uploads import Limits, Refused, Upload

MOST_BYTES_AT_ONCE = 2**28  # of all requests together
READ_ON = 2**29  # bytes of a refused body that are read and dropped, so that its sender comes to read why
MOST_FIELDS = 4  # of a form, beside its files
FIELD_BYTES = 4096
logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a broken form is its sender's trouble, who is told
HOW = "send one image as the body (Content-Type: image/png), or a form of files (curl -F image=@photo.jpg)"


class Memory:
    """Bytes of requests that may be held at once: as many as one request may hold, at least."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._free = limits, max(MOST_BYTES_AT_ONCE, limits.bytes)

    @contextmanager
    def lent(self, request: Request) -> Iterator[None]:
        """The bytes that a request may come to, given back at the end. Raises Refused where there are not so many left."""
        declared = declared_bytes(request)
        count = self._limits.bytes if declared is None else min(declared, self._limits.bytes)
        if count > self._free:
            raise Refused(503, "too many uploads at the moment; send it again in a second")
        self._free -= count
        try:
            yield
        finally:
            self._free += count


@dataclass(frozen=True)
class Form:
    files: list[Upload]
    fields: dict[str, str] = field(default_factory=dict)


async def read_form(request: Request, limits: Limits) -> Form:
    """At least one file, at most `limits.images`.

    Raises:
        Refused: another kind of content, too many bytes or parts, a form that is broken or holds no file.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    data = await _body(request, limits)  # first, so that the sender is done sending and reads the answer
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refused(415, "a compressed body is not read; send it without Content-Encoding")
    if kind == "multipart/form-data":
        return await _multipart(request, data, limits)
    if kind.startswith("image/") or kind == "application/octet-stream":
        return Form([Upload("image", data)])
    raise Refused(415, f"Content-Type: got {kind[:80]!r}; {HOW}")


def declared_bytes(request: Request) -> int | None:
    """Length of the body as its header tells it; None where it does not."""
    declared = request.headers.get("content-length", "")
    return int(declared) if declared.isdecimal() else None


async def _body(request: Request, limits: Limits) -> bytes:
    """The bytes of the body. Raises Refused: too many, or they do not come."""
    too_many = Refused(413, f"the request is too large; allowed: {limits.bytes:,} bytes. Send fewer or smaller images")
    if (declared_bytes(request) or 0) > limits.bytes and "expect" in request.headers:  # the sender waits for a word before it sends
        raise too_many
    data, total = bytearray(), 0
    try:
        with anyio.fail_after(limits.seconds):
            async for part in request.stream():
                total += len(part)
                if total <= limits.bytes:
                    data += part
                elif total > READ_ON:
                    break
    except TimeoutError:
        raise Refused(408, f"the request did not arrive within {limits.seconds:g} seconds") from None
    except ClientDisconnect:
        raise Refused(400, "the request broke off") from None
    if total > limits.bytes:
        raise too_many
    return bytes(data)


class _InMemory(MultiPartParser):
    """starlette's parser, with files of any size in memory, and knowing whether the form came to its end."""

    spool_max_size = max_file_size = READ_ON  # its name in newer and older versions
    ended = False

    def on_end(self) -> None:
        self.ended = True


async def _multipart(request: Request, data: bytes, limits: Limits) -> Form:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield data

    parser = _InMemory(request.headers, stream(), max_files=limits.images, max_fields=MOST_FIELDS, max_part_size=FIELD_BYTES)
    try:
        items = (await parser.parse()).multi_items()
    except MultiPartException as error:
        raise Refused(400, f"the form cannot be read: {error.message.rstrip('.')}; {HOW}") from None
    files = [value for _, value in items if isinstance(value, UploadFile)]
    if not parser.ended:
        raise Refused(400, f"the form breaks off before its end; {HOW}")
    if not files:
        raise Refused(400, f"the form holds no file; {HOW}")
    return Form([Upload.of(file.filename or "", await file.read()) for file in files],
                {name: value for name, value in items if isinstance(value, str)})
