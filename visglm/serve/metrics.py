"""Numbers for Prometheus: how many, how long, how much. Nothing of what was said is in them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..reply import Reply

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "visglm_requests", "Requests by route and status", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "visglm_request_seconds", "From request to the last byte", ["route"], buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.first_token = Histogram(
            "visglm_first_token_seconds", "From the pictures being known to the first token", buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.tokens = Counter("visglm_tokens", "Tokens of prompts and answers", ["kind"], registry=self.registry)
        self.in_flight = Gauge("visglm_requests_in_flight", "Requests inside", registry=self.registry)
        self.cancelled = Counter(
            "visglm_answers_cancelled", "Answers whose reader left before the end", registry=self.registry
        )

    def count(self, reply: Reply) -> None:
        """An answer that has ended."""
        self.tokens.labels("prompt").inc(reply.usage.prompt_tokens)
        self.tokens.labels("completion").inc(sum(one.usage.completion_tokens for one in (reply, *reply.others)))
        self.first_token.observe(reply.timings.first_token)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self.registry)
