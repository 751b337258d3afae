"""What every API of this course has: addresses that fit a proxy, docs without network, clear refusals."""
import json
import re


class ForwardedPrefix:
    """ASGI middleware: give the path back the prefix that a proxy cut off, so that addresses fit."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        prefix = dict(scope.get("headers", ())).get(b"x-forwarded-prefix", b"").decode("latin-1").rstrip("/")
        if re.fullmatch(r"(/[\w.~%@:+=-]+)+", prefix, re.ASCII):  # else any text could get into a page
            scope = scope | {"root_path": prefix, "path": prefix + scope["path"]}
        await self.app(scope, receive, send)


def offline_docs(app):
    """Return the FastAPI `app` with its documentation served without the web, and no /redoc."""
    from fastapi.openapi.docs import get_swagger_ui_html
    from starlette.staticfiles import StaticFiles

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
    return app


def clear_refusals(app, words=None):
    """Return the FastAPI `app`, made to answer every input that it refuses with a 422 that can be sent.

    FastAPI repeats the input, and fails with a 500 where JSON has no words for it, such as NaN. `words` says
    more of a field, by its name. What was refused stays in the request's scope, as "refused".
    """
    from fastapi import Response
    from fastapi.exceptions import RequestValidationError

    def refuse(request, error):
        detail = []
        for problem in error.errors()[:20]:
            given, message = problem.get("input"), problem["msg"]
            if problem["loc"] == ("body",) and isinstance(given, (str, bytes)):
                message += "; send JSON, with the header Content-Type: application/json"
            if problem["loc"][-1] in (words or ()):
                message += f" ({words[problem['loc'][-1]]})"
            given = given if isinstance(given, (int, str, type(None))) else str(given)
            given = given[:200] if isinstance(given, str) else given
            detail.append({"type": problem["type"], "loc": problem["loc"], "msg": message, "input": given})
        request.scope["refused"] = detail
        return Response(json.dumps({"detail": detail}), 422, media_type="application/json")

    app.add_exception_handler(RequestValidationError, refuse)
    return app
