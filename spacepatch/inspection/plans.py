"""Check the JSON of each generation of a plan, and what of a later one is there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import spacepatch
from spacepatch.config import RunConfig, fingerprint
from spacepatch.data import EncoderFacts
from spacepatch.errors import ConfigError, ShardError
from spacepatch.inspection.encoders import check_facts
from spacepatch.inspection.findings import Findings
from spacepatch.inspection.folders import PLAN_DOCUMENT, names_in, read_document
from spacepatch.pipeline.generations import PLAN_FILE, plan_name
from spacepatch.pipeline.placement import Placement
from spacepatch.pipeline.plan import Plan
from spacepatch.pipeline.planfile import StoredPlan, open_plan
from spacepatch.pipeline.planhead import content_fingerprints, largest_side, layout_of
from spacepatch.pipeline.planrows import digests_of
from spacepatch.pipeline.planwriting import planned_task
from spacepatch.pipeline.running import pending_tasks
from spacepatch.shards import shard_stem

SHARED = "settings fingerprints environment encoder layout placement".split()
"""What all generations have of the first one."""


def check_later_plans(
    folder: Path, first: dict[str, Any], finished: int, count: int, findings: Findings
) -> set[str]:
    """Report what is wrong with generations after the first one, and which are not finished.

    Args:
        first: plan.json.
        finished: how many dataset.json lists; without one, as many as there are.
        count: how many are there.

    Returns:
        Stems of the shards of those that are not finished.
    """
    for name in names_in(folder):
        match = PLAN_FILE.fullmatch(name)
        if match and int(match["number"] or 0) >= count:
            findings.add(name, "of a plan that was not made whole: tokenize --append goes on")
    for number in range(1, finished):
        name = f"{plan_name(number)}.json"
        try:
            document = read_document(folder / name)
        except ShardError as error:
            findings.add(name, str(error).removeprefix(f"{folder / name}: "))
            continue
        check_plan_document(name, document, None, findings, first)
    if finished >= count:
        return set()
    try:
        plan = open_plan(folder)
    except ShardError as error:
        path, _, message = str(error).partition(": ")
        findings.add(Path(path).name, message)
        return set()
    left = {task.number for task in pending_tasks(folder, plan)}
    stems = set()
    for generation in plan.generations[finished:]:
        own = plan.tasks[generation.addition.first_task : generation.stop_task]
        done = sum(task.number not in left for task in own)
        findings.add(
            f"{generation.path.stem}.json",
            f"not finished: {done} of {len(own)} tasks of generation {generation.addition.number} "
            "are done; tokenize --append goes on",
        )
        stems |= {shard_stem(plan.name, task.split, task.number) for task in own}
    return stems


def check_plan_document(
    name: str,
    document: dict[str, Any],
    plan: Plan | None,
    findings: Findings,
    first: dict[str, Any] | None = None,
) -> bool:
    """The ids of a plan's JSON are those of what it says; returns whether it has what it must.

    Args:
        name: of its file.
        first: plan.json, of a later generation.
    """
    report = findings.at(name)
    try:
        prints, settings = document["fingerprints"], document["settings"]
        identity = {
            "fingerprints": prints,
            "seed": settings["seed"],
            "selection": {key: settings[key] for key in ("limit", "sample", "split")},
            "rows": document["plan_sha256"],
        }
        if document["plan_id"] != fingerprint(identity):
            report("plan_id is not that of its fingerprints, seed, selection and rows")
        if first is not None:
            for key in SHARED:
                if document[key] != first[key]:
                    report(f"{key} is not that of {PLAN_DOCUMENT}")
        own = document["plan_id"][:8] if first is None else first["name"]
        if document["name"] != (settings["name"] or own):
            report(f"name {document['name']!r} is neither that of the settings nor of plan_id")
        if prints["environment"] != fingerprint(document["environment"]):
            report("fingerprints: environment is not that of the environment")
        if document["environment"].get("spacepatch") == spacepatch.__version__:
            # Another version may have had other settings.
            config, found = RunConfig(**settings), document.get("encoder")
            facts = None if found is None else EncoderFacts.from_json(found)
            for key, value in _fingerprints(config, settings, facts).items():
                if prints[key] != value:
                    report(f"fingerprints: {key} is not that of the settings")
            check_facts(facts, config, report)
            if Placement(**document["placement"]) != Placement.of(config):
                report("placement is not that of the settings")
            if plan is not None:
                clips = [clip for task in plan.tasks for clip in task.clips]
                if plan.layout != layout_of(config, largest_side(clips), facts):
                    report("layout is not that of the settings")
    except (KeyError, TypeError, AttributeError, ConfigError, ValueError) as error:
        report(f"damaged ({error!r})")
        return False
    return True


def check_task_rows(plan: StoredPlan, findings: Findings) -> None:
    """The rows of each task are those that its id and its counts in the plan's JSON are of.

    The checksum of the whole table does not say so: what changes a row may change that too.
    """
    for generation in plan.generations:
        report = findings.at(generation.path.name)
        for task in plan.tasks[generation.addition.first_task : generation.stop_task]:
            rows = plan.rows(task)
            (digest,) = digests_of(rows, [0, len(rows)])
            identity = {"fingerprints": plan.head.fingerprints, "rows": digest}
            if task.task_id != fingerprint(identity):
                report(f"rows of task {task.number} are not those that were planned")
            elif planned_task(rows, task.number) != replace(task, task_id=""):
                report(f"rows of task {task.number} have other counts than {PLAN_DOCUMENT}")


def _fingerprints(
    config: RunConfig, settings: dict[str, Any], facts: EncoderFacts | None
) -> dict[str, str]:
    """As of `planning.fingerprints_of`, but for the environment: nothing that an encoder needs is
    asked for, and settings that came later are not in those of an older plan."""
    token = {key: value for key, value in config.part("token").items() if key in settings}
    layout = {key: value for key, value in config.part("layout").items() if key in settings}
    return content_fingerprints(token, layout, facts)
