"""The service under load, through HAProxy and through Ray's Python proxy: more and fewer replicas,
too many requests, slow clients, replicas that die or hang, a deploy.

Run it with -s to see what was measured.
"""

import asyncio
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from mask_ray.config import ImageLimits
from tests.support import image_files
from tests.support.onnx_files import write_classifier
from tests.support.polling import wait_until
from tests.support.served import Service, served
from tests.support.slow_model import RED

# Few, so that a full replica is soon reached; a batch takes long, so that requests stay in it.
MAX_ONGOING = 8
MAX_QUEUED = 16
SETTINGS = {
    "max_batch_size": 8,
    "max_ongoing_requests": MAX_ONGOING,
    "max_queued_requests": MAX_QUEUED,
    "target_ongoing_requests": 4,
    "max_replicas": 2,
    "look_back_period_s": 2,
    "upscale_delay_s": 1,
    "downscale_delay_s": 3,
    "downscaling_factor": 1,
    "health_check_period_s": 2,
    "health_check_timeout_s": 3,
}
NUM_CONNECTIONS = 12
# Three trial inferences that fail, the first after a period and a round of Serve's controller,
# which takes half a period.
NOTICED_WITHIN_S = 2 * 1.1 + 2 * 0.5 + 3 * 3
# Ray asks a process to end itself, and kills it if it is there after 5 s.
KILLED_WITHIN_S = NOTICED_WITHIN_S + 5
# For Serve's controller and Ray to get a core, which the load leaves little of.
LATE_S = 5
STARTED_WITHIN_S = 40

THROUGH_HAPROXY = pytest.mark.parametrize("service", [True], indirect=True, ids=["HAProxy"])


@pytest.fixture(scope="module", params=[True, False], ids=["HAProxy", "Python"])
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    model = write_classifier(folder / "tiny.onnx", num_products=20)
    with served(folder, haproxy=request.param, model_uri=str(model), **SETTINGS) as service:
        yield service
        haproxies = service.haproxies
        assert bool(haproxies) == request.param
    assert [process for process in haproxies if process.is_running()] == []
    for port in service.ports.values():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))


@dataclass
class Load:
    """What came of the requests of a while."""

    outcomes: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0

    @property
    def num_lost(self) -> int:
        return self.outcomes.total() - self.outcomes["200"]

    def add(self, outcome: str, seconds: float) -> None:
        self.outcomes[outcome] += 1
        self.longest_s = max(self.longest_s, seconds)

    def __str__(self) -> str:
        return f"{dict(self.outcomes)}, the longest {self.longest_s:.1f} s"


@contextmanager
def under_load(service: Service, num_connections: int = NUM_CONNECTIONS) -> Iterator[Load]:
    """Ask again and again on each connection, and never twice for the same."""
    load, is_over = Load(), threading.Event()
    bodies = [image_files.jpeg(image_files.picture(seed=seed)) for seed in range(7)]
    # As large as can be asked of another replica, nearly.
    bodies.append(image_files.jpeg() + bytes(200_000))

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        while not is_over.is_set():
            began_s = time.monotonic()
            try:
                response = await client.post("/predict", content=bodies[number % len(bodies)])
                outcome = str(response.status_code)
            except httpx.HTTPError as error:
                outcome = type(error).__name__
            load.add(outcome, time.monotonic() - began_s)
            # So that new replicas find cores to start on.
            await asyncio.sleep(0.1)

    async def ask_on_all() -> None:
        limits = httpx.Limits(max_connections=num_connections)
        async with httpx.AsyncClient(base_url=service.url, timeout=60, limits=limits) as client:
            await asyncio.gather(*(ask(client, number) for number in range(num_connections)))

    thread = threading.Thread(target=asyncio.run, args=(ask_on_all(),))
    thread.start()
    try:
        yield load
    finally:
        is_over.set()
        thread.join()


def seconds_until(condition: Callable[[], bool], within_s: float) -> float:
    """How long it took."""
    began_s = time.monotonic()
    wait_until(condition, timeout_s=within_s, every_s=0.1)
    return time.monotonic() - began_s


def wait_for_answers(load: Load, more: int) -> None:
    wanted = load.outcomes["200"] + more
    wait_until(lambda: load.outcomes["200"] >= wanted)


def wait_for_replicas(service: Service, number: int, without: Any = ()) -> float:
    """Wait until this many replicas can answer, none of them in `without`; return the seconds."""

    def all_are_there() -> bool:
        return len(service.replicas) == number and not {*service.replicas} & {*without}

    taken_s = seconds_until(all_are_there, STARTED_WITHIN_S + NOTICED_WITHIN_S)

    def all_are_counted() -> bool:
        # While an application is replaced it has no deployments.
        deployment = service.status()["deployments"].get("Classifier", {})
        return bool(deployment.get("replica_states") == {"RUNNING": number})

    return taken_s + seconds_until(all_are_counted, STARTED_WITHIN_S)


def assert_problem(response: httpx.Response, status: int) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["status"] == status
    assert response.headers["x-content-type-options"] == "nosniff"


def listening(service: Service) -> set[tuple[str, int]]:
    """Addresses and ports of HAProxy: of all its processes, since a reload starts another one."""
    addresses = set()
    for process in service.haproxies:
        with suppress(psutil.NoSuchProcess):  # ended since it was listed
            addresses |= {
                (connection.laddr.ip, connection.laddr.port)
                for connection in process.net_connections("inet")
                if connection.status == psutil.CONN_LISTEN
            }
    return addresses


