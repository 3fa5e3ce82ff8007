"""`dtg connectomes` as a Ray job: ray job submit --working-dir . -- python jobs/connectomes.py STUDY [options]."""

import sys

from dtg_ray.cli import main

sys.exit(main(["connectomes", *sys.argv[1:]]))
