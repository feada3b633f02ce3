"""Can this number be trusted? All checks of one run, in the order of the page. Pure.

Owns the list. Each check is in the file of its idea: `client.py`, `load.py`, `answers.py`, `cache.py`.

Invariant: the same evidence gives the same diagnosis; no check asks a server or a clock.
"""

from __future__ import annotations

from prefixlab.bench.doctor.answers import answer_checks
from prefixlab.bench.doctor.cache import cache_checks
from prefixlab.bench.doctor.client import client_checks
from prefixlab.bench.doctor.diagnosis import Diagnosis
from prefixlab.bench.doctor.evidence import Evidence
from prefixlab.bench.doctor.load import load_checks


def diagnose(evidence: Evidence) -> Diagnosis:
    """Of a run of which nothing succeeded, too."""
    return Diagnosis(
        (
            *answer_checks(evidence),
            *cache_checks(evidence),
            *load_checks(evidence),
            *client_checks(evidence),
        )
    )
