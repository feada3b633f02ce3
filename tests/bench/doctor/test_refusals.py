"""A server that refuses: one trouble, counted once."""

from __future__ import annotations

from dataclasses import replace

from prefixlab.bench.doctor.checks import diagnose
from prefixlab.bench.doctor.diagnosis import Status
from prefixlab.bench.doctor.evidence import Evidence
from tests.bench.doctor.patients import a_result, healthy_table, named


def test_requests_that_are_refused_are_failures_and_not_saturation_as_well() -> None:
    result = a_result(healthy_table(rate=8.0, concurrency=100), open_loop=True)
    assert result.saturation is not None and not result.saturation.behind
    refused = replace(
        result.saturation, refused={"answered 503": round(0.12 * result.saturation.num_arrived)}
    )
    check = named(
        diagnose(Evidence(result=replace(result, saturation=refused), ignores_eos=True)), "saturation"
    )
    assert check.status is Status.UNKNOWN and check.figure.endswith("see failures")
    behind = replace(result, saturation=replace(refused, behind=True))
    assert named(diagnose(Evidence(result=behind, ignores_eos=True)), "saturation").status is Status.BAD
