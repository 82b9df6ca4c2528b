"""Seeded runs that are killed at random points end with the tables of an undisturbed one."""

from pathlib import Path

import pytest
from chaos_campaign import campaign
from chaos_runs import FAULTS
from fakes import folder_in_memory

pytestmark = pytest.mark.slow
tmp_path = pytest.fixture(folder_in_memory)
SEEDS = range(8)
"""`benchmarks/chaos.py` does 20."""


def test_disturbed_runs_give_the_tables_of_an_undisturbed_one(tmp_path: Path) -> None:
    totals = campaign(SEEDS, tmp_path)
    assert totals.unequal == []
    assert (totals.rows_lost, totals.rows_doubled) == (0, 0)
    assert totals.untouched == [], "every run was struck"
    assert set(totals.struck) == set(FAULTS)
    assert totals.requests_failed > 0
