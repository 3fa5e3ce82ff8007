"""`dtg report` as a Ray job: ray job submit --working-dir . -- python jobs/report.py STUDY [options]."""

import sys

from dtg_ray.cli import main

sys.exit(main(["report", *sys.argv[1:]]))
