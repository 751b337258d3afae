"""What every API of this course has: addresses that fit a proxy, docs without network, clear refusals."""
import json
import re

from fastapi import Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.staticfiles import StaticFiles


def for_browsers(app, words=()):
    """Return the FastAPI `app`, with docs that need no web, behind a proxy's prefix too, and no /redoc.

    Every input that it refuses gets a 422 that can be sent: FastAPI repeats the input, and fails with a 500
    where JSON has no words for it, such as NaN. `words` are added to what is said of a field, by its name.
    What was refused stays in the request's scope, as "refused".
    """
    rest = [route for route in app.routes if getattr(route, "path", "") not in (app.docs_url, app.redoc_url)]
    app.routes.clear()
    if app.openapi_url and app.docs_url:  # they go first: a route such as /{anything} must not hide them
        root = "." + "/.." * (app.docs_url.count("/") - 1)  # relative to the page, so right under any prefix
        files = root + app.docs_url + "/static/"
        page = get_swagger_ui_html(
            title=app.title, openapi_url=root + app.openapi_url, swagger_css_url=files + "swagger-ui.css",
            swagger_js_url=files + "swagger-ui-bundle.js", swagger_favicon_url=files + "favicon-32x32.png",
            swagger_ui_parameters=app.swagger_ui_parameters)
        app.mount(app.docs_url + "/static", StaticFiles(packages=[("fastapi_swagger", "resources")]))
        app.add_route(app.docs_url, lambda request: page, include_in_schema=False)
    app.routes.extend(rest)

    def refuse(request, error):
        detail = request.scope["refused"] = []
        for problem in error.errors()[:20]:
            given, message = problem.get("input"), problem["msg"]
            if problem["loc"] == ("body",) and isinstance(given, (str, bytes)):
                message += "; send JSON, with the header Content-Type: application/json"
            message += dict(words).get(problem["loc"][-1], "")
            given = given if isinstance(given, int | None) else str(given)[:200]
            detail.append({"type": problem["type"], "loc": problem["loc"], "msg": message, "input": given})
        return Response(json.dumps({"detail": detail}), 422, media_type="application/json")

    def forwarded_prefix(app):  # ASGI middleware: give the path back the prefix that a proxy cut off
        async def prefixed(scope, receive, send):
            prefix = dict(scope.get("headers", ())).get(b"x-forwarded-prefix", b"")
            prefix = prefix.decode("latin-1").rstrip("/")
            if re.fullmatch(r"(/[\w.~%@:+=-]+)+", prefix, re.ASCII):  # else any text could get into a page
                scope = scope | {"root_path": prefix, "path": prefix + scope["path"]}
            await app(scope, receive, send)
        return prefixed

    app.middleware_stack = None  # to be made again, with these, if the app was asked in its cell already
    app.add_exception_handler(RequestValidationError, refuse)
    app.add_middleware(forwarded_prefix)
    return app
