"""The guarded service: it knows nothing of Lapse, tells what reached it (`python -m tests.proxies.upstream PORT`)."""

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect


async def echo(request: Request) -> Response:
    """Tell the request; /own-401 refuses by itself, as services do."""
    if request.url.path == "/own-401":
        return Response("its own", 401)
    body = (await request.body()).decode()
    told = {"method": request.method, "path": request.url.path, "body": body, "headers": dict(request.headers)}
    return JSONResponse(told, headers={"x-service": "echo"})


async def talk(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(f"echo: {await websocket.receive_text()}")
    except WebSocketDisconnect:
        pass


METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"]
app = Starlette(routes=[WebSocketRoute("/ws", talk), Route("/{path:path}", echo, methods=METHODS)])

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", ws="websockets-sansio")
