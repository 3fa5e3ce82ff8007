"""`dtg run` as a Ray job: ray job submit --working-dir . -- python jobs/run.py STUDY [options]."""

import sys

from dtg_ray.cli import main

sys.exit(main(["run", *sys.argv[1:]]))
