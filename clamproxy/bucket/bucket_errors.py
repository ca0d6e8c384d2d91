"""What errors of an object store mean, in one line that holds no URL and no credentials."""

from __future__ import annotations

import re

_STATUS = re.compile(r"(?:status code|error response)[^:]*: (\d{3} [A-Z][A-Za-z ]+)")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_CAUSE = re.compile(r'(?:message|error): "([^"\n]{1,120})"')
_URL = re.compile(r"\w+://\S+")
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "specified bucket does not exist")
_NO_CREDENTIALS = ("/latest/api/token", "/latest/meta-data", "/computeMetadata/", "/metadata/identity")

_IN_WORDS = {
    "Account must be specified": "AZURE_STORAGE_ACCOUNT_NAME is not set in the environment",
    "kind: Timeout": "no response in time",
    "BadScheme": "its URL begins with http://, which AWS_ALLOW_HTTP (or AZURE_ALLOW_HTTP) must allow",
    "InvalidCertificate": "its certificate can't be verified",
    "InvalidContentType": "it doesn't speak TLS",
    "IncompleteMessage": "the connection was closed before the response was complete",
    "ConnectionReset": "the connection was reset",
}


class BucketError(Exception):
    """The object store can't be used: not reachable, refused, too slow, or its response makes no sense.

    Its text is one line without a URL or credentials.
    """


def is_missing_bucket(error: BaseException) -> bool:
    """Whether a 404 means that there is no such bucket, rather than no such object in it."""
    text = str(error)
    return any(sign in text for sign in _NO_BUCKET)


def is_panic(error: BaseException) -> bool:
    """Whether obstore has failed at something that it takes for impossible. Nothing exports the class."""
    return type(error).__name__ == "RustPanic"


def in_one_line(error: BaseException) -> str:
    """What an error of obstore says, for logs and people."""
    text = str(error)
    if is_panic(error):
        return "obstore panicked; standard error tells where"
    if is_missing_bucket(error):
        return "there is no such bucket"
    if any(sign in text for sign in _NO_CREDENTIALS):
        return "no credentials were found in the environment"
    if status := _STATUS.search(text):
        code = _CODE.search(text)
        return status[1].strip() + (f" ({code[1]})" if code else "")
    for sign, words in _IN_WORDS.items():
        if sign in text:
            return words
    if cause := _CAUSE.search(text):
        return _URL.sub("...", cause[1])
    first = _URL.sub("...", text.partition("\n")[0].rpartition(" - ")[2])
    return first[:200] or type(error).__name__
