"""What is done: read from the runs' own files, never from anybody's memory.

A run is done when its metrics.json is valid, its parents are done, and it was made from just these makings of
them: so a parent that was deleted and made anew takes along what hangs on it.
"""

from dataclasses import dataclass

from hvae_hpc.errors import UserError
from hvae_hpc.plan import Plan
from hvae_hpc.rundir import RunResult, read_result, result_stamp


@dataclass(frozen=True, kw_only=True)
class State:
    """One run's state.

    Attributes:
        done: see the module.
        reason: why not, for people; "" where there simply is nothing yet.
        stamp: names this making of the run; "" where it is not done.
    """

    done: bool
    reason: str = ""
    stamp: str = ""


def read_states(plan: Plan) -> dict[str, State]:
    """Return every run's state, in the plan's order (parents before children)."""
    states: dict[str, State] = {}
    for run_id in plan.runs:
        stamps = {role: states[parent].stamp for role, parent in plan.parents(run_id).items()}
        states[run_id] = judge(plan, run_id, stamps)
    return states


def judge(plan: Plan, run_id: str, parent_stamps: dict[str, str]) -> State:
    """Return one run's state, given its parents' stamps ("" for a parent that is not done)."""
    try:
        result = read_result(plan.folder(run_id), run_id)
    except UserError as error:
        return State(done=False, reason=str(error))
    if result is None:
        return State(done=False)
    if result.parent_results != parent_stamps:
        return State(done=False, reason="a parent was made anew after it")
    return State(done=True, stamp=result_stamp(result))


def read_parents(plan: Plan, run_id: str) -> dict[str, RunResult]:
    """Return the results of a run's parents.

    Raises:
        UserError: one is not there; it names the run that is missing.
    """
    results = {}
    for role, parent in plan.parents(run_id).items():
        result = read_result(plan.folder(parent), parent)
        if result is None:
            run = plan.runs[parent]
            raise UserError(f"blocked: needs {run.stage} {run.label} ({parent}), which has no metrics.json")
        results[role] = result
    return results
