"""Which proxies there are, and sets of them that go by a name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nas.errors import ConfigError, PluginError
from nas.plugins import find

from .base import Proxies, Proxy

SETS: Mapping[str, tuple[str, ...]] = {
    "default": ("flops", "nwot", "jacob_cov"),
    "az_nas": ("expressivity", "progressivity", "trainability", "flops"),
}
"""Ensembles by name. The default is the best of many on published scores for 18 tasks (NAS-Bench-Suite-Zero), and joins
what sees size, activations and gradients; `benchmarks/proxies.py` measures what it is worth here."""


def named(names: str | Iterable[str]) -> Proxies:
    """Proxies by name: those of entry points, the sets above, or `package.module:Class`, then called `Class`.

    Commas part the names in a string.

    Raises ConfigError for none or one twice, PluginError for an unknown one.
    """
    listed = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    flat = [one for name in listed for one in SETS.get(name, (name,))]
    short = [name.rpartition(":")[2] for name in flat]
    twice = next((name for name in short if short.count(name) > 1), None)
    if twice or not flat:
        what = f"got {twice!r} twice" if twice else "got none"
        raise ConfigError(f"proxies: expected different names, {what} in {','.join(listed) or 'an empty list'}")
    return {name: _proxy(reference) for name, reference in zip(short, flat, strict=True)}


def _proxy(name: str) -> Proxy:
    target = find("proxies", name)
    if not (isinstance(target, type) and issubclass(target, Proxy)):
        raise PluginError(f"proxy {name!r} is no subclass of nas.evaluators.proxies.base.Proxy; got {target!r}")
    return target()
