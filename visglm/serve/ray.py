"""The same application as replicas under Ray Serve: on this machine, or on as many as a cluster has."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..cluster import LOCAL, Recipe, Share, own_error
from ..errors import ConfigError, require
from ..settings import Rule, check
from .settings import Settings

NAME = "visglm"
ONGOING = 1000  # that one replica is sent at most: its own limits, which tell the client when to come again, are lower
RULES: Mapping[str, Rule] = {
    "replicas": Rule(int, 1, 4096),
    "max_replicas": Rule(int, 1, 4096, optional=True),
    "target_ongoing": Rule(int, 1, ONGOING),
}


@dataclass(frozen=True)
class Replicas:
    """How many there are.

    Args:
        replicas: copies of the model, each with a process of its own and, where there are GPUs, one of these.
        max_replicas: up to so many come where more is asked, and go again; None for a fixed number.
        target_ongoing: requests of a replica that its number is held to.
    """

    replicas: int = 1
    max_replicas: int | None = None
    target_ongoing: int = 8

    def __post_init__(self) -> None:
        check(self, RULES)
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ConfigError(f"max_replicas must be at least replicas, {self.replicas}; got {self.max_replicas}.")

    @property
    def most(self) -> int:
        return self.max_replicas or self.replicas

    @property
    def options(self) -> dict[str, Any]:
        """As Ray Serve takes them."""
        if self.max_replicas is None:
            return {"num_replicas": self.replicas}
        return {
            "autoscaling_config": {
                "min_replicas": self.replicas, "initial_replicas": self.replicas, "max_replicas": self.max_replicas,
                "target_ongoing_requests": self.target_ongoing,
            }
        }  # fmt: skip


class Replica:
    """One process with a model of its own. Ray makes it there, and asks it for its application.

    Args:
        recipe: of the model. name, adapters: as `Names` has them. settings: what the operator decided.
    """

    def __init__(self, recipe: Recipe, name: str | None, adapters: Mapping[str, str], settings: Settings):
        from .names import Names
        from .running import log_to_stderr
        from .service import Service

        log_to_stderr()
        vlm = recipe.load()
        self.service = Service(vlm, Names(vlm, name, adapters), settings)

    def __serve_build_asgi_app__(self) -> Any:
        from .application import create_app

        return create_app(self.service)

    async def check_health(self) -> None:
        """Ray asks; one whose engine is dead gets a successor."""
        if self.service.has_failed:
            raise RuntimeError("the engine has failed")


def run(
    recipe: Recipe, name: str | None, adapters: Mapping[str, str], settings: Settings, replicas: Replicas,
    where: tuple[str, int], share: Share, address: str, is_up: Callable[[], None],
) -> None:  # fmt: skip
    """Answer until SIGTERM or Ctrl-C, then let the replicas end what they have begun.

    Args:
        where: host and port that Ray's proxies listen on: of this machine, or of every one of the cluster.
        share: what a replica takes. address: of the cluster. is_up: called once they answer.

    Raises:
        EngineError: a replica cannot start.
    """
    serve, schema = require("ray", "ray.serve", "ray.serve.schema")
    ended = threading.Event()
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    drain = settings.limits.drain_seconds
    for each in ("ray", "ray.serve", "ray._private"):
        logging.getLogger(each).setLevel(logging.WARNING)
    try:
        serve.start(
            proxy_location="HeadOnly" if address == LOCAL else "EveryNode",
            http_options={"host": where[0], "port": where[1]},
            logging_config=schema.LoggingConfig(enable_access_log=False, log_level="WARNING"),
        )
        deployment = serve.deployment(
            serve.ingress()(Replica), name=NAME, max_ongoing_requests=ONGOING,
            graceful_shutdown_timeout_s=drain, graceful_shutdown_wait_loop_s=1, health_check_period_s=5,
            ray_actor_options={"num_cpus": share.num_cpus, "num_gpus": share.num_gpus},
            logging_config=schema.LoggingConfig(enable_access_log=False, log_level="WARNING"), **replicas.options,
        )  # fmt: skip
        try:
            serve.run(deployment.bind(recipe, name, dict(adapters), settings), name=NAME, route_prefix="/")
        except (RuntimeError, ValueError) as error:
            # What a replica said stands in its state alone.
            told = serve.status().applications.get(NAME)
            states = [one.message for one in told.deployments.values()] if told else []
            raise own_error(RuntimeError("\n".join([str(error), *states]))) from None
        is_up()
        ended.wait()
        serve.delete(NAME)  # waits for what was begun; a shutdown alone would end the proxies under it
        if address == LOCAL:
            serve.shutdown()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def free_port(host: str, port: int) -> int:
    """A port that nobody has; Ray would go on without telling."""
    from .listening import bind

    sock: socket.socket = bind(host, port)
    try:
        return sock.getsockname()[1]
    finally:
        sock.close()
