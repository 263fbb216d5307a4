"""Configuration: the default config, and the parts of a run that a config describes."""

from afw_jax.config.defaults import default_config

__all__ = ['default_config']
