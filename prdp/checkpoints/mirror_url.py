"""What is wrong with the URL of a mirror, told without asking a network and without showing credentials."""

from __future__ import annotations

from urllib.parse import urlsplit

from prdp.support.errors import ConfigError

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""Scheme -> extra of this package that brings what fsspec needs for it."""


def url_problem(url: str) -> str | None:
    """What is wrong with a URL as a text, in a line that never shows credentials; None when nothing is."""
    key = "checkpoint.mirror"
    parts = urlsplit(url)
    if any("@" in urlsplit(link).netloc for link in url.split("::")) or parts.query or parts.fragment:
        return (
            f"{key}: a {parts.scheme or 'mirror'} URL with user, password or query was given; it would stand in logs "
            "and saved configurations. Leave them out: credentials are taken from the environment"
        )
    if "::" in url or not parts.scheme or not (parts.netloc + parts.path).strip("/"):
        return f"{key}={url}: must be null or a URL with a folder, such as s3://bucket/run or file:///shared/run"
    return None


def check_url(url: str) -> None:
    """Refuse a URL that is none, that holds secrets, or that needs a package which is not installed. Asks no network.

    Raises:
        ConfigError: naming what is wrong, never the credentials.
    """
    problem = url_problem(url)
    if problem is not None:
        raise ConfigError(problem)
    from fsspec import available_protocols, get_filesystem_class

    scheme = urlsplit(url).scheme
    if scheme not in available_protocols():
        raise ConfigError(f"checkpoint.mirror={url}: fsspec knows no {scheme}://; expected s3://, gs://, file:// ...")
    try:
        get_filesystem_class(scheme)
    except ImportError as error:
        cure = f"pip install 'prdp[{EXTRAS[scheme]}]'" if scheme in EXTRAS else str(error)
        raise ConfigError(f"checkpoint.mirror={url}: a package is missing for {scheme}://: {cure}") from error
