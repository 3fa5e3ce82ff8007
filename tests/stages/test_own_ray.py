"""The Ray that a stage starts for itself: nobody else can reach it, and nothing of it stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys

PROGRAM = """
import ipaddress, json, os, psutil
before = dict(os.environ)
from dtg_ray.stages.cluster import ALONE, session
from dtg_ray.stages.runtime import Options
def refusal():
    from ray.util.state import get_actor
    try:
        return get_actor("0" * 32, timeout=10)
    except Exception as error:
        return str(error)
with session(Options(cpus=1)):
    import ray
    dashboard = ray.get(ray.remote(refusal).remote())
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    places = [one.laddr for process in processes for one in process.net_connections("tcp") if one.status == "LISTEN"]
    hosts = [ipaddress.ip_address(place.ip) for place in places]
    open_ = sorted({str(host) for host in hosts if not (getattr(host, "ipv4_mapped", None) or host).is_loopback})
left = [name for name in ALONE if os.environ.get(name) != before.get(name)]
print(json.dumps({"ports": len(places), "open": open_, "dashboard": dashboard, "left": left}))
"""


def test_listens_on_loopback_alone_and_leaves_no_setting_for_others() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["RAY_API_SERVER_ADDRESS"] = "http://another.cluster:8265"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=200, check=False, env=environment
    )
    assert not done.returncode, done.stderr
    said = json.loads(done.stdout)
    assert said["ports"] >= 6
    assert said["open"] == []
    assert said["left"] == []
    assert "http://127.0.0.1:0" in said["dashboard"], "Ray Train asks nobody, not another cluster, and does not wait"
