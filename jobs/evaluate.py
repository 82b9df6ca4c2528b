"""What `ray job submit` runs: `ctxasr evaluate` with the same words, on the cluster that runs the job.

ray job submit --address http://head:8265 --working-dir . -- python jobs/evaluate.py quickstart --root s3://bucket/run
"""

import sys

from ctxasr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
