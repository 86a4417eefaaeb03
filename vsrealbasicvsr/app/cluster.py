"""Renders segments by Ray: workers on this machine or on a cluster, which may die and come back."""

import importlib.util
import itertools
import logging
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vsrealbasicvsr.errors import UserError, printable, shown_path
from vsrealbasicvsr.whole_file import whole_file

from .dispatch import MAX_LOSSES, Dispatcher
from .job import Choices, Job, check_unchanged, source_identity
from .opening import open_job
from .plan import Segment
from .rendering import render

CONNECT_SECONDS = 10
PIECE_BYTES = 64 << 20
"""Size of the pieces in which a source travels to a machine that does not have it."""


class Worker:
    """Runs in a process of Ray's: opens the source once, and renders one segment after another.

    Everything is made in a temporary folder of the worker's machine; what it renders goes back as bytes.
    """

    def __init__(
        self, source: Path, suffix: str, choices: Choices, identity: dict[str, Any], pieces: list[Any]
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="rbvsr-")
        folder = Path(self._folder.name)
        if not source.exists() or source_identity(source) != identity["source"]:
            source = _fetched(folder / source.name, pieces)
        self._job, _, _, self._pipeline = open_job(source, folder / f"out{suffix}", choices)
        self._job.folder.mkdir(exist_ok=True)
        if dict(self._job.identity) != identity:
            raise UserError(
                f"a machine of the cluster has other versions or weights ({self._job.identity['versions']}) than this"
                f" one ({identity['versions']}): install the same on all"
            )

    def ready(self) -> None:
        """Return when segments can be rendered."""

    def render(self, segment: Segment) -> bytes:
        """Render a segment; return its file."""
        list(render(self._job, self._pipeline, [segment]))
        path = self._job.path_of(segment)
        encoded = path.read_bytes()
        path.unlink()
        return encoded


def _fetched(path: Path, pieces: list[Any]) -> Path:
    """Write a source that came in pieces through Ray."""
    import ray

    with path.open("wb") as file:
        for piece in pieces:
            file.write(ray.get(piece))
    return path


def connect(address: str) -> Any:
    """Connect to a Ray cluster, or start one on this machine ("auto" where none runs).

    Raises:
        UserError: Ray is not installed, or no cluster answers at the address.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError("--cluster needs Ray: pip install 'vapoursynth-rbvsr[cluster]'")
    _check_address(address)
    import ray

    try:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError:
            if address != "auto":
                raise
            ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _no_answer(address, error) from None
    return ray


def _check_address(address: str) -> None:
    """Raise UserError if nobody listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_answer(address, error) from None


def _no_answer(address: str, error: Exception) -> UserError:
    return UserError(
        f"no Ray cluster answers at {printable(address, 100)} ({printable(str(error), 200)}):"
        " start one with ray start --head, or use --cluster auto"
    )


