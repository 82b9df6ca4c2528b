"""What `ray job submit` runs for a training by its recipe: `ctxasr train` with the same words, on the cluster.

ray job submit --address http://head:8265 --working-dir . -- \
    python jobs/train.py ctc_start --directory /shared/train
"""

import sys

from ctxasr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
