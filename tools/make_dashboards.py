"""Makes the Grafana dashboards in deploy/grafana/dashboards from the tables in dashboard_panels.py.

python tools/make_dashboards.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dashboard_panels import PLUGSERVE, VLLM, Panel

FOLDER = Path(__file__).parents[1] / "deploy" / "grafana" / "dashboards"
WIDTH = 24


def dashboard(uid: str, title: str, rows: dict[str, list[Panel]], metric: str) -> dict[str, Any]:
    """A dashboard in Grafana's JSON model. metric is one whose label model_name lists the models."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row, members in rows.items():
        panels.append({"type": "row", "title": row, "id": len(panels) + 1, "gridPos": at(0, y, WIDTH, 1), "panels": []})
        x, y = 0, y + 1
        for panel in members:
            height = 4 if panel.kind == "stat" else 8
            if x + panel.width > WIDTH:
                x, y = 0, y + height
            panels.append(shown(panel, len(panels) + 1, at(x, y, panel.width, height)))
            x += panel.width
        y += height
    return {
        "uid": uid,
        "title": title,
        "tags": ["plugserve"],
        "timezone": "",
        "schemaVersion": 39,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "graphTooltip": 1,
        "templating": {
            "list": [source(), variable("model", metric, "model_name"), variable("instance", metric, "instance")]
        },
        "panels": panels,
    }


def at(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def shown(panel: Panel, id: int, place: dict[str, int]) -> dict[str, Any]:
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "expr": query,
            "legendFormat": legend,
            "exemplar": panel.has_exemplars and index == len(panel.queries) - 1,
        }
        for index, (legend, query) in enumerate(panel.queries)
    ]
    options: dict[str, Any] = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
    if panel.kind == "stat":
        options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "none", "textMode": "auto"}
    return {
        "id": id,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": options,
        "targets": targets,
    }


def source() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}


def variable(name: str, metric: str, label: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": f"label_values({metric}, {label})", "refId": name},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def dashboards() -> dict[str, str]:
    """The text of each file."""
    made = {
        "plugserve.json": dashboard("plugserve", "plugserve", PLUGSERVE, "plugserve_engine_up"),
        "vllm-names.json": dashboard("plugserve-vllm", "vLLM's names", VLLM, "vllm:num_requests_running"),
    }
    return {name: json.dumps(one, indent=1) + "\n" for name, one in made.items()}


if __name__ == "__main__":
    for name, text in dashboards().items():
        (FOLDER / name).write_text(text)
