"""Answers requests for the site's files, below ``/files/``."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from werkzeug.datastructures import Headers

from clamproxy.dates import parse_http_date
from clamproxy.downloads import FileSource
from clamproxy.files import open_to_read
from clamproxy.messages import Request, Response, Result
from clamproxy.objects import plain_path
from clamproxy.ranges import Representation, select
from clamproxy.readable import shown_count
from clamproxy.responses import content, describe, plain
from clamproxy.site_files.catalog import Catalog, Edition, SiteFile
from clamproxy.site_files.file_names import DIGEST, INDEX, PREFIX
from clamproxy.site_files.publication_dates import has_current
from clamproxy.site_files.publisher import Publisher, place_of
from clamproxy.site_files.recipients import Recipients, recipient
from clamproxy.threads import Writer

LONGEST_WAIT = 5.0
"""Seconds for which a request waits until it is known what is published, after a start."""
_TEXT = "text/plain; charset=utf-8"
_ALWAYS = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}


class SiteFiles:
    """The site's files: publishes them and answers requests for them. Event loop only.

    Args:
        directory: `files.directory`; None: there are no files.
        records: the state directory.
        clock: returns Unix seconds.
        writer: see `Recipients`.
    """

    def __init__(
        self,
        directory: Path | None,
        records: Path,
        clock: Callable[[], float] = time.time,
        writer: Writer | None = None,
    ) -> None:
        self._publisher = Publisher(directory, records, clock)
        self._recipients = Recipients(place_of(records), writer)
        self._clock = clock

    @property
    def catalog(self) -> Catalog:
        return self._publisher.catalog

    def start(self) -> None:
        self._recipients.load()
        self._publisher.start()

    def stop(self) -> None:
        self._publisher.stop()

    async def handle(self, request: Request, address: str) -> Response:
        """Respond to a GET or HEAD below `PREFIX`.

        Args:
            address: the client's.
        """
        try:
            async with asyncio.timeout(LONGEST_WAIT):
                await self._publisher.ready()
                await self._publisher.catch_up()
        except TimeoutError:
            return _unavailable("the gateway has just started")
        name = plain_path(request.path).removeprefix(PREFIX.rstrip("/")).lstrip("/")
        if not name:
            return _page(_text_index(self.catalog), _TEXT)
        if name == INDEX:
            return _page(_json_index(self.catalog), "application/json")
        if (digest := self._digest(name)) is not None:
            return _page(digest, _TEXT)
        file = self.catalog.files.get(name)
        return await self._file(request, address, file) if file is not None else _missing()

    def note_sent(self, request: Request, address: str, response: Response) -> None:
        """Remember that a client was sent all of a response.

        Args:
            address: the client's.
        """
        if request.method == "GET" and response.status == 200 and "ETag" in response.headers:
            name = plain_path(request.path).removeprefix(PREFIX)
            sha256 = response.headers["ETag"].strip('"')
            self._recipients.note(recipient(address, request.headers.get("User-Agent", ""), name), sha256)

    def _digest(self, name: str) -> str | None:
        """The digest of a file, as sha256sum writes it."""
        file = self.catalog.files.get(name.removesuffix(DIGEST)) if name.endswith(DIGEST) else None
        served = file.served if file is not None else None
        return f"{served.sha256}  {file.name}\n" if file is not None and served is not None else None

    async def _file(self, request: Request, address: str, file: SiteFile) -> Response:
        path, edition = self._publisher.path_of(file), file.served
        if path is None or edition is None:
            return _missing(file.reason)
        # What is sent before its date would look older than the copy that the client makes of it.
        if (ahead := edition.published_at - self._clock()) > 0:
            await asyncio.sleep(min(ahead, 1.0))
        try:
            opened = open_to_read(path)
        except OSError:
            return _unavailable("the published copy can't be read")
        with opened:
            if os.fstat(opened.fileno()).st_size != edition.size:  # the publisher notices, and makes it again
                return _unavailable("the published copy is damaged")
            source = FileSource(os.dup(opened.fileno()), edition.size)
        try:
            return self._response(request, address, file.name, edition, source)
        except BaseException:
            source.close()
            raise

    def _response(
        self, request: Request, address: str, name: str, edition: Edition, source: FileSource
    ) -> Response:
        representation = Representation(edition.size, edition.sha256, edition.published_at)
        machine = recipient(address, request.headers.get("User-Agent", ""), name)
        known = self._recipients.has(machine, edition.sha256)

        def is_current(since: float) -> bool:
            return has_current(since, edition.published_at, self._clock(), known)

        selection = select(request.headers, representation, is_current, method=request.method)
        headers = representation.headers
        since = parse_http_date(request.headers.get("If-Modified-Since"))
        if selection.status != 304:
            headers["Content-Type"] = "application/octet-stream"
            if since is not None and since >= edition.published_at:
                del headers["Last-Modified"]  # libcurl would discard the content (docs/protocol.md, trap 7)
        headers.update(_ALWAYS)
        describe(headers, selection, edition.size)
        wanted = selection.length if request.method == "GET" else 0
        body = content(source, selection.start, wanted, is_arriving=False)
        return Response(selection.status, Result.FILE, headers, body)


def is_file_path(target: str) -> bool:
    """Whether a request's target is one of the site's files, or their index."""
    path = plain_path(target)
    return path.startswith(PREFIX) or path == PREFIX.rstrip("/")


def _text_index(catalog: Catalog) -> str:
    files = [(file, file.served) for file in catalog.listed() if file.served is not None]
    lines = [
        f"{served.sha256}  {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(served.published_at))}  "
        f"{served.size:>10}  {file.name}\n"
        for file, served in files
    ]
    return "".join([f"# {shown_count(len(files), 'file')}: SHA-256, published, bytes, name\n", *lines])


def _json_index(catalog: Catalog) -> str:
    files = [file for file in catalog.listed() if file.served is not None]
    return (
        json.dumps(
            {
                "files": [
                    {
                        "name": file.name,
                        "size": file.served.size,
                        "sha256": file.served.sha256,
                        "published_at": file.served.published_at,
                    }
                    for file in files
                    if file.served is not None
                ]
            },
            indent=2,
        )
        + "\n"
    )


def _page(text: str, content_type: str) -> Response:
    return Response(200, Result.FILE, Headers({"Content-Type": content_type} | _ALWAYS), text.encode())


def _missing(reason: str = "") -> Response:
    response = plain(404, Result.FILE, "no such file is published")
    response.reason += f": {reason}" if reason else ""  # for the log; it may show what is in the file
    return response


def _unavailable(reason: str) -> Response:
    response = plain(503, Result.FILE, reason)
    response.headers["Retry-After"] = "1"
    return response
