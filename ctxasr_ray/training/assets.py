"""The models that the package ships: a finished run copied into `assets/`, its digests beside it.

`python -m ctxasr_ray.training.assets RUN NAME`, after `ctxasr train NAME`.
"""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Final

from ctxasr_ray.training.publish import digests

ASSETS: Final = Path(__file__).parents[1] / "assets"
DIGESTS: Final = "digests.json"
_PLACED: Final = re.compile(r'"[^"]*/ctxasr_ray/assets/(\w+)"')
"""A shipped model in a recipe, wherever the checkout of its training lay."""


def ship(run: Path, name: str, assets: Path = ASSETS) -> None:
    """Replaces an asset by the model of a finished run and writes its digests and its dev figures.

    Args:
        run: Directory of a finished `training.loop.run`.
        name: Of the asset, for example "ctc".
        assets: Where the assets lie.

    Raises:
        ValueError: the run is not finished.
    """
    result = run / "training.json"
    if not result.is_file():
        raise ValueError(f"{run} holds no finished training ({result} is missing); run `ctxasr train` to its end.")
    target = assets / name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(run / "model", target)
    shipped = {"training": json.loads(result.read_text("utf-8")), "files": digests(target)}
    del shipped["training"]["digests"]
    path = assets / DIGESTS
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    known[name] = shipped
    text = json.dumps(known, indent=2, sort_keys=True)
    path.write_text(_PLACED.sub(r'"asset:\1"', text) + "\n", "utf-8")


if __name__ == "__main__":
    ship(Path(sys.argv[1]), sys.argv[2])
