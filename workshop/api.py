"""The production API: the function, and what a service needs beside it; the verb `serve` runs it."""
import asyncio
import hmac
import json
import os
import re
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress
from itertools import count, repeat
from pathlib import Path
from typing import Annotated

import prometheus_client
from fastapi import Body, Depends, FastAPI, HTTPException, Request, Response, Security
from fastapi.responses import HTMLResponse
from fastapi.security import APIKeyHeader
from prometheus_client import multiprocess
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from workshop import records, registry
from workshop.forecaster import Forecast, Storm, forecasts
from workshop.web import ForwardedPrefix, clear_refusals, offline_docs

MOST_BYTES, MOST_STORMS, MOST_SECONDS = 1_000_000, 1000, 10  # of one request: body, batch, wait for its body
REFUSED = 400, 401, 408, 413, 422, 503  # what an answer's status may be beside 200
# Prometheus' own words: a counter's name ends in _total, and units are base units.
REQUESTS = prometheus_client.Counter("http_requests", "Requests answered.", ["method", "path", "status"])
SECONDS = prometheus_client.Histogram("http_request_seconds", "Time to answer a request.", ["path"], buckets=(
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 10))
FORECASTS = prometheus_client.Counter("forecasts", "Forecasts given.", ["category", "model_version"])
LOADED = prometheus_client.Gauge("model_loaded_time_seconds", "When a version came into use; the last is.",
                                 ["model_version"], multiprocess_mode="max")


class Storms(BaseModel):
    """Storms to forecast in one request."""

    model_config = ConfigDict(extra="forbid")
    storms: Annotated[list[Storm], Field(min_length=1, max_length=MOST_STORMS)]


class Forecasts(BaseModel):
    """A forecast for each storm, in order."""

    forecasts: list[Forecast]


class Service:
    """What the endpoints share in one process: the model in use, the forecast log, and the books.

    Requests that came together are answered together: one call of the model, one write to the log. That
    delays nobody, since the next turn of the event loop is now, and under load it saves most of the work.
    """

    def __init__(self):
        self.log = records.Writer(records.log_folder(), "forecasts")
        self.waiting, self.done = [], []  # requests that wait for an answer; that have it, but are in no book
        self.refused = None  # the version that should be in use, and can't be
        self.use(registry.kept_model(say_event))

    def use(self, model):
        """Answer with this model from the next request on."""
        self.model = model
        LOADED.labels(model.version).set_to_current_time()

    async def answer(self, storms, request):
        """Return the forecasts for one request's storms, once they are in the log."""
        loop = asyncio.get_running_loop()
        if not self.waiting:
            loop.call_soon(self._answer_all)
        self.waiting.append((storms, request.scope["head"].encode(), answers := loop.create_future()))
        return await answers

    def _answer_all(self):
        waiting, self.waiting = self.waiting, []
        try:
            answers = iter(forecasts([storm for storms, _, _ in waiting for storm in storms], self.model))
            results = [[next(answers) for _ in storms] for storms, _, _ in waiting]
            lines = [b'%b, "storm": %b, "forecast": %b}\n' % (head, to_json(storm), to_json(answer))
                     for (storms, head, _), result in zip(waiting, results)
                     for storm, answer in zip(storms, result)]
            self.log.write(b"".join(lines))
        except OSError as error:
            reason = f"No forecast without a record of it, and the log can't be written: {error}."
            results = repeat(HTTPException(503, reason))
        except Exception as error:
            results = repeat(error)
        for (_, _, future), result in zip(waiting, results):
            if isinstance(result, Exception):
                future.cancelled() or future.set_exception(result)
                continue
            future.cancelled() or future.set_result(result)
            for kind, times in Counter(answer.category for answer in result).items():
                FORECASTS.labels(kind, result[0].model_version).inc(times)

    def keep_books(self):
        """Count and time the requests that have their answers, and print a line of each."""
        done, self.done = self.done, []
        for head, method, path, status, seconds in done:
            REQUESTS.labels(method, path, status).inc()
            SECONDS.labels(path).observe(seconds)
        say("".join(f'{head}, "method": "{method}", "path": "{path}", "status": {status}, '
                    f'"milliseconds": {1000 * seconds:.2f}}}\n'
                    for head, method, path, status, seconds in done))

    async def look_around(self):
        """For ever: keep the books, and use the version that the registry names; a damaged one is refused."""
        while True:
            await asyncio.sleep(0.2)
            self.keep_books()
            wanted = self.model.version
            try:
                wanted = registry.current() or wanted
                if wanted not in (self.model.version, self.refused):
                    self.use(await asyncio.to_thread(registry.load, wanted))
            except Exception as error:  # whatever is wrong with it: go on with what we have
                if wanted != self.model.version:
                    say_event(f"version refused: {error}")
            self.refused = wanted if wanted != self.model.version else None


def say(lines):
    """Print lines of the service's own log."""
    with suppress(OSError):  # nobody listens any more: no reason to fail
        print(lines, end="", flush=True)


def say_event(text):
    """Print what happened, in a line of its own."""
    say(records.line(at=records.utc_now(), event=text).decode())


