"""`dtg evaluate` as a Ray job: ray job submit --working-dir . -- python jobs/evaluate.py STUDY [options]."""

import sys

from dtg_ray.cli import main

sys.exit(main(["evaluate", *sys.argv[1:]]))
