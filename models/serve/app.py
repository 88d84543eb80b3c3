"""The routes. An error is JSON, {"detail": "what is wrong"}, whatever was sent.

    GET  /                    the page
    GET  /health              is it up, and with which model
    GET  /classes             what it knows
    GET  /examples/N/I.png    a training image of class N
    POST /predict?top=5       one image as the body, or a form of files -> classes, probabilities, unknown
    POST /collect             a form: `class` and files -> they wait to be learned (--collect)
    POST /learn               learn what waits; GET tells how it goes
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import anyio
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from models.serve.forms import Memory, read_form
from models.serve.guard import Guard
from models.serve.service import Service
from models.serve.uploads import Refused

T = TypeVar("T")
TEMPLATES = Path(__file__).parent / "templates"
AT_ONCE = 2  # images decoded at the same time: each may take hundreds of megabytes


def make_app(service: Service, *, loopback: bool = True, names: Collection[str] = ()) -> FastAPI:
    """The server's routes behind a guard; see `Guard` for the arguments."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)  # the pages of these come from other servers
    app.add_middleware(Guard, loopback=loopback, names=names)
    _tell_errors(app)
    _add_reading(app, service)
    _add_posting(app, service)
    return app


def _add_reading(app: FastAPI, service: Service) -> None:
    text, policy = page(service)

    @app.get("/")
    async def show_page() -> HTMLResponse:
        return HTMLResponse(text, headers={"Content-Security-Policy": policy, "Cache-Control": "no-store"})

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return service.health()

    @app.get("/classes")
    def classes() -> dict[str, Any]:  # no coroutine: looking for examples may take seconds
        return service.classes()

    @app.get("/examples/{number}/{which}.png")
    def example(number: int, which: int) -> Response:
        return Response(service.example(number, which), media_type="image/png")

    @app.get("/learn")
    async def lessons() -> dict[str, Any]:
        return service.lessons()


def _add_posting(app: FastAPI, service: Service) -> None:
    memory = Memory(service.limits)
    limiter = anyio.CapacityLimiter(AT_ONCE)

    async def beside(work: Callable[..., T], *arguments: Any) -> T:
        return await anyio.to_thread.run_sync(work, *arguments, limiter=limiter)

    @app.post("/predict")
    async def predict(request: Request, top: int = Query(5, ge=1, le=1000)) -> dict[str, Any]:
        with memory.lent(request):
            form = await read_form(request, service.limits)
            cut = [await beside(service.cut, upload) for upload in form.files]
        answers = await asyncio.gather(*[asyncio.wrap_future(service.answering.ask(image, top)) for image in cut])
        return {"model": service.model.name, "images": [
            {"name": upload.name, "unknown": answer.unknown,
             "classes": [{"name": name, "probability": p} for name, p in zip(answer.names, answer.probabilities, strict=True)]}
            for upload, answer in zip(form.files, answers, strict=True)]}

    @app.post("/collect")
    async def collect(request: Request) -> dict[str, Any]:
        with memory.lent(request):
            form = await read_form(request, service.limits)
            return await beside(service.collect, form.fields.get("class", ""), form.files)

    @app.post("/learn")
    async def learn() -> dict[str, Any]:
        return await beside(service.learn)


def _tell_errors(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return JSONResponse({"detail": error.why}, error.status, headers={"Retry-After": "1"} if error.status == 503 else None)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        found = error.errors()[0]
        return JSONResponse({"detail": f"{found['loc'][-1]}: got {str(found['input'])[:80]!r}; {found['msg']}"}, 422)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": "the server failed at this; its terminal says more"}, 500)


def page(service: Service) -> tuple[str, str]:
    """The page, which needs no other server, and the rule for what it may load: its own script and style, and this server's images."""
    templates = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                            lstrip_blocks=True)
    script, style = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    folder = None if service.collection is None else str(service.collection.waiting)
    text = templates.get_template("page.html.j2").render(script=Markup(script), style=Markup(style), folder=folder, limits=service.limits)
    policy = (f"default-src 'none'; img-src 'self' blob: data:; connect-src 'self'; script-src '{_sha256(script)}'; style-src "
              f"'{_sha256(style)}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
    return text, policy


def _sha256(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