@THROUGH_HAPROXY
def test_nothing_listens_beyond_this_machine(service: Service) -> None:
    names = ("http", "RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_HAPROXY_METRICS_PORT")
    expected = {service.ports[name] for name in names}

    def listens_on_its_ports() -> bool:
        addresses = listening(service)
        assert {ip for ip, _ in addresses} <= {"127.0.0.1"}
        return {port for _, port in addresses} == expected

    wait_until(listens_on_its_ports, "HAProxy on its ports alone")


def test_a_late_answer_is_504(service: Service) -> None:
    red = image_files.one_pixel(RED)

    response = httpx.post(f"{service.url}/impatient/predict", content=red, timeout=600)

    assert_problem(response, 504)


def test_more_than_it_holds_is_429_with_when_to_come_back(service: Service) -> None:
    async def ask_all(number: int) -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:
            photo = image_files.jpeg()
            coming = (client.post("/predict", content=photo) for _ in range(number))
            return await asyncio.gather(*coming)

    responses = asyncio.run(ask_all(8 * (MAX_ONGOING + MAX_QUEUED)))

    refused = [response for response in responses if response.status_code != 200]
    assert 0 < len(refused) < len(responses)
    for response in refused:
        assert_problem(response, 429)
        assert response.headers["retry-after"] == "1"


def test_a_replica_stays_small(service: Service) -> None:
    httpx.post(f"{service.url}/predict", content=image_files.jpeg())

    for replica in service.replicas:
        (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{replica.pid}/status").read_text())
        assert int(peak) / 1024 < 500


SLOW_CLIENTS = {
    "headers": b"POST /predict HTTP/1.1\r\nHost: localhost\r\nX-",
    "body": b"POST /impatient/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n\r\n",
}


@pytest.mark.parametrize("stalled", SLOW_CLIENTS)
def test_a_client_that_trickles_is_refused(service: Service, stalled: str) -> None:
    if stalled == "headers" and not service.haproxies:
        pytest.skip("uvicorn sets no limit on waiting for headers; see docs/guides/operate.md")
    with socket.create_connection(("127.0.0.1", service.ports["http"]), timeout=20) as client:
        client.sendall(SLOW_CLIENTS[stalled])
        client.settimeout(0.2)
        received = trickle(client, within_s=15)

    assert received.startswith(b"HTTP/1.1 408 ")
    # HAProxy's own of headers cannot be changed.
    assert stalled == "headers" or b"\r\ncontent-type: application/problem+json" in received


def trickle(client: socket.socket, within_s: float) -> bytes:
    """Send a byte now and then, until something comes back."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            return client.recv(4096)
        except TimeoutError:
            if time.monotonic() % 1 < 0.2:
                client.sendall(b"a")
    raise AssertionError(f"no answer within {within_s} s")


def test_a_body_declared_too_long_is_refused_before_it_is_sent(service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.ports["http"]), timeout=20) as client:
        too_many = ImageLimits().max_image_bytes + 1
        head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {too_many}"
        client.sendall(f"{head}\r\n\r\n".encode())
        received = client.recv(4096)

    assert received.startswith(b"HTTP/1.1 413 ")
    for leak in (b"haproxy", b"/site-packages", b"Traceback"):
        assert leak not in received.lower()


@THROUGH_HAPROXY
def test_replicas_come_with_load_and_go_after_it_and_none_is_failed(service: Service) -> None:
    assert len(service.replicas) == 1
    with under_load(service) as load:
        up_s = wait_for_replicas(service, 2)
        wait_for_answers(load, 100)
    with under_load(service, num_connections=1) as calm:
        down_s = wait_for_replicas(service, 1)
    print(f"\n2 replicas after {up_s:.1f} s: {load}\n1 again after {down_s:.1f} s: {calm}")
    assert load.num_lost == calm.num_lost == 0


@THROUGH_HAPROXY
def test_a_deploy_under_load_fails_none(service: Service) -> None:
    before = service.replicas
    with under_load(service, num_connections=MAX_ONGOING) as load:
        service.deploy(min_replicas=2)
        taken_s = wait_for_replicas(service, 2, without=before)
        wait_for_answers(load, 100)
    print(f"\na deploy of {taken_s:.1f} s: {load}")
    assert load.num_lost == 0


def two_replicas(service: Service) -> list[psutil.Process]:
    if len(service.replicas) < 2:
        service.deploy(min_replicas=2)
        wait_for_replicas(service, 2)
    return service.replicas


def test_a_killed_replica_costs_at_most_what_is_inside_it(service: Service) -> None:
    victim, _ = two_replicas(service)
    with under_load(service) as load:
        wait_for_answers(load, 100)
        victim.kill()
        taken_s = wait_for_replicas(service, 2, without=[victim])
    print(f"\nkilled, 2 replicas again after {taken_s:.1f} s: {load}")
    # Ray's Python proxy promises no second try.
    assert load.num_lost <= (0 if service.haproxies else MAX_ONGOING)
    assert set(load.outcomes) <= {"200", "502"}


@THROUGH_HAPROXY
def test_a_replica_that_hangs_is_replaced_and_costs_nothing(service: Service) -> None:
    victim, _ = two_replicas(service)
    with under_load(service) as load:
        wait_for_answers(load, 100)
        victim.suspend()
        gone_s = seconds_until(lambda: victim not in service.replicas, KILLED_WITHIN_S + LATE_S)
        taken_s = gone_s + wait_for_replicas(service, 2, without=[victim])
    print(f"\nhung, killed after {gone_s:.1f} s, 2 replicas after {taken_s:.1f} s: {load}")
    assert load.num_lost == 0
