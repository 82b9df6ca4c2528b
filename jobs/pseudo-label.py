"""What `ray job submit` runs: `ctxasr pseudo-label` with the same words, on the cluster that runs the job.

ray job submit --address http://head:8265 --working-dir . -- python jobs/pseudo-label.py whisper --root s3://b/r
"""

import sys

from ctxasr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["pseudo-label", *sys.argv[1:]]))
