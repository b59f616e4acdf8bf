"""A handler as in WorkOS's guide for Flask with RQ: verify, enqueue one job per event, merge in the job."""

import os

from flask import Flask, request
from redis import Redis
from rq import Queue
from rq.job import Job
from workos import WorkOSClient

from tests.benchmarks.baseline_job import handle
from tests.benchmarks.servers import Bench
from tests.support import JSON, SECRET


def application() -> Flask:
    """Return the application."""
    app = Flask("baseline")
    app.config["MAX_CONTENT_LENGTH"] = 1024 * 1024  # as ours
    app.add_url_rule("/healthz", view_func=dict)
    workos = WorkOSClient(api_key="sk_bench", client_id="client_bench")
    queue = Queue(connection=Redis.from_url(os.environ["REDIS_URL"]))

    @app.post("/webhooks/workos")
    def webhook() -> dict[str, str]:
        workos.webhooks.verify_event(
            event_body=request.get_data(), event_signature=request.headers["WorkOS-Signature"], secret=SECRET
        )
        queue.enqueue(handle, request.get_json())
        return {"status": "success"}

    return app


def jobs_per_second(bench: Bench, url: str, events: list[JSON], worker_class: str) -> float:
    """Enqueue a job for each event, let one `rq worker` of a class work them off, and return jobs a second.

    Counted from the end of the first job to the end of the last, without the start of the worker.
    """
    bench.empty_redis()
    with Redis.from_url(bench.redis_url) as redis:
        queue = Queue(connection=redis)
        queue.enqueue_many([Queue.prepare_data(handle, (event,)) for event in events])
        ids = queue.job_ids
        # Logs go to a file, as a service's do; the default class is rq.Worker.
        arguments = ["-m", "rq.cli", "worker", "--burst", "--url", bench.redis_url, "--worker-class", worker_class]
        with bench.running("rq", arguments, bench.environment(url)) as process:
            process.require_success(600)
        jobs = [job for job in Job.fetch_many(ids, connection=redis) if job is not None and job.is_finished]
    assert len(jobs) == len(events)
    ended = sorted(job.ended_at for job in jobs if job.ended_at is not None)
    return (len(ended) - 1) / (ended[-1] - ended[0]).total_seconds()
