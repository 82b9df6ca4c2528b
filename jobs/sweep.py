"""What `ray job submit` runs for a sweep of settings: `ctxasr sweep` with the same words, on the cluster.

ray job submit --address http://head:8265 --working-dir . -- \
    python jobs/sweep.py ctc --root s3://b/run --axes first_pass.beam_size=50,100
"""

import sys

from ctxasr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
