"""What stages share that do one piece of work, not a block of subjects: a model, its evaluation, a feature set."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import pandas as pd

from dtg_ray import ledger
from dtg_ray.errors import StudyError
from dtg_ray.ledger import Account
from dtg_ray.stages.plan import Plan
from dtg_ray.stages.runtime import Options, peak_memory
from dtg_ray.stages.telemetry import watch
from dtg_ray.store.receipts import Receipts, Row
from dtg_ray.study import Study


def settle(study: Study, account: Account, plan: Plan, work: Callable[[str], Row], options: Options) -> pd.DataFrame:
    """Show the plan; do the work if it is owed and commit it by its receipt; return the rows of that.

    Parameters
    ----------
    study : Study
    account : Account
        Of a stage with the one unit `ledger.MODEL`.
    plan : Plan
    work : callable
        Given today's fingerprint, does everything and says what came of it.
    options : Options

    Raises
    ------
    StudyError
        When a stage before this one is unfinished.
    """
    plan.show(options)
    if not plan.pending or options.dry_run:
        return account.rows
    if plan.waiting:
        raise StudyError(f"{account.stage} waits for {plan.waiting}", hint="run that stage first, or `dtg run`")
    if not (options.overwrite or options.retry_failed):
        now = ledger.account(study, account.stage)
        if not now.pending():  # another driver was faster
            return now.rows
    today, receipts, begin = str(account.today()), Receipts(study.storage, account.stage), time.perf_counter()
    with watch.stage(study.uri, account.stage):
        attempt = receipts.withdraw(ledger.MODEL)
        watch.begun(account.stage, ledger.MODEL, attempt)
        row = work(today)
        row.fingerprint, row.seconds, row.peak_memory = today, time.perf_counter() - begin, peak_memory()
        receipts.write(ledger.MODEL, [row], attempt=attempt, host=socket.gethostname())
        watch.committed(account.stage, ledger.MODEL, attempt, [row])
    return ledger.account(study, account.stage).rows