class Observe:
    """ASGI middleware: gives each request an id and limits, logs refusals, and notes what becomes of it."""

    def __init__(self, app, service):
        self.app, self.service = app, service
        self.prefix, self.numbers = os.urandom(6).hex(), count(1)

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begin, headers, status, size = time.perf_counter(), dict(scope["headers"]), 500, 0
        path = lambda: getattr(scope.get("route"), "path", "other")  # the API's own, not the text that came
        deadline = asyncio.get_running_loop().time() + MOST_SECONDS
        request_id = headers.get(b"x-request-id", b"").decode("latin-1")
        client = headers.get(b"x-client", b"").decode("latin-1")[:100] or None
        if not re.fullmatch(r"[\w.:-]{1,100}", request_id, re.ASCII):
            request_id = f"{self.prefix}-{next(self.numbers)}"
        # The beginning of every line about this request, in the forecast log as in the service's own.
        head = scope["head"] = (f'{{"at": "{records.utc_now()}", "request_id": "{request_id}", '
                                f'"client": {json.dumps(client)}')

        async def receive_within_limits():
            nonlocal size
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"The body did not come within {MOST_SECONDS} seconds.") from None
            size += len(message.get("body", b""))
            if size > MOST_BYTES:
                raise HTTPException(413, f"A body has at most {MOST_BYTES:,} bytes: send fewer storms.")
            return message

        async def send_with_id(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
                if status in REFUSED and scope["method"] == "POST":
                    with suppress(OSError):  # an answer must be in the log; a refusal is in our own, too
                        refused = json.dumps(scope.get("refused"))
                        self.service.log.write(f'{head}, "path": "{path()}", "status": {status}, '
                                               f'"refused": {refused}}}\n'.encode())
            await send(message)

        try:
            await self.app(scope, receive_within_limits, send_with_id)
        finally:
            seconds = time.perf_counter() - begin
            self.service.done.append((head, scope["method"], path(), status, seconds))


def create_app() -> FastAPI:
    """Return the API, ready to be served: by one process, or several of them.

    Reads $WORKSHOP_MODEL_DIR, $WORKSHOP_LOG_DIR and $WORKSHOP_API_KEY; trains a model where there is none.
    """
    service, key = Service(), os.environ.get("WORKSHOP_API_KEY")

    @asynccontextmanager
    async def following(app):
        task = asyncio.create_task(service.look_around())
        yield
        task.cancel()
        service.keep_books()

    header = APIKeyHeader(name="X-API-Key", auto_error=False)

    async def authorised(given: Annotated[str | None, Security(header)]):
        if not hmac.compare_digest((given or "").encode(), key.encode()):
            raise HTTPException(401, "Send the key that you were given, in the header X-API-Key.")

    app = FastAPI(title="Hurricane winds in 24 hours", version="1", lifespan=following,
                  description="A teaching model. Not for safety decisions: follow official forecasts.")
    guard = {"dependencies": [Depends(authorised)] if key else [],
             "responses": {status: {} for status in REFUSED if status != 422}}  # FastAPI adds that
    real = service.model.card["examples"]
    one = {example["name"]: {"value": example["storm"]} for example in real}
    several = {"Two storms": {"value": {"storms": [example["storm"] for example in real[:2]]}}}

    @app.post("/forecast", **guard)
    async def one_storm(storm: Annotated[Storm, Body(openapi_examples=one)], request: Request) -> Forecast:
        """Forecast one storm's maximum sustained wind, 24 hours ahead, in knots, with an 80 % interval."""
        return (await service.answer([storm], request))[0]

    @app.post("/forecasts", **guard)
    async def several_storms(batch: Annotated[Storms, Body(openapi_examples=several)], request: Request
                               ) -> Forecasts:
        """Forecast up to 1,000 storms; one that is refused refuses them all, and its index is named."""
        return Forecasts(forecasts=await service.answer(batch.storms, request))

    @app.get("/health")
    async def health() -> dict:
        """Tell that the service answers, with which version, and whether a newer one had to be refused."""
        return {"status": "ok", "model_version": service.model.version, "refused_version": service.refused}

    @app.get("/model", **guard)
    async def card() -> dict:
        """Tell what the model is, what it learnt from, and how it scores: its card."""
        return service.model.card

    @app.get("/metrics", response_class=Response)
    async def metrics():
        """Tell what was counted and timed, by all workers, in Prometheus' text format."""
        service.keep_books()
        counted = prometheus_client.REGISTRY
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            multiprocess.MultiProcessCollector(counted := prometheus_client.CollectorRegistry())
        return Response(prometheus_client.generate_latest(counted),
                        media_type=prometheus_client.CONTENT_TYPE_LATEST)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page():
        return (Path(__file__).parent / "page.html").read_text(encoding="utf-8")

    words = {name: f"{field['description']}: {field['minimum']:g} to {field['maximum']:g}"
             for name, field in ((name, field.get("anyOf", [field])[0]) for name, field
                                 in Storm.model_json_schema()["properties"].items()) if "minimum" in field}
    app.add_middleware(Observe, service=service)
    app.add_middleware(ForwardedPrefix)
    return offline_docs(clear_refusals(app, words))
