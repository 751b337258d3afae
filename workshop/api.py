"""The production API: the function, and what a service needs beside it; the verb `serve` runs it."""
import asyncio
import gc
import hmac
import multiprocessing
import os
import re
import time
import weakref
from collections import Counter
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import prometheus_client
from fastapi import Body, Depends, FastAPI, HTTPException, Request, Security
from fastapi.responses import HTMLResponse, PlainTextResponse
from fastapi.security import APIKeyHeader
from prometheus_client import multiprocess
from pydantic import Field, create_model
from pydantic_core import to_json
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from workshop import records, registry
from workshop.forecaster import Forecast, Storm, forecasts
from workshop.web import for_browsers

MOST_BYTES, MOST_STORMS, MOST_SECONDS = 1_000_000, 1000, 10  # of one request: body, batch, wait for its body
REFUSED = 400, 401, 408, 413, 422, 503  # a refused forecast's statuses: documented, and noted in the log
# Prometheus' own words: a counter's name ends in _total, and units are base units.
REQUESTS = prometheus_client.Counter("http_requests", "Requests answered.", ["method", "path", "status"])
SECONDS = prometheus_client.Histogram("http_request_seconds", "Time to answer a request.", ["path"], buckets=(
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 10))
FORECASTS = prometheus_client.Counter("forecasts", "Forecasts given.", ["category", "model_version"])
Storms = create_model("Storms", __doc__="Storms to forecast in one request.", __config__={"extra": "forbid"},
                      storms=(list[Storm], Field(min_length=1, max_length=MOST_STORMS)))
Forecasts = create_model("Forecasts", __doc__="A forecast for each storm.", forecasts=(list[Forecast], ...))
Refusal = create_model("Refusal", __doc__="What is wrong, in words.", detail=(str, ...))


class Heads(HttpToolsProtocol):
    """Uvicorn's HTTP, where a head has to end in time, and a client to read the answers that it asked for."""
    def connection_made(self, transport):
        super().connection_made(transport)
        resume = self.flow.resume_reading  # but not while a request waits for the answer to one before it
        self.flow.resume_reading = lambda: self.pipeline or resume()
        self.close_in_time()

    def close_in_time(self):
        head, me, self.size = self.scope, weakref.ref(self), 0  # a scope has a method once its head is whole
        late = lambda: me() and me().scope is head and "method" not in (head or ()) and me().transport.close()
        self.loop.call_later(MOST_SECONDS, late)

    def data_received(self, data):
        before = self.scope
        super().data_received(data)
        if "method" not in (self.scope or ()):
            if self.scope is not before:
                self.close_in_time()
            self.size += len(data)
            if self.size > MOST_BYTES:
                self.send_400_response(f"The head of a request has at most {MOST_BYTES:,} bytes.")


class Service:
    """What the endpoints share in one process: the model in use, the forecast log, and the books."""
    def __init__(self):
        self.log = records.Writer(records.log_folder(), "forecasts")
        self.cases, self.answers = [], None  # storms that wait for an answer; the task that will answer them
        self.done, self.refused = [], None  # requests not yet in the books; the version that can't be used
        self.model = registry.kept_model(lambda text: say({"event": text}))

    async def answer(self, storms, request):
        """Return the forecasts for one request's storms, once they are in the log."""
        if not self.answers or self.answers.done():
            self.answers = asyncio.create_task(self._answer_all())
        first = len(self.cases)
        self.cases += [(request.scope["head"], storm) for storm in storms]
        return (await self.answers)[first:first + len(storms)]

    async def _answer_all(self):
        # All that came in one turn of the event loop: one call of the model, one write; nobody waits for it.
        cases, self.cases = self.cases, []
        answers = forecasts([storm for _, storm in cases], self.model)
        try:
            self.log.write(b"".join(to_json(head | {"storm": storm, "forecast": answer}) + b"\n"
                                    for (head, storm), answer in zip(cases, answers)))
        except OSError as error:
            reason = f"No forecast without a record of it, and the log can't be written: {error}."
            raise HTTPException(503, reason) from None
        for category, times in Counter(answer.category for answer in answers).items():
            FORECASTS.labels(category, self.model.version).inc(times)
        return answers

    def keep_books(self):
        """Count and time the requests that have their answers, and print a line of each."""
        done, self.done = self.done, []
        for line in done:
            REQUESTS.labels(line["method"], line["path"], line["status"]).inc()
            SECONDS.labels(line["path"]).observe(line["milliseconds"] / 1000)
        say(*done)

    async def look_around(self):
        """For ever: keep the books, and use the version that the registry names; a damaged one is refused."""
        supervisor = multiprocessing.parent_process()  # where this is one of several workers
        while not supervisor or supervisor.is_alive():
            await asyncio.sleep(0.2)
            wanted = self.model.version
            try:
                self.keep_books()
                wanted = registry.current() or wanted
                if wanted not in (self.model.version, self.refused):
                    self.model = await asyncio.to_thread(registry.load, wanted)
            except Exception as error:  # whatever is wrong: go on with what we have
                if wanted != self.model.version:
                    say({"event": f"version refused: {error}"})
            self.refused = wanted if wanted != self.model.version else None
        os._exit(1)  # nobody is there any more to end it

    def observed(self, app):
        """ASGI middleware: give each request an id and limits, log refusals, note what becomes of it."""
        async def observe(scope, receive, send):
            if scope["type"] != "http":
                return await app(scope, receive, send)
            begin, headers, status, size = time.perf_counter(), dict(scope["headers"]), 500, 0
            path = lambda: getattr(scope.get("route"), "path", "other")  # the API's own, not what was asked
            deadline = asyncio.get_running_loop().time() + MOST_SECONDS
            request_id = headers.get(b"x-request-id", b"").decode("latin-1")
            if not re.fullmatch(r"[\w.:-]{1,100}", request_id, re.ASCII):
                request_id = os.urandom(8).hex()
            client = headers.get(b"x-client", b"").decode("latin-1")[:100] or None
            # What every line about this request begins with, in the forecast log as in the service's own.
            head = scope["head"] = {"at": records.utc_now(), "request_id": request_id, "client": client}

            async def receive_within_limits():
                nonlocal size
                try:
                    async with asyncio.timeout_at(deadline):
                        message = await receive()
                except TimeoutError:
                    raise HTTPException(408, f"The body did not come in {MOST_SECONDS} seconds.") from None
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
                        line = records.line(**head, path=path(), status=status, refused=scope.get("refused"))
                        with suppress(OSError):  # an answer must be in the log; a refusal is in our own, too
                            self.log.write(line)
                with suppress(RuntimeError):  # the client has gone, and left requests behind
                    await send(message)

            try:
                await app(scope, receive_within_limits, send_with_id)
            finally:
                milliseconds = round(1000 * (time.perf_counter() - begin), 2)
                self.done.append(head | {"method": scope["method"], "path": path(), "status": status,
                                         "milliseconds": milliseconds})
        return observe


