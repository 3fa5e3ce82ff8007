"""`dtg predict` as a Ray job: ray job submit --working-dir . -- python jobs/predict.py STUDY [options]."""

import sys

from dtg_ray.cli import main

sys.exit(main(["predict", *sys.argv[1:]]))
