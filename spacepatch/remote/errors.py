"""Errors of stores in our words: what fsspec, its stores and web servers raise is known here alone.

What a store says may repeat an address and what is secret in it: of web servers nothing is quoted.
"""

from __future__ import annotations

import errno

from spacepatch.remote.urls import PACKAGES, is_web, protocol_of, shown

CREDENTIALS = {
    "s3fs": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE), and "
    "AWS_ENDPOINT_URL for a store that is not Amazon's",
    "gcsfs": "set GOOGLE_APPLICATION_CREDENTIALS, or run gcloud auth application-default login",
    "adlfs": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    "huggingface_hub": "set HF_TOKEN, and HF_ENDPOINT for another hub",
    "aiohttp": "sign it, or copy the file",
}
"""Where they come from, by package: the variables of each ecosystem, none of ours."""
ENDPOINTS = {"s3fs": "AWS_ENDPOINT_URL", "huggingface_hub": "HF_ENDPOINT"}
NOT_CONFIGURED = frozenset(
    "ProfileNotFound NoRegionError InvalidRegionError TokenRetrievalError "
    "UnauthorizedSSOTokenError LocalTokenNotFoundError".split()
)
"""Errors, by name, where the user has to say who they are; beside those that say "credential"."""
HOPELESS = frozenset(
    "ParamValidationError ValueError NonHttpUrlClientError RedirectClientError".split()
)
"""Errors, by name, of an address."""
UNREACHABLE = frozenset(
    "HTTPClientError ConnectionError ClientConnectionError ConnectError ConnectTimeout "
    "ServiceRequestError".split()
)
"""Errors, by name, of connections: of botocore, requests, aiohttp, httpx and Azure."""


class AnswerError(OSError):
    """A store answered what it should not have; in our words."""


class PrivateAddressError(PermissionError):
    """A connection would lead into a private network, where nobody sent it."""


class NotConfiguredError(PermissionError):
    """The store wants credentials, or an endpoint, and the environment names none."""


def told(error: Exception, url: str) -> OSError:
    """An error of any store as one of the system's: its number says whether to try again, and its
    `strerror`, of one line, is always the same."""
    if isinstance(error, (AnswerError, PrivateAddressError)):
        return error
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "no such object", shown(url))
    if isinstance(error, FileExistsError):
        return FileExistsError(errno.EEXIST, "is there already", shown(url))
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & NOT_CONFIGURED or "credential" in f"{type(error).__name__} {line_of(error)}".lower():
        return NotConfiguredError(errno.EACCES, "no credentials")
    if isinstance(error, PermissionError):
        return PermissionError(errno.EACCES, "the store denies access")
    if names & HOPELESS and "JSONDecodeError" not in names:  # that one is of an answer
        return OSError(errno.EINVAL, f"no address that {protocol_of(url)}:// takes")
    if isinstance(error, TimeoutError):
        return OSError(errno.ETIMEDOUT, "the store does not answer in time")
    if names & UNREACHABLE:
        return OSError(errno.EHOSTUNREACH, "the store cannot be reached")
    code = getattr(error, "errno", None)
    what = errno.errorcode.get(code, type(error).__name__) if code else type(error).__name__
    return OSError(errno.EIO, f"the store does not answer as it should ({what})")


def explain(url: str, error: OSError) -> str:
    """What the user is told of an error of `told` that stops the program, with the way out."""
    package = PACKAGES[protocol_of(url)]
    if isinstance(error, FileNotFoundError):
        return f"{shown(url)}: no such object, folder or bucket"
    if isinstance(error, PermissionError) and not isinstance(error, PrivateAddressError):
        way = CREDENTIALS.get(package, "give another place")
    else:
        endpoint = ENDPOINTS.get(package, "the address")
        way = f"start again later (what is done is kept), or see whether {endpoint} is right"
    cause = error.__cause__
    said = "" if cause is None or is_web(url) else f" ({line_of(cause)})"
    return f"{shown(url)}: {error.strerror}; {way}{said}"


def let_go(error: BaseException | None) -> None:
    """Leave errors without their frames, which fsspec makes a cycle of: through it they would keep
    alive what our callers hold, such as tokens in an arena that is to be closed."""
    seen: list[BaseException] = []  # causes too may go round in a circle
    while error is not None and error not in seen:
        seen.append(error)
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def line_of(error: BaseException) -> str:
    """The first line of what it says."""
    text = getattr(error, "strerror", None) or str(error)
    return (text.splitlines() or [type(error).__name__])[0].rstrip(".")