def say(*lines):
    """Print lines of the service's own log; where a line does not say `at` what time, it is now."""
    with suppress(OSError):  # nobody listens any more: no reason to fail
        lines = (records.line(**{"at": records.utc_now()} | line).decode() for line in lines)
        print(*lines, sep="", end="", flush=True)


def create_app() -> FastAPI:
    """Return the API. Reads $WORKSHOP_MODEL_DIR, $WORKSHOP_LOG_DIR, $WORKSHOP_API_KEY; may train a model."""
    service, key = Service(), os.environ.get("WORKSHOP_API_KEY")

    @asynccontextmanager
    async def following(app):
        gc.collect()
        gc.freeze()  # what is loaded by now stays: don't look through it again and again for what may go
        gc.set_threshold(20_000)
        task = asyncio.create_task(service.look_around())
        yield
        task.cancel()
        service.keep_books()

    async def authorised(given: str | None = Security(APIKeyHeader(name="X-API-Key", auto_error=False))):
        if not hmac.compare_digest((given or "").encode(), key.encode()):
            raise HTTPException(401, "Send the key that you were given, in the header X-API-Key.")

    app = FastAPI(title="Hurricane winds in 24 hours", version="1", lifespan=following,
                  description="A teaching model. Not for safety decisions: follow official forecasts.")
    refusals = {status: {"model": Refusal} for status in REFUSED if status != 422}  # FastAPI adds that
    guard = {"dependencies": [Depends(authorised)], "responses": {401: refusals[401]}} if key else {}
    real = service.model.card["examples"]
    one = {example["name"]: {"value": example["storm"]} for example in real}
    several = {"Two storms": {"value": {"storms": [example["storm"] for example in real[:2]]}}}

    @app.post("/forecast", **guard | {"responses": refusals})
    async def one_storm(request: Request, storm: Storm = Body(openapi_examples=one)) -> Forecast:
        """Forecast one storm's maximum sustained wind, 24 hours ahead, in knots, with an 80 % interval."""
        return (await service.answer([storm], request))[0]

    @app.post("/forecasts", **guard | {"responses": refusals})
    async def several_storms(request: Request, batch: Storms = Body(openapi_examples=several)) -> Forecasts:
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

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics():
        """Tell what was counted and timed, by all workers, in Prometheus' text format."""
        service.keep_books()
        counted = prometheus_client.REGISTRY
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            multiprocess.MultiProcessCollector(counted := prometheus_client.CollectorRegistry())
        return PlainTextResponse(prometheus_client.generate_latest(counted),
                                 media_type=prometheus_client.CONTENT_TYPE_LATEST)

    page = HTMLResponse(Path(__file__).with_name("page.html").read_bytes())
    app.add_route("/", lambda request: page, include_in_schema=False)
    words = {name: f" ({part['description']}: {part['minimum']:g} to {part['maximum']:g})"
             for name, field in Storm.model_json_schema()["properties"].items()
             for part in field.get("anyOf", [field]) if "minimum" in part}
    app.add_middleware(service.observed)
    when = for_browsers(app, words).openapi()["components"]["schemas"]["Storm"]["properties"]["time"]
    when["pattern"] = "^(18(5[1-9]|[6-9].)|19..|20..|2100)-..-..T..:..:[0-5].+[^z]$"  # date-time allows more
    return app
