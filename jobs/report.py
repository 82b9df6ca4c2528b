"""What `ray job submit` runs for the report of a finished run: `ctxasr report` with the same words, on the cluster.

ray job submit --address http://head:8265 --working-dir . -- \
    python jobs/report.py ctc --root s3://b/run
"""

import sys

from ctxasr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
