"""`dtg interpret` as a Ray job: ray job submit --working-dir . -- python jobs/interpret.py STUDY [options]."""

import sys

from dtg_ray.cli import main

sys.exit(main(["interpret", *sys.argv[1:]]))
