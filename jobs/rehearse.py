"""Rehearsal of a run, for `--plan --rehearse N`: N images through the real workers, then hours and money of the plan.

The images go through the flow of a run, with the workers that a run would have, into a folder of their own beside the
run's, which is deleted at the end. `pipeline/run/rehearsal.py` has the model, `infra/prices.yaml` the prices.
"""

import logging
import math
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import infra
from infra import preflight, session
from infra.progress import Reporter
from jobs.console import print_json
from jobs.flow_choice import choose_flow
from jobs.flows import engage, warn_of_dead_workers
from jobs.run import Run, stage_job
from pipeline.errors import JobError
from pipeline.run import flow, rehearsal
from pipeline.run.footers import read_footers
from pipeline.run.manifest import example_failures
from pipeline.run.parts import list_parts, parts_url
from pipeline.run.price import Price, Prices, Requests, Usage, estimate_requests, price_of, read_prices
from pipeline.run.progress import short_duration
from pipeline.run.rehearsal import STAGES, CpuClock, Crew, CrewFile, PlanForecast, Rates
from pipeline.source.plan import Plan
from pipeline.store import objects
from pipeline.store.url import Url

log = logging.getLogger(__name__)

PRICES = str(Path(infra.__file__).parent / "prices.yaml")
"""File of prices, unless `--prices` names another."""
FEW = 0.5
"""Share of failed images above which the figures are said to rest on few."""


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What happened to the images of a rehearsal."""

    images: int
    segmented: int
    wall_s: float
    """Seconds from the start of Ray to the last commit."""
    bytes_per_image: float
    """Encoded bytes read per image."""
    row_bytes: float
    """Bytes written per image."""
    crew: Crew
    """Crew of the rehearsal, which a run here would have."""
    rates: Rates


def rehearse(run: Run, plan: Plan, asked: int) -> Rehearsed:
    """Run `asked` images of a plan, evenly spread over it, and measure what each stage takes.

    Raises:
        JobError: none of them could be segmented; names the first reason.
    """
    pending = rehearsal.spread(plan.shards, asked)
    known = plan.rows
    if known is not None and known < asked:
        log.warning("--rehearse %d: the source has %d image(s), all of them are rehearsed", asked, known)
    log.info("rehearsing %d image(s) of %d shard(s)", min(asked, known or asked), len(pending))
    scratch = Url(run.cfg.output) / f".rehearsal-{uuid.uuid4().hex[:12]}"
    preflight.check_authentication()
    try:
        preflight.check_output(scratch)
        rehearsed = _measure(replace(run, url=scratch), plan, pending, min(asked, known or asked))
        if not rehearsed.segmented:
            examples = example_failures(scratch, read_footers(scratch), each=1)
            reasons = [f"{key}: {detail}" for key, _, detail in examples] or ["the shards have no rows"]
            message = f"none of the {rehearsed.images} rehearsed image(s) could be segmented, first {reasons[0]}"
            raise JobError(message, hint="check --source, and the settings --read and --decode")
    finally:
        objects.delete_below(scratch)
    if rehearsed.images < asked and known is None:
        log.warning("--rehearse %d: the opened tars have fewer, %d were rehearsed", asked, rehearsed.images)
    if rehearsed.segmented < rehearsed.images * (1 - FEW):
        few = "%d of %d rehearsed image(s) failed: the figures rest on %d image(s)"
        log.warning(few, rehearsed.images - rehearsed.segmented, rehearsed.images, rehearsed.segmented)
    return rehearsed


def _measure(run: Run, plan: Plan, pending: list[rehearsal.PendingShard], planned: int) -> Rehearsed:
    started = time.monotonic()
    with session.connect(dashboard=run.cfg.runtime.dashboard) as nodes:
        workers, cluster = engage(run, nodes)
        clock = CpuClock(flow.RemoteLedger())
        slots = {"infer": workers.infer, "refine": workers.refine}
        reporter = Reporter(clock.progress, planned=planned, already=0, slots=slots, every_s=run.cfg.runtime.progress_s)
        flow_started, cpu_started_s = time.monotonic(), time.process_time()
        try:
            with reporter:
                flow.run_flow(stage_job(run, plan), pending, workers, clock)
        finally:
            warn_of_dead_workers(reporter.latest, session.worker_logs)
        now, progress = time.monotonic(), reporter.latest
        driver_cores = (time.process_time() - cpu_started_s) / (now - flow_started)
    segmented = progress.committed - sum(progress.failed.values())
    crew = rehearsal.crew_of(workers, cluster)
    rates = rehearsal.rates_of(progress, max(segmented, 1), driver_cores=driver_cores)
    parts = parts_url(run.url)
    written = sum(objects.info(parts / name).size for name in list_parts(run.url))
    return Rehearsed(
        progress.committed,
        segmented,
        now - started,
        progress.bytes_out.get("read", 0) / max(progress.committed, 1),
        written / max(progress.committed, 1),
        crew,
        rehearsal.with_fixed(rates, crew, max(segmented, 1), now - started),
    )


# ---------------------------------------------------------------- what it says of the plan


@dataclass(frozen=True, slots=True)
class Bill:
    """Time and money of a plan with one crew."""

    forecast: PlanForecast
    usage: Usage
    price: Price


def images_of(plan: Plan, rehearsed: Rehearsed) -> int:
    """Images of a plan; where tars do not say, estimated from bytes."""
    return math.ceil(plan.bytes / max(rehearsed.bytes_per_image, 1)) if plan.rows is None else plan.rows


def bill(run: Run, plan: Plan, rehearsed: Rehearsed, crew: Crew, prices: Prices) -> Bill:
    """Time and money of a whole plan with a crew."""
    images = images_of(plan, rehearsed)
    planned = rehearsal.forecast(rehearsed.rates, crew, images)
    asked: Requests = estimate_requests(plan.shards, images, runtime=run.cfg.runtime, hours=planned.hours)
    usage = Usage(
        planned.hours,
        planned.core_hours,
        planned.gpu_hours,
        **asdict(asked),
        bytes_read=plan.bytes,
        bytes_written=rehearsed.row_bytes * images,
    )
    return Bill(planned, usage, price_of(usage, prices))


def print_rehearsal(
    run: Run, plan: Plan, asked: int, *, budget_hours: float | None, prices: str | None, crew_output: str | None
) -> int:
    """Rehearse, print rates, hours and money, and write the crew for `--runtime.crew`; returns 0."""
    prices_file = prices or PRICES
    listed = read_prices(prices_file)  # before the images: a wrong file costs no minute
    rehearsed = rehearse(run, plan, asked)
    crew = rehearsed.crew
    if budget_hours is not None:
        images = images_of(plan, rehearsed)
        crew = rehearsal.crew_for(rehearsed.rates, images, budget_hours, gpus=bool(rehearsed.crew.gpus))
    billed = bill(run, plan, rehearsed, crew, listed)
    figures = facts(plan, rehearsed, billed, listed) | {"run": str(run.url), "prices": prices_file}
    log_table(rehearsed, billed, listed, prices_file)
    if choose_flow(run.cfg, images=images_of(plan, rehearsed)) == "processes":
        log.info("the forecast is of a run on Ray, as with --runtime.flow ray: without it so few images take processes")
    if crew_output:
        written = CrewFile(
            crew=crew,
            checkpoint=run.sha256,
            source=run.cfg.source,
            settings=rehearsal.settings_of_a_rate(run.cfg),
            rehearsal=figures,
        )
        rehearsal.write_crew(Url(crew_output), written)
        log.info("a run takes these workers with --runtime.crew %s", crew_output)
    print_json(figures)
    return 0


def facts(plan: Plan, rehearsed: Rehearsed, billed: Bill, prices: Prices) -> dict[str, Any]:
    """Figures of a rehearsal, as plain data."""
    planned, usage, price = billed.forecast, billed.usage, billed.price
    return {
        "rehearsed": rehearsed.images,
        "failed": rehearsed.images - rehearsed.segmented,
        "rehearsal_s": round(rehearsed.wall_s, 2),
        "images": planned.images,
        "images_estimated": plan.rows is None,
        "images_per_s_per_worker": {
            stage: _significant(rate.images_per_s) for stage, rate in rehearsed.rates.stages.items()
        },
        "cpu_s_per_image": {stage: _significant(rate.cpu_s) for stage, rate in rehearsed.rates.stages.items()},
        "driver_cores": round(rehearsed.rates.driver_cores, 3),
        "workers": planned.crew.model_dump(),
        "limit": planned.limit,
        "images_per_s": _significant(planned.images_per_s),
        "start_s": round(planned.fixed_s, 1),
        "working_s": round(planned.working_s, 1),
        "hours": _significant(usage.hours),
        "core_hours": _significant(usage.core_hours),
        "gpu_hours": _significant(usage.gpu_hours),
        "requests": {"GET": usage.gets, "PUT": usage.puts, "LIST": usage.lists},
        "bytes_read": round(usage.bytes_read),
        "bytes_written": round(usage.bytes_written),
        "usd": {name: round(value, 4) for name, value in asdict(price).items()} | {"total": round(price.total, 4)},
        "prices_as_of": f"{prices.region}, {prices.as_of}",
        "prices_note": prices.note,
    }


def _significant(value: float) -> float | None:
    """Four significant digits; None for no limit, which JSON cannot say."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def log_table(rehearsed: Rehearsed, billed: Bill, prices: Prices, prices_file: str) -> None:
    """Log the figures of a rehearsal for people."""
    planned, usage, price = billed.forecast, billed.usage, billed.price
    crew = planned.crew
    log.info("%-8s %20s %16s %8s", "stage", "images/s per worker", "CPU s per image", "workers")
    for stage in STAGES:
        rate = rehearsed.rates.stages[stage]
        log.info("%-8s %20.2f %16.4f %8d", stage, rate.images_per_s, rate.cpu_s, crew.workers(stage))
    for name, text in lines(planned, usage, price, prices).items():
        log.info("%-16s %s", name, text)
    log.info("%-16s %s, %s, %s: %s", "prices", prices_file, prices.region, prices.as_of, prices.note)


def lines(planned: PlanForecast, usage: Usage, price: Price, prices: Prices) -> Mapping[str, str]:
    """Figures of a plan in words, by name."""
    start, work = short_duration(planned.fixed_s), short_duration(planned.working_s)
    limit = "cores, which all stages share" if planned.limit == "cores" else f"the stage {planned.limit}"
    return {
        "cluster": f"{planned.crew.cores:g} cores, {planned.crew.gpus:g} GPUs",
        "rate": f"{planned.images_per_s:.4g} images/s, limited by {limit}",
        "time": f"{start} to start, {work} for {planned.images:,} images: {usage.hours:.4g} h",
        "core-hours": f"{usage.core_hours:.4g}",
        "GPU-hours": f"{usage.gpu_hours:.4g}",
        "requests": f"{usage.gets:,} GET, {usage.puts:,} PUT, {usage.lists:,} LIST (estimated)",
        "bytes": f"{usage.bytes_read / 1e9:.4g} GB read, {usage.bytes_written / 1e9:.4g} GB written",
        "money": (
            f"{price.total:.2f} USD: {price.compute:.2f} compute, {price.requests:.2f} requests, "
            f"{price.transfer:.2f} transfer; the output then costs {price.storage_per_month:.2f} a month"
        ),
    }
