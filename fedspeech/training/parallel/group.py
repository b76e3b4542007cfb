"""The process group of the learners: formed within a time, left when one of them dies.

A store of PyTorch's, which outlives all learners, is where they meet. Each forming is a generation
of its own there, so that a group without the dead one, or with one that joins again, is another
one. Tensors travel by gloo, and by NCCL where each learner has a GPU of its own. What goes from one
learner to another (`send`, `receive`) travels by gloo from everywhere: NCCL has no tags, and two
learners that send to each other at once would wait for ever.
"""

import fcntl
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed import distributed_c10d

from fedspeech.accelerator import place, synchronize
from fedspeech.errors import RunError
from fedspeech.training.parallel.watch import Watch

LOOPBACK = "127.0.0.1"
SIOCGIFADDR = 0x8915
STORE_SECONDS = 60.0
LOOK_SECONDS = 0.01
NEWS_SECONDS = 10.0
"""So soon the run's process has noticed that a learner died, and said so to the others."""
PATIENCE = timedelta(hours=2)
"""How long a learner waits for others who are alive, but slow."""
AT_ONCE = timedelta(milliseconds=1)
DOUBT_SECONDS = 1.0
"""After so long a learner asks whether who it waits for is there; then after twice as long."""
NEVER_SENT = 2**20
"""A tag that nobody uses."""
CUT = "application timeout caused pair closure"
"""What a thread that waits is told where another one of its process cuts the connections."""


class Lost(Exception):
    """The group is no more: a learner in it died, or the run's process wants another one."""


def serve(host: str = LOOPBACK) -> tuple[TCPStore, int]:
    """A store for learners to meet at, listening on this address alone; and its port."""
    listening = socket.create_server((host, 0))
    port = int(listening.getsockname()[1])
    # PyTorch itself would listen on every address.
    store = TCPStore(
        host,
        port,
        is_master=True,
        timeout=timedelta(seconds=STORE_SECONDS),
        wait_for_workers=False,
        master_listen_fd=listening.detach(),
    )
    return store, port


def join(host: str, port: int, seconds: float = STORE_SECONDS) -> TCPStore:
    """The store that another process serves. Raises RunError where it does not answer in time."""
    if (name := _towards(host)) is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    try:
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=seconds))
    except dist.DistError:
        raise RunError(
            f"the process group did not form in {seconds:g} s: the run's store at {host}:{port} "
            f"cannot be reached from {socket.gethostname()} (parallel.form_seconds)"
        ) from None
    store.set_timeout(timedelta(seconds=STORE_SECONDS))
    return store


