"""`dtg synthesize` as a Ray job: ray job submit --working-dir . -- python jobs/synthesize.py STUDY [options]."""

import sys

from dtg_ray.cli import main

sys.exit(main(["synthesize", *sys.argv[1:]]))
