"""`dtg finetune` as a Ray job: ray job submit --working-dir . -- python jobs/finetune.py STUDY [options]."""

import sys

from dtg_ray.cli import main

sys.exit(main(["finetune", *sys.argv[1:]]))