def _towards(host: str) -> str | None:
    """The network interface by which this machine talks to a host; None where it is not known.

    Gloo itself would take that of this machine's name, which may be the loopback's address.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked, suppress(OSError):
        asked.connect((host, 9))  # which sends nothing
        own = asked.getsockname()[0]
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                if _address(asked, name) == own:
                    return name
    return None


def _address(asked: socket.socket, interface: str) -> str:
    """The IPv4 address of an interface, as Linux tells it (netdevice(7), SIOCGIFADDR)."""
    request = struct.pack("256s", interface.encode()[:15])
    return socket.inet_ntoa(fcntl.ioctl(asked.fileno(), SIOCGIFADDR, request)[20:24])


@dataclass(frozen=True)
class Seat:
    """Where a learner meets the others."""

    learner: int
    members: tuple[int, ...]
    """All learners of this generation, in the order of their ranks."""
    generation: str
    """A name that no other group has."""
    seconds: float = 120.0
    """How long to wait for the others."""
    own_gpu: bool = False
    """Whether each learner has a GPU of its own: NCCL takes no two that share one."""


class Message(NamedTuple):
    """A tensor on its way to another learner, or from it."""

    work: dist.Work | None
    tensor: torch.Tensor
    other: int
    group: dist.ProcessGroup | None

    def arrived(self) -> torch.Tensor:
        """The tensor, when it is there, or has gone. Raises Lost where it never will."""
        all_arrived([self])
        return self.tensor


def all_arrived(messages: Sequence[Message]) -> None:
    """Wait until all are there, or have gone. Raises Lost where one never will.

    Gloo tells nobody who waits for what it is about to send as the connection is closed. So another
    thread waits, and this one asks now and then whether the connection is still there.
    """
    left, raised = list(messages), list[Exception]()
    if not left:
        return
    waits = threading.Thread(target=_wait, args=(left, raised), daemon=True)
    waits.start()
    seconds = DOUBT_SECONDS
    while waits.is_alive():
        waits.join(seconds)
        seconds *= 2
        if waits.is_alive():
            with losing():
                for message in left[:1]:  # none, if the last one came just now
                    never(message.other, message.group)
    if raised:
        with losing():
            raise raised[0]


def _wait(left: list[Message], raised: list[Exception]) -> None:
    try:
        while left:
            assert left[0].work is not None
            left[0].work.wait(PATIENCE)
            left.pop(0)
    except Exception as error:
        # Whatever it is, what is left has not come.
        raised.append(error)


@dataclass
class Group:
    """Learners that talk to each other; ranks count them."""

    rank: int
    size: int
    store: Store
    watch: Watch = field(default_factory=Watch)
    stopped: threading.Event = field(default_factory=threading.Event)
    """Set where the run's process wants the learners back."""
    seconds: float = 120.0
    """How long a part of it may take to form."""
    everybody: dist.ProcessGroup | None = None
    """PyTorch's; None: the process's own. A thread that is late must not talk in the next one."""
    wrong: Exception | None = None
    """What went wrong in a thread that answers others."""
    _parts: list[tuple[dist.ProcessGroup, Sequence[int]]] = field(default_factory=list)

    def check(self) -> None:
        """Raise Lost where the group is not to go on, and what went wrong with answering others."""
        if self.wrong is not None:
            raise self.wrong
        if self.stopped.is_set():
            raise Lost("stopped")

    @contextmanager
    def talks(self) -> Iterator[None]:
        """In the block this learner waits for others. Raises Lost where one of them is gone."""
        with self.watch.waits(), losing():
            yield
            synchronize()

    def send(self, tensor: torch.Tensor, to: int, tag: int = 0) -> "Message":
        """Begin to send a tensor, which has to stay as it is until that is done."""
        self.watch.sent(tensor.numel() * tensor.element_size())
        there = tensor.cpu()
        with losing():
            work = dist.isend(there, to, self.everybody, tag)
            return Message(work, there, to, self.everybody)

    def receive(self, into: torch.Tensor, of: int, tag: int = 0) -> "Message":
        """Begin to receive a tensor on the processor."""
        with losing():
            work = dist.irecv(into, of, self.everybody, tag)
            return Message(work, into, of, self.everybody)

    def sum(self, tensor: torch.Tensor, group: dist.ProcessGroup | None = None) -> None:
        """Make a tensor the sum of all learners', or of those of a group."""
        size = self.size if group is None else group.size()
        if size == 1:
            return
        self.watch.sent(summed_bytes(tensor, size))
        with self.talks():
            dist.all_reduce(tensor, group=group)

    def gather(self, tensor: torch.Tensor, group: dist.ProcessGroup | None = None) -> torch.Tensor:
        """All learners' tensors of this shape and dtype, or those of a group: (learners, ...).

        Raises Lost where one of them is gone.
        """
        size = self.size if group is None else group.size()
        rows = tensor.new_empty(size, *tensor.shape)
        self.watch.sent((size - 1) * tensor.numel() * tensor.element_size())
        with self.talks():
            dist.all_gather(list(rows), tensor.contiguous(), group=group)
        return rows

    def claim(self, count: int = 1) -> int:
        """The first of so many numbers that nobody else gets, from 0."""
        with losing():
            return int(self.store.add("claimed", count)) - count

    def part(self, ranks: Sequence[int]) -> dist.ProcessGroup | None:
        """A group of some of the learners, asked for by all; None for who is not in it.

        Raises Lost where one of them does not come in time.
        """
        with losing():
            found = dist.new_group(list(ranks), timeout=timedelta(seconds=self.seconds))
        if self.rank not in ranks:
            return None
        distributed_c10d._set_pg_timeout(PATIENCE, found)
        self._parts.append((found, ranks))
        return found  # type: ignore[no-any-return]

    def wait_for_all(self, name: str, count: int | None = None) -> None:
        """Wait until all learners, or so many, have come. Raises Lost where it is given up."""
        with self.watch.waits(), losing():
            self.store.add(name, 1)
            while int(self.store.add(name, 0)) < (count or self.size):
                self.check()
                time.sleep(LOOK_SECONDS)

    def close(self) -> None:
        """Leave: who still waits for this learner, here or elsewhere, is told that it is gone."""
        if not dist.is_initialized():
            return
        self.cut()
        with suppress(RuntimeError):
            dist.destroy_process_group()

    def cut(self) -> None:
        """Close every connection: whoever waits here, in any thread, raises Lost.

        Gloo does that where a message does not come in time.
        """
        for group, ranks in [(self.everybody, range(self.size)), *self._parts]:
            for other in ranks:
                if other != self.rank:
                    with suppress(RuntimeError):  # also where that one is gone already
                        never(other, group).wait(AT_ONCE)


