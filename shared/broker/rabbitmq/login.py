"""Where RabbitMQ is and how to log in: hosts, TLS and credentials, as pika wants them."""

from __future__ import annotations

import hashlib
import ssl
from urllib.parse import urlsplit, urlunsplit

import pika
from pika.credentials import ExternalCredentials, PlainCredentials

from shared.broker.base import Access


def connection_parameters(url: str, access: Access) -> list[pika.ConnectionParameters]:
    """Returns the parameters of each host, in the order of the URL.

    Args:
        url: `amqp://USER:PASSWORD@HOST[:PORT][,HOST[:PORT]…]/VHOST` or `amqps://…`, with pika's URL parameters.
        access: TLS files and the kind of login.

    Raises:
        ValueError: the URL is malformed, or a file of TLS cannot be used.
    """
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    try:
        context = _tls_context(access) if access.uses_tls or parts.scheme == "amqps" else None
    except OSError as error:  # of which ssl.SSLError is one
        files = ", ".join(str(file) for file in (access.ca_file, access.cert_file, access.key_file) if file)
        raise ValueError(f"the TLS files {files} cannot be used: {error.strerror or error}") from None
    if access.uses_tls and parts.scheme != "amqps":
        raise ValueError("files for TLS are set; expected an amqps:// URL")
    found = []
    for host in hosts.split(","):
        try:
            parameters = pika.URLParameters(urlunsplit(parts._replace(netloc=f"{user}{at}{host.strip()}")))
        except (SyntaxError, TypeError, OSError) as error:  # some are read as Python's literals, some name files of TLS
            raise ValueError(f"a parameter of the URL cannot be used: {error}") from None
        if context is not None and "ssl_options" not in parts.query:
            parameters.ssl_options = pika.SSLOptions(context, parameters.host)
        if access.login == "external":
            parameters.credentials = ExternalCredentials()
        found.append(parameters)
    return found


def shared_secret(parameters: pika.ConnectionParameters, access: Access) -> bytes:
    """Returns bytes that all processes know which log in as this user, and no other client of the broker."""
    credentials = parameters.credentials
    if isinstance(credentials, PlainCredentials):
        return hashlib.sha256(credentials.password.encode()).digest()
    return hashlib.sha256(access.key_file.read_bytes() if access.key_file else b"").digest()


def _tls_context(access: Access) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=access.ca_file)
    if access.cert_file:
        context.load_cert_chain(access.cert_file, access.key_file)
    return context
