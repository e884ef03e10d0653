"""Every setting: an environment variable `GENDERLINE_<NAME>`, typed and validated, read once by `__main__`."""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from shared.access import ADMIN, AccessToken, check_secret, parse_tokens
from shared.errors import short_repr
from shared.runtime.resources import available_cores
from shared.runtime.supervisor import SUPERVISED

LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
URL_PREFIX: Final = r"(/[A-Za-z0-9._~-]+)*"
Network = IPv4Network | IPv6Network
SECRETS: Final = frozenset({"token", "tokens", "broker_url"})
_OF_KUBERNETES: Final = re.compile("_SERVICE_(HOST|PORT)|_PORT_[0-9]+_(TCP|UDP)")
"""In the names of variables that Kubernetes sets for each of its services, one of which may begin with our name."""


class SettingsError(ValueError):
    """A setting has a value that cannot be used; the text names the variable, what was found and what is expected."""


class Settings(BaseSettings):
    """The settings of all services; each field's description is its line in `genderline settings`."""

    model_config = SettingsConfigDict(env_prefix="GENDERLINE_", frozen=True, extra="ignore", env_ignore_empty=True)

    broker_url: str = Field(
        "sqlite:///data/broker.db",
        repr=False,  # it may hold a password
        description="The broker: `sqlite:///PATH` (embedded) or `amqp://` / `amqps://` (hosts separated by commas)",
    )
    broker_url_file: Path | None = Field(None, description="A file that holds the broker's URL, in place of it")
    broker_ca_file: Path | None = Field(
        None, description="Certificates of the authorities that vouch for RabbitMQ, for `amqps://`"
    )
    broker_cert_file: Path | None = Field(None, description="Our certificate for RabbitMQ")
    broker_key_file: Path | None = Field(None, description="Its private key")
    broker_login: Literal["password", "external"] = Field(
        "password", description="Log in to RabbitMQ by the URL's user and password, or (`external`) by our certificate"
    )
    declare: Literal["active", "passive"] = Field(
        "active", description="Make RabbitMQ's queues, or (`passive`) use those that an administrator has made"
    )
    store_url: str = Field("file:data/store", description="The store: `file:PATH` or `s3://BUCKET/PREFIX`")
    queue_prefix: str = Field(
        "genderline",
        pattern=r"^[A-Za-z0-9_.-]{1,60}$",
        description="What every queue's and exchange's name starts with",
    )
    inbox: Path = Field(Path("data/inbox"), description="The watched folder: a zip that lands here is submitted")
    allowed_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        (Path("data/inbox"),), description="Folders that `file://` may read from, separated by `:`"
    )
    allowed_buckets: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Buckets that `s3://` references may read from, separated by `,`"
    )
    host: str = Field("127.0.0.1", description="The address that the dashboard and metrics bind to")
    port: int = Field(8080, ge=0, le=65535, description="The dashboard's port; 0 takes a free one")
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Metrics port of the one service started (trainer 9101, inference 9102); 0 takes free ones",
    )
    token_file: Path | None = Field(None, description="A file that holds the token, in place of it")
    token: str | None = Field(
        None,
        repr=False,
        description="Guards every page and call, 8 characters or more; needed to bind the dashboard beyond loopback",
    )
    tokens: Annotated[tuple[AccessToken, ...], NoDecode] = Field(
        (),
        repr=False,
        description="More tokens, as `NAME:full:TOKEN` or `NAME:read:TOKEN`, separated by commas; `read` may change "
        "nothing, and NAME stands in the history of promotions",
    )
    url_prefix: str = Field(
        "",
        pattern=f"^{URL_PREFIX}$",
        description="The path under which a reverse proxy shows the dashboard, as `/faces`",
    )
    trusted_proxies: Annotated[tuple[Network, ...], NoDecode] = Field(
        (), description="Addresses or networks of proxies whose `X-Forwarded-…` headers count, separated by commas"
    )
    workers: int = Field(0, ge=0, le=256, description="Inference processes; 0 takes one a core")
    provider: Literal["auto", "cuda", "cpu"] = Field(
        "auto", description="Where models run; `cuda` refuses to start without a working GPU"
    )
    batch_size: int = Field(64, ge=1, le=1024, description="The most images in one run of the model")
    batch_delay_ms: float = Field(
        2.0, ge=0, le=1000, description="How long a worker lets more images come where some wait in RabbitMQ, in ms"
    )
    prefetch: int = Field(256, ge=1, le=10_000, description="Messages one worker holds unacknowledged")
    shadow_share: float = Field(
        0.0, ge=0, le=1, description="Share of interactive traffic that the challenger sees too; 0 is off"
    )
    shard_images: int = Field(1024, ge=1, le=100_000, description="The most images in one slice of a job")
    delivery_limit: int = Field(20, ge=1, le=100, description="Deliveries of a message before it is a dead letter")
    lease_s: float = Field(15.0, ge=0.2, le=3600, description="Seconds after which a dead process's work is taken over")
    handover_s: float = Field(
        600.0,
        ge=1,
        le=1500,
        description="Seconds after which a training run re-queues itself (below RabbitMQ's 30 min)",
    )
    checkpoint_s: float = Field(60.0, ge=0, le=3600, description="The most training, in seconds, that a crash can cost")
    queue_limit: int = Field(1_000_000, ge=1, description="Messages in one queue before publishing is refused")
    umask: str = Field(
        "077",
        pattern=r"^0?[0-7]{3}$",
        description="Permissions that new files do not get, as of `umask`; 007 lets a group share them",
    )
    max_archive_bytes: int = Field(64 * 2**30, ge=1, description="The largest archive, in bytes")
    max_members: int = Field(1_000_000, ge=1, description="The most entries in one archive")
    max_image_bytes: int = Field(32 * 2**20, ge=1, description="The largest image file, in bytes")
    max_image_pixels: int = Field(50_000_000, ge=1, description="The largest image, in pixels")
    max_ratio: float = Field(200.0, ge=1, description="The highest compression ratio of one archive entry")
    threads: int = Field(
        0, ge=0, le=1024, description="Threads that train, and processes that decode an archive; 0 takes one a core"
    )
    device: Literal["auto", "cuda", "cpu"] = Field("auto", description="Where training runs")
    auto_promote: bool = Field(
        True, description="Let the gate promote a new model that is better; `false`: only a person promotes"
    )
    commit: str = Field("", description="The commit that an image was built from, for model cards; else git is asked")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="The least that is logged")
    log_format: Literal["text", "json"] = Field("text", description="Log lines for people or for programs")

    @model_validator(mode="before")
    @classmethod
    def _read_secrets(cls, values: dict[str, object]) -> dict[str, object]:
        """Reads what a variable `…_FILE` names: orchestrators mount secrets as files."""
        for name in ("broker_url", "token"):
            file = values.get(f"{name}_file")
            if not file:
                continue
            if values.get(name):
                raise ValueError(f"{variable(name)} and {variable(name)}_FILE are both set; expected one of them")
            try:
                values[name] = Path(str(file)).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
                raise ValueError(f"{variable(name)}_FILE: {file}: {why}") from None
            if not values[name]:
                raise ValueError(f"{variable(name)}_FILE: {file}: it is empty")
        return values

    @field_validator("allowed_roots", mode="before")
    @classmethod
    def _split_roots(cls, value: object) -> object:
        return tuple(Path(part) for part in value.split(os.pathsep) if part) if isinstance(value, str) else value

    @field_validator("allowed_buckets", mode="before")
    @classmethod
    def _split_buckets(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _split_networks(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return tuple(ip_network(part.strip(), strict=False) for part in value.split(",") if part.strip())
        except ValueError:
            raise ValueError("expected addresses or networks, as 10.0.0.7,192.168.0.0/16") from None

    @field_validator("broker_url")
    @classmethod
    def _known_broker(cls, value: str) -> str:
        if not value.startswith(("sqlite:///", "amqp://", "amqps://")):
            raise ValueError("expected sqlite:///PATH, amqp://… or amqps://…")
        if not value.startswith("sqlite"):
            try:
                parts = urlsplit(value)
                user, at, hosts = parts.netloc.rpartition("@")
                for host in hosts.split(","):
                    _ = urlsplit(f"{parts.scheme}://{user}{at}{host}").port
            except ValueError:  # its text may hold the password, which a `/` turns into a port
                raise ValueError("expected a whole URL, with a number from 0 to 65535 as its port") from None
        return value

    @field_validator("store_url")
    @classmethod
    def _known_store(cls, value: str) -> str:
        scheme, _, place = value.partition(":")
        if not ((scheme == "file" and place.strip("/")) or re.match("s3://[^/]", value)):
            raise ValueError("expected file:PATH or s3://BUCKET/PREFIX")
        if scheme == "s3" and importlib.util.find_spec("s3fs") is None:
            raise ValueError("expected the extra `s3` to be installed for it: pip install '.[s3]'")
        return value

    @field_validator("token")
    @classmethod
    def _check_token(cls, value: str | None) -> str | None:
        return None if value is None else check_secret(value)

    @field_validator("tokens", mode="before")
    @classmethod
    def _parse_tokens(cls, value: object) -> object:
        return parse_tokens(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _token_beyond_loopback(self) -> Self:
        if self.host not in LOOPBACK and not self.access_tokens:
            raise ValueError(
                f"GENDERLINE_HOST is {self.host}, which others can reach: set GENDERLINE_TOKEN (8 characters or more), "
                "or bind to 127.0.0.1"
            )
        return self

    @property
    def access_tokens(self) -> tuple[AccessToken, ...]:
        """Every token that opens the dashboard; none where nothing is guarded."""
        return (*([AccessToken(ADMIN, "full", self.token)] if self.token else []), *self.tokens)

    @property
    def cores(self) -> int:
        """Cores this process may use, by affinity and by its cgroup's quota."""
        return available_cores()


def load_settings() -> Settings:
    """Reads the environment.

    Raises:
        SettingsError: with a line for every variable that is wrong.
    """
    try:
        return Settings()
    except ValidationError as error:
        lines = []
        for fault in error.errors():
            expected = fault["msg"].removeprefix("Value error, ")
            field = str(fault["loc"][0]) if fault["loc"] else None
            if field is None:
                lines.append(expected)
            elif field in SECRETS:
                lines.append(f"{variable(field)}: {expected} (what was found is not shown: it may be a secret)")
            else:
                lines.append(f"{variable(field)}: {expected} (found {short_repr(fault['input'])})")
        raise SettingsError("\n".join(lines)) from None


def unknown_settings(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Returns a warning for each variable that looks like a setting and is none; nothing in a supervised process.

    What started that one has the same environment, and has warned.
    """
    if SUPERVISED in environment:
        return []
    known = [name.upper() for name in Settings.model_fields]
    warnings = []
    for name in sorted(environment):
        # As pydantic reads them: in whatever letters.
        prefix, ours, rest = name.upper().partition("GENDERLINE_")
        if prefix or not ours or rest in known or _OF_KUBERNETES.search(name):
            continue
        close = difflib.get_close_matches(rest, known, n=1)
        hint = f"did you mean {variable(close[0])}?" if close else "`genderline settings` lists those there are"
        warnings.append(f"unknown setting {name}; {hint}")
    return warnings


def variable(name: str) -> str:
    """Returns the environment variable of the field `name`."""
    return f"GENDERLINE_{name.upper()}"
