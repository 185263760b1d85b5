"""`prdp reward-server`: serves any reward over HTTP, on loopback unless told otherwise."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Annotated, Any

from prdp.configuration.bounds import broken_rules
from prdp.configuration.key_help import flat_help
from prdp.rewards.base import Reward
from prdp.rewards.http_server import RewardServer
from prdp.rewards.wire import MIB, Limits
from prdp.support.errors import ConfigError, StartError, start_up_checks
from prdp.support.rules import AnyText, Count, Rule, Text, between
from prdp.support.suggest import did_you_mean

_MIB = Rule(lambda value: 0 < value < 4096, "above 0 and below 4096")


@dataclass(frozen=True)
class ServerConfig:
    """Keys of the command besides those of the reward."""

    host: AnyText = "127.0.0.1"
    """Address to listen on; another than loopback needs a token."""
    port: Annotated[int, between(0, 65535)] = 8080
    """0 takes a free one."""
    token_variable: Text = "PRDP_REWARD_TOKEN"
    """Environment variable that holds the token that clients must show; not set: none is asked for."""
    max_request_mib: Annotated[float, _MIB] = 64.0
    """Larger bodies are refused."""
    max_images: Count = 256
    """Of one request; more are refused."""
    threads: Count = 1
    """CPU threads."""


def main(arguments: Sequence[str]) -> int:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(
        prog="prdp reward-server",
        usage="prdp reward-server reward=<option> [reward.argument=value ...] [port=8080] [host=127.0.0.1]",
        description="Serve a reward over HTTP, for reward=remote.",
        epilog=f"keys besides those of the reward:\n{flat_help(ServerConfig)}\n\n"
        "Of a reward, its arguments: prdp train --help reward.hpsv2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("overrides", nargs="+", metavar="key=value")
    words = parser.parse_args(arguments).overrides
    config, reward_words = _sorted(words)
    token = os.environ.get(config.token_variable, "").strip()
    check_address(config.host, token, config.token_variable)
    reward = _built(reward_words, config.threads)
    limits = Limits(request_bytes=int(config.max_request_mib * MIB), images=config.max_images)
    try:
        server = RewardServer(reward, config.host, config.port, token, limits)
    except OSError as error:
        raise StartError(f"host={config.host} port={config.port}: cannot listen there: {error}") from error
    signal.signal(signal.SIGTERM, _interrupt)
    with server:
        asks = "asks for a token" if token else "asks for no token"
        print(f"'{reward.name}' version '{reward.version}' at {server.url}, which {asks}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0


def check_address(host: str, token: str, token_variable: str) -> None:
    """Refuse to open a server to the network that answers anybody.

    Raises:
        ConfigError: a host that does not resolve, or one beyond loopback without a token.
    """
    try:
        addresses = {entry[4][0] for entry in socket.getaddrinfo(host or "0.0.0.0", None)}
    except OSError as error:
        raise ConfigError(f"host={host}: no such address: {error}") from None
    outside = sorted(str(one) for one in addresses if not ipaddress.ip_address(str(one).partition("%")[0]).is_loopback)
    if outside and not token:
        raise ConfigError(
            f"host={host}: listens on {', '.join(outside)}, which others can reach; set the environment variable "
            f"{token_variable} to a secret that clients must show, or leave host=127.0.0.1"
        )


def _sorted(words: Sequence[str]) -> tuple[ServerConfig, list[str]]:
    """The server's own keys, and the words that compose the reward."""
    own: dict[str, Any] = {}
    reward_words = []
    fields = ServerConfig.__dataclass_fields__
    for word in words:
        key, _, text = word.partition("=")
        if key.lstrip("+~").split(".")[0].split("@")[0] == "reward":
            reward_words.append(word)
            continue
        if key not in fields:
            known = ["reward", *fields]
            hint = did_you_mean(key, known) or f"; it takes {', '.join(known)}"
            raise ConfigError(f"{word}: unknown key '{key}'{hint}")
        kind: Any = type(fields[key].default)
        try:
            own[key] = kind(text)
        except ValueError:
            raise ConfigError(f"{word}: must be {'an integer' if kind is int else 'a number'}") from None
    if not any(word.partition("=")[0] == "reward" for word in reward_words):
        raise ConfigError("reward=<option> is missing, such as reward=shapes_judge; `prdp train --help` lists them")
    config = ServerConfig(**own)
    _, problems = broken_rules(config)
    if problems:
        raise ConfigError("\n".join(problems))
    return config, reward_words


def _built(words: Sequence[str], threads: int) -> Reward:
    """The reward that the words compose, checked first."""
    from prdp.cluster.process_threads import apply_threads
    from prdp.configuration.compose import Composer
    from prdp.rewards import build_reward, check_reward

    apply_threads(threads)
    with Composer(words) as composer:
        section = composer.jobs()[0].config.reward
    check_reward("reward", section)
    with start_up_checks("reward"):
        return build_reward(section)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
