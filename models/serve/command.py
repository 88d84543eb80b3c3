"""From the command line to a server that runs."""

from __future__ import annotations

import argparse
import ipaddress
import os
import socket
import warnings
from pathlib import Path

from models.serve.answers import Model
from models.serve.collection import Collection
from models.serve.service import Service
from models.serve.uploads import Limits
from models.tools.extend import extended
from models.tools.predict import load_learner
from utils.errors import UserError
from utils.extras import extra
from utils.run.run_folder import RunFolder
from utils.terminal import show

CONNECTIONS = 256  # at the same time; more are told to come again


def serve_run(arguments: argparse.Namespace) -> None:
    """Answer over HTTP until it is stopped. Raises UserError."""
    uvicorn = extra("uvicorn", "serve", "serving a model")
    for module in ("fastapi", "python_multipart"):
        extra(module, "serve", "serving a model")
    from models.serve.app import make_app

    loopback = is_loopback(arguments.host)
    if arguments.collect is not None and not loopback:
        raise UserError(f"--collect: got --host {arguments.host}, which other machines reach; whoever reaches this server may then write "
                        "images to its disk and start training. Allowed: a loopback address (leave --host out; from elsewhere, ssh -L "
                        "brings you here)")
    with listening(arguments.host, arguments.port) as sock:
        service = make_service(arguments)
        try:
            app = make_app(service, loopback=loopback, names=[arguments.host, *arguments.allow_host])
            config = uvicorn.Config(app, log_config=None, access_log=False, ws="none", limit_concurrency=CONNECTIONS, server_header=False,
                                    timeout_graceful_shutdown=5)
            host, port = sock.getsockname()[:2]
            show(f"{service.model.name}: {len(service.model.classes)} classes at http://{f'[{host}]' if ':' in host else host}:{port}/ "
                 "(Ctrl-C stops it)")
            uvicorn.Server(config).run(sockets=[sock])
        finally:
            service.close()


def make_service(arguments: argparse.Namespace) -> Service:
    """The run's model, loaded, with what it may do. Raises UserError."""
    warnings.filterwarnings("ignore", module="PIL")  # of strangers' images, who are told
    collecting = arguments.collect is not None
    run = (RunFolder.finished_run if collecting else RunFolder.named)(arguments.run).path
    if collecting:
        if os.path.lexists(arguments.collect) and not arguments.collect.is_dir():
            raise UserError(f"--collect: {arguments.collect} is no folder; name one, which is made if it is missing")
        if arguments.after_task is not None:
            raise UserError("--collect: new classes are learned after a run's last task; leave --after_task out")
        config, _ = extended(run, str(arguments.collect))  # which tells, before anybody collects, that this run cannot be extended
        if arguments.seed is None:
            arguments.seed = config.seeds[0]

    def load(run: Path) -> Model:
        trained = load_learner(run, seed=arguments.seed, after_task=arguments.after_task, device=arguments.device)
        return Model(trained, run.resolve(), arguments.unknown)

    limits = Limits(bytes=arguments.max_megabytes * 2**20, images=arguments.max_images, pixels=arguments.max_megapixels * 1_000_000)
    extending = ["--device", arguments.device, "--set", f"seed=[{arguments.seed}]", *(f"--plugin={file}" for file in arguments.plugins)]
    return Service(load(run), limits, Collection(arguments.collect) if collecting else None, load, extending)


def listening(host: str, port: int) -> socket.socket:
    """A socket on the address; port 0 takes a free one. Raises UserError."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.create_server(address[:2], family=family, backlog=CONNECTIONS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else an answer's second packet waits 40 ms; connections inherit it
        return sock
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host} --port {port}: nothing can listen there ({getattr(error, 'strerror', None) or error}); name "
                        "another --port (0 takes a free one), or an address of this machine") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address or a name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
