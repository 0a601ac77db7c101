"""A plug-in file with a network; that network is one of the package under another name."""

from __future__ import annotations

from sfuda_bench.networks.registry import NetworkSpec, register_network
from sfuda_bench.networks.tiny import build

register_network(NetworkSpec("tiny_of_a_file", version=1, builder=build, description="for tests"))
