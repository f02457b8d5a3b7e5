"""Durable, replicated log streams for NATS: a Liftbridge-compatible server."""

from importlib.metadata import version

__version__ = version("liftbridge")
