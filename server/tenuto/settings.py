"""Every setting once: its name, default, unit and help. The only reader of the environment."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from tenuto.wire.bounds import Bounds


class Settings(BaseSettings):
    """Each is `TENUTO_<NAME>` in the environment; `tenuto serve` has flags for the first ones."""

    model_config = SettingsConfigDict(
        env_prefix="TENUTO_", env_nested_delimiter="__", frozen=True, extra="ignore"
    )

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    registry: Path | None = Field(
        None, description="registry file; else ./model_registry.yaml, else the demo's own"
    )
    models: str | None = Field(
        None, description="ids to load, separated by commas; else every `load: eager` model"
    )
    api_key_file: Path | None = Field(None, description="file with one API key per line")
    admin_key_file: Path | None = Field(None, description="file with one admin key per line")
    watch: bool = Field(False, description="read the registry again whenever its file changes")
    admin_remote: bool = Field(False, description="allow admin routes from other hosts")
    no_auth: bool = Field(False, description="allow an open server on any address")
    cors_origins: list[str] = Field(default=[], description="origins that browsers may call from")
    strict_params: bool = Field(False, description="refuse parameters that nothing acts upon")
    share_prefix_cache: bool = Field(
        True, description="false: one key's prompt is no cache hit for another"
    )
    gpus: str | None = Field(
        None, description="memory of the GPUs, such as 141GiB or 80GiBx2; else as their driver says"
    )
    host_memory: str | None = Field(
        None, description="memory for the weights of sleeping models, such as 256GiB; else 80 %"
    )
    turn_s: float = Field(
        10, ge=0, description="seconds that a busy model keeps its place while another is wanted"
    )
    max_wait_s: float = Field(300, gt=0, description="seconds that a request waits for its model")
    max_waiting: int = Field(1024, ge=1, description="requests that wait for one model")
    cluster: str | None = Field(
        None, description="Ray cluster with the models: host:port of its head; local makes one"
    )
    node_ip: str | None = Field(
        None, description="address by which the cluster knows this host; else as Ray finds it"
    )
    drain_s: float = Field(30, ge=0, description="seconds that running requests get at shutdown")
    request_timeout_s: float = Field(60, gt=0, description="seconds in which a request arrives")
    keep_alive_s: float = Field(15, gt=0, description="seconds of silence before an SSE comment")
    state_dir: Path = Field(
        Path("~/.local/state/tenuto"), description="folder of the database with keys and usage"
    )
    database_url: str | None = Field(
        None,
        repr=False,
        description="URL of a Postgres with keys and usage, for several servers; else SQLite in "
        "the state folder",
    )
    redis_url: str | None = Field(
        None,
        repr=False,
        description="URL of a Redis that counts limits for several servers; else this process's "
        "memory",
    )
    usage_days: int | None = Field(
        None, ge=1, description="days after which single requests are forgotten; their sums stay"
    )
    cache_dir: Path = Field(Path("~/.cache/tenuto"), description="folder for rewritten checkpoints")
    tls_cert: Path | None = Field(None, description="file with the certificate chain, PEM")
    tls_key: Path | None = Field(None, description="file with its private key, PEM")
    log_format: Literal["text", "json"] = Field("text", description="form of the log's lines")
    slow_s: float = Field(
        60, gt=0, description="seconds from which a request's log line is a warning"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="log level")
    bounds: Bounds = Field(default=Bounds(), description="limits of a request")
