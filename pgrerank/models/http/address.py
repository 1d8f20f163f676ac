"""Which endpoints a model may be at, and the key that it is shown."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qsl, urlsplit

from pgrerank.errors import ModelError

HOSTS = "PGRERANK_HTTP_HOSTS"
"""Environment variable with the hosts that models may be at, with commas between them."""
KEY_PREFIX = "PGRERANK_KEY_"
"""What the name of an environment variable with a key begins with: whoever may register models
must not have other secrets of the worker sent to an address of their own."""


_SECRET = re.compile("key|token|secret|password|signature", re.IGNORECASE)


@dataclass(frozen=True)
class Address:
    """Where an endpoint is, and its key, which no message shows."""

    url: str
    shown: str
    key: str | None

    def redact(self, text: str) -> str:
        """A text without the key."""
        return text.replace(self.key, "***") if self.key else text


def address(model: str, source: str, key_name: str | None) -> Address:
    """Check a URL and find its key; raises ModelError for what may not be asked, or has no key."""
    parts = _parts(source)
    if parts is None:
        raise ModelError(
            f"model {model}: source {source!r} is no URL of an endpoint, such as"
            " https://api.cohere.com/v2/rerank"
        )
    names = [name for name, _ in parse_qsl(parts.query) if _SECRET.search(name)]
    if parts.username or parts.password or names:
        what = names[0] if names else "user or password"
        raise ModelError(
            f"model {model}: the URL of its source has a {what}, which all may read in the"
            f' registry; name an environment variable {KEY_PREFIX}NAME by the option "key"'
        )
    assert parts.hostname is not None
    _check_host(model, parts.hostname)
    key = None if key_name is None else _key(model, key_name)
    if key and parts.scheme == "http" and not is_loopback(parts.hostname):
        raise ModelError(
            f"model {model}: a key is not sent over http to {parts.hostname}, where it can be read"
            " on the way: use https"
        )
    return Address(source, _shown(parts), key)


def _parts(source: str) -> SplitResult | None:
    """A URL in its parts; None for what is none."""
    try:
        parts = urlsplit(source)
        is_one = parts.scheme in ("http", "https") and parts.hostname and not parts.fragment
        is_one = is_one and parts.port != 0 and source.isprintable() and " " not in source
    except ValueError:
        return None
    return parts if is_one else None


def _shown(parts: SplitResult) -> str:
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


def _key(model: str, name: str) -> str:
    if not re.fullmatch("[A-Z0-9_]{1,50}", name):
        raise ModelError(
            f"model {model}: option key is {name!r}, expected the NAME of an environment variable"
            f" {KEY_PREFIX}NAME, in capitals"
        )
    value = os.environ.get(KEY_PREFIX + name, "").strip()
    if not value.isascii() or not value.isprintable() or not value:
        raise ModelError(
            f"model {model}: the environment variable {KEY_PREFIX}{name} has no key: set it where"
            " the worker is started"
        )
    return value


def _check_host(model: str, host: str) -> None:
    allowed = [one.strip().lower() for one in os.environ.get(HOSTS, "").split(",") if one.strip()]
    if allowed and host.lower() not in allowed:
        raise ModelError(
            f"model {model}: host {host} is none of those in the worker's {HOSTS}:"
            f" {', '.join(allowed)}"
        )
    if not allowed and _is_link_local(host):
        raise ModelError(
            f"model {model}: host {host} is where clouds keep the secrets of a machine; if it is"
            f" meant, name it in the worker's {HOSTS}"
        )


def _is_link_local(host: str) -> bool:
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return host.lower().rstrip(".") in ("metadata.google.internal", "metadata")
    mapped = getattr(found, "ipv4_mapped", None) or found
    return bool(found.is_link_local or mapped.is_link_local)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by its name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
