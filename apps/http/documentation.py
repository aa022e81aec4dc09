"""The OpenAPI document and the page that shows it, without anything from the network.

Routes like any other, so that they meet the dependencies of the app: FastAPI's own /docs and /openapi.json would not.
"""

from pathlib import Path

import fastapi_offline
from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles

DOCUMENT, FILES = "/openapi.json", "/static-offline-docs"

router = APIRouter(include_in_schema=False)

_files = StaticFiles(directory=Path(fastapi_offline.__file__).parent / "static")


@router.api_route(DOCUMENT, methods=["GET", "HEAD"])
async def openapi_document(request: Request) -> JSONResponse:
    return JSONResponse(request.app.openapi())


@router.get("/docs")
async def documentation(request: Request) -> HTMLResponse:
    root = request.scope.get("root_path", "")
    return get_swagger_ui_html(
        openapi_url=f"{root}{DOCUMENT}",
        title=f"{request.app.title} - Swagger UI",
        swagger_js_url=f"{root}{FILES}/swagger-ui-bundle.js",
        swagger_css_url=f"{root}{FILES}/swagger-ui.css",
        swagger_favicon_url=f"{root}{FILES}/favicon.png",
    )


@router.api_route(FILES + "/{name}", methods=["GET", "HEAD"])
async def documentation_file(request: Request, name: str) -> Response:
    return await _files.get_response(name, request.scope)
