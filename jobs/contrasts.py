"""`dtg contrasts` as a Ray job: ray job submit --working-dir . -- python jobs/contrasts.py STUDY [options]."""

import sys

from dtg_ray.cli import main

sys.exit(main(["contrasts", *sys.argv[1:]]))
