"""What `ray job submit` runs to cut a corpus on shared storage: `ctxasr prepare` with the same words, on the cluster.

ray job submit --address http://head:8265 --working-dir . -- \
    python jobs/prepare.py kaldi --source /data/test --directory /shared/test
"""

import sys

from ctxasr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