def worker_resources(ray: Any, num_workers: int | None) -> list[dict[str, float]]:
    """Return what each worker gets: a GPU each where there are GPUs, else an equal share of the CPUs."""
    total = ray.cluster_resources()
    gpus, cpus = int(total.get("GPU", 0)), total.get("CPU", 1.0)
    machines = sum(1 for node in ray.nodes() if node["Alive"])
    count = num_workers or gpus or machines
    share = (
        {"num_gpus": min(1.0, gpus / count)}
        if gpus
        else {"num_cpus": max(1.0, cpus // count) if count <= cpus else 0.0}
    )
    return [share] * count


def render_on_cluster(
    job: Job,
    missing: list[Segment],
    on_segment: Callable[[Segment], None],
    *,
    address: str,
    num_workers: int | None,
) -> None:
    """Render segments by the workers of a Ray cluster; each is put in its place when it arrives.

    Args:
        job: The job; its folder is on this machine.
        missing: What to render.
        on_segment: Called with each segment that arrived.
        address: Of the cluster; "auto": the one that runs here, else one of this machine's own.
        num_workers: None: one for each GPU, or for each machine if there is none.

    Raises:
        UserError: As upscaling on one machine does; or a segment kills every worker that renders it.
    """
    if not missing:
        return
    ray = connect(address)
    try:
        resources = worker_resources(ray, num_workers)[: len(missing)]
        pieces = _pieces(ray, job.source)
        _Run(ray, job, missing, on_segment, pieces).run(resources)
    finally:
        ray.shutdown()


def _pieces(ray: Any, source: Path) -> list[Any]:
    """Put the source into Ray's store if there are machines that may not have it."""
    if sum(1 for node in ray.nodes() if node["Alive"]) == 1:
        return []
    pieces = []
    with source.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            pieces.append(ray.put(piece))
    return pieces


class _Run:
    """One run of the segments over the workers."""

    def __init__(
        self, ray: Any, job: Job, missing: list[Segment], on_segment: Callable[[Segment], None], pieces: list[Any]
    ) -> None:
        self._ray = ray
        self._job = job
        self._dispatcher = Dispatcher(missing)
        self._on_segment = on_segment
        self._arguments = (job.source.resolve(), job.output.suffix, job.choices, dict(job.identity), pieces)
        self._numbers = itertools.count()
        self._workers: dict[int, tuple[Any, dict[str, float]]] = {}
        """Those that live, with what each was given, by numbers that are not used again."""
        self._under_way: dict[Any, int] = {}
        """The worker that each awaited result comes from."""
        self._deaths_in_a_row = 0
        self._source_seen: tuple[int, int, int] | None = None

    def run(self, resources: list[dict[str, float]]) -> None:
        """Start the workers and hand out segments until all are there."""
        for options in resources:
            self._start(options)
        while not self._dispatcher.finished:
            (result,), _ = self._ray.wait(list(self._under_way), num_returns=1)
            number = self._under_way.pop(result)
            if self._arrived(number, result):
                self._deaths_in_a_row = 0
                self._give_to_idle(number)
            else:
                self._replace(number)

    def _start(self, options: dict[str, float]) -> None:
        """Start a worker. It is given a segment once it is ready: a machine that is gone must not hold one."""
        number = next(self._numbers)
        actor = self._ray.remote(Worker).options(**options).remote(*self._arguments)
        self._workers[number] = actor, options
        self._under_way[actor.ready.remote()] = number

    def _give_to_idle(self, number: int) -> None:
        """Hand out a segment to this worker, and to others that found none before."""
        for idle in {number, *self._workers} - set(self._under_way.values()):
            segment = self._dispatcher.next_for(idle)
            if segment is not None:
                self._under_way[self._workers[idle][0].render.remote(segment)] = idle

    def _replace(self, number: int) -> None:
        """Start another worker for one that died, and let its segment be rendered again."""
        _, options = self._workers.pop(number)
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row > MAX_LOSSES * max(1, len(self._workers)):
            raise UserError(
                "the workers of the Ray cluster die before they render anything: look for their reason in Ray's logs"
            )
        self._dispatcher.lost(number)
        self._start(options)
        for idle in self._workers.keys() - set(self._under_way.values()):
            self._give_to_idle(idle)

    def _arrived(self, number: int, result: Any) -> bool:
        """Put a segment in its place; False if its worker died."""
        exceptions = self._ray.exceptions
        try:
            encoded = self._ray.get(result)
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError | OSError):
                raise error.cause from None
            raise
        except (exceptions.RayActorError, exceptions.WorkerCrashedError, exceptions.ObjectLostError) as error:
            if "UserError: " in str(error):  # while it opened the source
                raise UserError(_last_line(str(error))) from None
            return False
        if encoded is not None:
            self._keep(number, encoded)
        return True

    def _keep(self, number: int, encoded: bytes) -> None:
        """Put the segment that a worker rendered in its place."""
        self._check_source()
        segment = self._dispatcher.done(number)
        path = self._job.path_of(segment)
        try:
            with whole_file(path) as file:
                file.write(encoded)
        except OSError as error:
            raise UserError(
                f"{shown_path(path.parent)} cannot be written ({error.strerror}): make room and run the command again"
            ) from None
        self._on_segment(segment)

    def _check_source(self) -> None:
        """Raise UserError if the source changed. It is read again only if its time changed."""
        stat = self._job.source.stat() if self._job.source.exists() else None
        seen = None if stat is None else (stat.st_size, stat.st_mtime_ns, stat.st_ino)
        if seen is None or seen != self._source_seen:
            check_unchanged(self._job)
            self._source_seen = seen


def _last_line(text: str) -> str:
    """Return the words of a UserError in a traceback of Ray's."""
    lines = [line for line in text.splitlines() if "UserError: " in line]
    return lines[-1].partition("UserError: ")[2] if lines else printable(text, 300)
