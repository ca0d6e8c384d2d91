"""The manifest of a bundle: what follows it in the tar, and which versions that leads to."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from clamproxy.objects import MAX_VERSION, Kind, ObjectId
from clamproxy.origin.attempt import LARGEST

MANIFEST_NAME = "manifest.json"
"""Name of the first member of the tar."""
MANIFEST_LIMIT = 4 * 2**20
"""Size limit in bytes; a full cache with six databases needs a tenth of it."""
_LAST_DATE = 253_402_300_799
"""The end of the year 9999 in Unix seconds."""

Version = Annotated[int, Field(strict=True, ge=0, le=MAX_VERSION)]
UnixTime = Annotated[float, Field(ge=0, le=_LAST_DATE, allow_inf_nan=False)]


class BundleError(Exception):
    """A bundle can't be written or imported; the text is one line for the operator."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class ListedObject(_Part):
    """An object in the bundle."""

    name: str
    """The object's file name, from `ObjectId.file_name`."""
    size: Annotated[int, Field(strict=True, ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    version: Version
    built: Annotated[int, Field(strict=True, ge=0)] | None = None
    """For a CVD, the build time in its header, in Unix seconds."""
    last_modified: UnixTime | None = None
    """The origin's Last-Modified, in Unix seconds."""

    @property
    def object_id(self) -> ObjectId:
        """The object that the name stands for; the name has been checked."""
        return ObjectId.parse(self.name)

    @model_validator(mode="after")
    def _check(self) -> ListedObject:
        object_id = ObjectId.parse(self.name)
        if object_id.kind not in LARGEST or object_id.version != self.version:
            raise ValueError(f"{self.name} is not a file of version {self.version}")
        if self.size > LARGEST[object_id.kind]:
            raise ValueError(f"{self.name} is too large")
        return self


class ListedDatabase(_Part):
    """What the bundle holds of one database."""

    version: Version
    """The version after the import: that of the CVD, or of the last of the patches that follow it."""
    base: Version
    """Version of the CVD; without a CVD, the version that must be there before the import."""
    objects: tuple[ListedObject, ...]

    @property
    def is_whole(self) -> bool:
        """Whether the CVD is in the bundle, and not just patches."""
        return any(listed.object_id.kind is Kind.CVD for listed in self.objects)

    @property
    def size(self) -> int:
        """Total size of its objects in bytes."""
        return sum(listed.size for listed in self.objects)

    @model_validator(mode="after")
    def _check(self) -> ListedDatabase:
        sizes = {listed.object_id: listed.size for listed in self.objects}
        cvds = [object_id.version for object_id in sizes if object_id.kind is Kind.CVD]
        if cvds not in ([], [self.base]):
            raise ValueError(f"the CVD is not of version {self.base}")
        patches = {o.version for o, size in sizes.items() if o.kind is Kind.CDIFF and size > 0}
        reached = self.base
        while reached + 1 in patches:
            reached += 1
        if reached != self.version or not (cvds or patches):
            raise ValueError(f"the objects lead to version {reached}, not {self.version}")
        if any(object_id.kind.is_signature and object_id.signed not in sizes for object_id in sizes):
            raise ValueError("there is a signature without its file")
        return self


class Manifest(_Part):
    format: Literal[1, 2] = 1
    """2 if there are `signatures`; changes when older versions of clamproxy can't import the bundle."""
    created: UnixTime
    clamproxy: str
    """The version of clamproxy that wrote the bundle."""
    databases: dict[str, ListedDatabase]
    signatures: tuple[ListedObject, ...] = ()
    """Signatures of objects that are not in the bundle because the other gateway has them already."""

    @property
    def objects(self) -> dict[str, ListedObject]:
        """All objects by name, signatures included."""
        parts = [part.objects for part in self.databases.values()]
        return {listed.name: listed for part in (self.signatures, *parts) for listed in part}

    def bytes_by_database(self) -> Mapping[str, int]:
        """How many bytes there are to read for each database."""
        totals: Counter[str] = Counter()
        for listed in self.objects.values():
            totals[listed.object_id.database] += listed.size
        return totals

    def to_bytes(self) -> bytes:
        """The contents of ``manifest.json``."""
        unknown = {"signatures"} if self.format == 1 else None
        return self.model_dump_json(indent=1, exclude=unknown).encode() + b"\n"

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        """The inverse of `to_bytes`.

        Raises:
            BundleError: this is not a manifest, or it contradicts itself.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            detail = error.errors(include_url=False, include_input=False)[0]
        if detail["loc"] == ("format",):
            raise BundleError("the bundle is in a format that this version of clamproxy doesn't know")
        place = ".".join(map(str, detail["loc"]))
        text = ": ".join(filter(None, ("the manifest is invalid", place, detail["msg"])))
        raise BundleError(text.encode("ascii", "backslashreplace").decode())

    @model_validator(mode="after")
    def _check(self) -> Manifest:
        listed = [(name, o.name, o.object_id) for name, part in self.databases.items() for o in part.objects]
        for database, name, object_id in listed:
            if object_id.database != database:
                raise ValueError(f"{name} is listed under {database}")
        names = [name for _, name, _ in listed] + [signature.name for signature in self.signatures]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if self.signatures and self.format == 1:
            raise ValueError("format 1 has no signatures without their objects")
        for late in self.signatures:
            if not late.object_id.kind.is_signature or late.object_id.signed.file_name in names:
                raise ValueError(f"{late.name} is not a signature of a file that is there already")
        if twice or not self.databases:
            raise ValueError(f"{twice[0]} is listed twice" if twice else "there are no databases")
        return self


def sha256_of(pieces: Iterable[bytes]) -> str:
    """The SHA-256 of some bytes as lower-case hex digits."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()
