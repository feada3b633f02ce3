"""The dashboard shows what our server tells, and Grafana can read it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.harness import serving
from tests.server.kv_subscriber import publishing

DASHBOARD = Path(__file__).parents[2] / "docs/grafana/prefixlab.json"
OF_PROMETHEUS = {"instance", "job"}
"""Labels it adds to what it scrapes."""
NAME = re.compile(r"prefixlab:[a-z0-9_]+")


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return data


@pytest.fixture(scope="module")
def told() -> dict[str, set[str]]:
    """Name of a sample → its labels, of a worker that offers all it can."""
    samples: dict[str, set[str]] = {}
    with publishing() as publisher, serving(publisher=publisher) as served:
        for family in text_string_to_metric_families(served.client.get("/metrics").text):
            for sample in family.samples:
                samples.setdefault(sample.name, set()).update(sample.labels)
    return samples


def expressions(dashboard: dict[str, Any]) -> Iterator[str]:
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


def test_every_metric_in_it_is_one_that_the_server_tells(
    dashboard: dict[str, Any], told: dict[str, set[str]]
) -> None:
    named = {name for expression in expressions(dashboard) for name in NAME.findall(expression)}

    assert named and named <= set(told)


def test_every_metric_of_the_server_is_shown_somewhere(
    dashboard: dict[str, Any], told: dict[str, set[str]]
) -> None:
    named = {name for expression in expressions(dashboard) for name in NAME.findall(expression)}
    shown = {name.removesuffix("_bucket") for name in named}

    # Of a histogram its buckets are shown; `_created` says when counting began.
    left = {re.sub(r"_(bucket|sum|count)$", "", name) for name in told if not name.endswith("_created")}
    assert left <= shown


def test_every_label_in_it_is_one_of_its_metric(dashboard: dict[str, Any], told: dict[str, set[str]]) -> None:
    for expression in expressions(dashboard):
        of_expression = set.union(*(told[name] for name in NAME.findall(expression)))
        for grouped in re.findall(r"by \(([^)]*)\)", expression):
            assert set(re.split(r",\s*", grouped)) <= of_expression | OF_PROMETHEUS, expression
        for name, selector in re.findall(r"(prefixlab:[a-z0-9_]+)\{([^}]*)\}", expression):
            assert set(re.findall(r"(\w+)\s*[=!]~?", selector)) <= told[name] | OF_PROMETHEUS, expression


def test_every_expression_asks_only_the_workers_that_are_chosen(dashboard: dict[str, Any]) -> None:
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            metrics = NAME.findall(target["expr"])
            assert target["expr"].count('instance=~"$worker"') == len(metrics) > 0, target["expr"]
            assert target["expr"].count("(") == target["expr"].count(")")


def test_legends_name_labels_that_are_left(dashboard: dict[str, Any]) -> None:
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                grouped = re.findall(r"by \(([^)]*)\)", target["expr"])
                assert label in " ".join(grouped).split() or (not grouped and label in OF_PROMETHEUS)


def test_panels_have_ids_of_their_own_and_all_that_grafana_asks_for(dashboard: dict[str, Any]) -> None:
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    assert {"uid", "title", "schemaVersion", "templating", "time", "panels"} <= set(dashboard)
    for panel in dashboard["panels"]:
        assert panel["title"] and set(panel["gridPos"]) == {"x", "y", "w", "h"}
        if panel["type"] != "row":
            assert panel["description"] and panel["targets"] and panel["fieldConfig"]["defaults"]["unit"]
            refs = [target["refId"] for target in panel["targets"]]
            assert len(set(refs)) == len(refs)
            sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
            assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)


def test_panels_lie_side_by_side_within_the_grid(dashboard: dict[str, Any]) -> None:
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y, (one, other)


def test_the_data_source_and_the_workers_are_chosen_by_who_looks(dashboard: dict[str, Any]) -> None:
    kinds = {variable["name"]: variable["type"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)\}?", " ".join(map(json.dumps, dashboard["panels"]))))

    assert kinds == {"datasource": "datasource", "worker": "query"}
    assert {name for name in used if not name.startswith("__")} == set(kinds)
