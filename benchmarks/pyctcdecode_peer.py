"""The pyctcdecode side of `ctc_search.py`, in its own environment because it needs numpy below 2.

Arguments: an npz file of (T, V) log-probs by number, the labels as JSON, pyctcdecode's two thresholds as JSON. Then one
job per line on standard input, `BEAM` or `BEAM FILE`: decodes everything, writes the texts of each list to FILE, if
given, and answers "done". Runs under the other environment's Python, so it imports nothing of this project.
"""

import json
import logging
import sys

import numpy as np

logging.disable(logging.WARNING)  # before the import, which warns of a missing kenlm

from pyctcdecode import build_ctcdecoder  # noqa: E402

with np.load(sys.argv[1]) as arrays:
    log_probs = [arrays[str(n)] for n in range(len(arrays.files))]
decoder = build_ctcdecoder(json.loads(sys.argv[2]))
thresholds = json.loads(sys.argv[3])
print("ready", flush=True)
for line in sys.stdin:
    beam, *file = line.split()
    lists = [decoder.decode_beams(array, beam_width=int(beam), **thresholds) for array in log_probs]
    if file:
        with open(file[0], "w", encoding="utf-8") as handle:
            json.dump([[hypothesis[0] for hypothesis in beams] for beams in lists], handle)
    print("done", flush=True)