def form(store: Store, seat: Seat, watch: Watch, stopped: threading.Event) -> Group:
    """The group of a generation, as soon as all its members are there.

    Raises RunError where one does not come in time (who is named), or cannot be talked to; Lost
    where `stopped` is set meanwhile, here or before another one has met all.
    """
    own = PrefixStore(seat.generation, store)
    _meet(own, seat, stopped)
    rank, size = seat.members.index(seat.learner), len(seat.members)
    backend = "cpu:gloo,cuda:nccl" if seat.own_gpu and place().type == "cuda" else "gloo"
    # One that could not form keeps its number, and others would look for this one by another.
    distributed_c10d._world.group_count = 0
    try:
        soon = timedelta(seconds=seat.seconds)
        dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=soon)
    except RuntimeError as error:
        # Who died meanwhile is replaced, and all others are told to come back.
        if stopped.wait(NEWS_SECONDS):
            raise Lost("stopped") from error
        raise RunError(
            f"the process group did not form in {seat.seconds:g} s: learner {seat.learner} on "
            f"{socket.gethostname()} has no connection to all others (parallel.form_seconds): "
            f"{str(error).splitlines()[0]}"
        ) from error
    distributed_c10d._set_pg_timeout(PATIENCE)
    return Group(rank, size, own, watch, stopped, seat.seconds, dist.group.WORLD)


def _meet(store: Store, seat: Seat, stopped: threading.Event) -> None:
    store.set(f"here/{seat.learner}", "")
    deadline = time.monotonic() + seat.seconds
    missing = list(seat.members)
    while missing := [m for m in missing if not store.check([f"here/{m}"])]:
        if stopped.is_set() or time.monotonic() > deadline:
            break
        time.sleep(LOOK_SECONDS)
    # Whoever is the first to know decides for all: who has left is waited for by nobody.
    if store.compare_set("met", "", "left" if missing else "all") == b"all":
        return
    if stopped.is_set() or not missing:
        raise Lost("stopped")
    every = ", ".join(map(str, seat.members))
    raise RunError(
        f"the process group did not form in {seat.seconds:g} s: of the learners {every} "
        f"there is no {' and no '.join(map(str, missing))} (parallel.form_seconds)"
    )


def never(other: int, group: dist.ProcessGroup | None = None) -> dist.Work:
    """What never comes from another learner. Raises RuntimeError where the connection is closed."""
    work = dist.irecv(torch.empty(1), other, group, NEVER_SENT)
    assert work is not None
    return work


@contextmanager
def losing() -> Iterator[None]:
    """What PyTorch raises where a connection is gone becomes Lost."""
    try:
        yield
    except dist.DistError as error:
        raise Lost(str(error)) from error
    except (RuntimeError, ValueError) as error:
        # Gloo's own have no type of their own, and one does not name it. Where another thread of
        # this process has left, there is no group any more.
        named = any(said in str(error).lower() for said in ("gloo", "nccl", CUT))
        if not named and dist.is_initialized():
            raise
        raise Lost(str(error)) from error


def summed_bytes(tensor: torch.Tensor, learners: int) -> int:
    """What each of so many learners sends where a ring sums a tensor."""
    return 2 * (learners - 1) * tensor.numel() * tensor.element_size() // learners
