"""`dtg train` as a Ray job: ray job submit --working-dir . -- python jobs/train.py STUDY [options]."""

import sys

from dtg_ray.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
