"""`dtg export` as a Ray job: ray job submit --working-dir . -- python jobs/export.py STUDY OUT [options]."""

import sys

from dtg_ray.cli import main

sys.exit(main(["export", *sys.argv[1:]]))
