"""20 seeded runs that lose workers, LM actors, nodes and drivers at random points, 8 of them on an S3 that fails.

The runs are those of `tests/chaos_runs.py`: fake stages on a real Ray cluster of several raylets, every table compared
with an undisturbed inline run. Faults, moments and the store follow from the seed. `make chaos`, by hand; name seeds to
do only those: `python benchmarks/chaos.py 0 1 2`.
"""

import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from figures import Figure, emit

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from chaos_campaign import campaign  # of the tests, found by the line above
from fakes import MEMORY

SEEDS: Final = range(20)


def main(seeds: list[int]) -> int:
    """Runs them, prints the figures, and returns 1 where a promise was broken."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line per request of the S3 server
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="ctxasr-", dir=MEMORY) as folder:
        totals = campaign(seeds, Path(folder))
    counters: dict[str, int | float | str] = {
        "runs": totals.runs,
        "drivers": totals.drivers,
        "s3_requests_failed": totals.requests_failed,
        "seconds": round(time.perf_counter() - start),
        **{f"killed_{kind}": number for kind, number in sorted(totals.struck.items())},
    }
    figures = [
        Figure(name="chaos_faults_survived", value=totals.struck.total(), unit="faults", counters=counters),
        Figure(name="chaos_shards_redone", value=totals.shards_redone, unit="calls"),
        Figure(name="chaos_rows_lost", value=totals.rows_lost, goal="<= 0", unit="rows"),
        Figure(name="chaos_rows_doubled", value=totals.rows_doubled, goal="<= 0", unit="rows"),
        Figure(name="chaos_runs_unequal", value=len(totals.unequal), goal="<= 0", unit="runs"),
        Figure(name="chaos_runs_untouched", value=len(totals.untouched), goal="<= 0", unit="runs"),
    ]
    emit(figures)
    return int(any(figure.met is False for figure in figures))


if __name__ == "__main__":
    sys.exit(main([int(word) for word in sys.argv[1:]] or list(SEEDS)))
