"""What the Ray executor does without a cluster; tests/deploy/test_ray_nodes.py has the rest."""

from __future__ import annotations

import sys

import pytest

from plugserve import ConfigError
from plugserve.plugins.executors.ray_cluster import RayCluster
from plugserve.plugins.executors.ray_rank import interface_of, versions


def test_without_ray_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"needs Ray: pip install 'plugserve\[ray\]'$"):
        RayCluster(None, 2, "auto")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="interfaces are looked up on Linux")
def test_the_interface_is_the_one_with_the_nodes_address():
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.77") is None


def test_nodes_agree_on_python_plugserve_and_torch():
    assert set(versions()) == {"python", "plugserve", "torch"}
