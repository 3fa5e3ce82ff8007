"""`dtg transfer-curve` as a Ray job: ray job submit --working-dir . -- python jobs/transfer_curve.py STUDY ..."""

import sys

from dtg_ray.cli import main

sys.exit(main(["transfer-curve", *sys.argv[1:]]))
