"""Which files with TLS in them are in use, by which processes; and their probes, from the first process to the last.

Contract: `Discovery` is told by its owner what the kernel side sees (`attend`) and asked to go on (`poll`), all from one
thread. None of these blocks: what opens, reads or analyses a file, or reads the mappings of a process, is done by a worker
thread; what takes probes away (the kernel waits 20 to 40 ms for each link) by others. Probes are attached in `poll`, from
results. Nothing here raises because of what a process or a file does.

1. A file is named as the kernel names it, by the device of its file system (``i_sb->s_dev``: major << 20 | minor) and its
   inode: so do the events and /proc/PID/maps. stat(2) gives another device on btrfs and overlayfs, and is not asked.
2. Probes belong to an inode, however many processes and names it has. On overlayfs that is the inode below: containers
   that share a layer share it, though each has a device of its own. Its file handle tells (`real_inode`); attached twice,
   each hit would count twice.
3. The TLS libraries in the linker's cache are attached at start, used or not, and stay. Any other file is attached while
   a process uses it and LINGER_NS longer, so that a program that runs for 5 ms again and again is seen from its second
   time on. Before it is detached, the mappings of all processes are looked through: a fork inherits without an event.
4. Every file that is mapped to be executed may have TLS linked into it, whatever its name. A file whose bytes contain
   none of MARKS has not, and is not analysed. The others are, once for each content: what is known is found again by a
   digest of the content, not by the build id, which anybody can write into a file to have it probed at wrong places, or to
   have others probed so.
5. What a process did before its file was attached is not seen. If the process ended before, it is counted as missed.
6. Everything is bounded; what goes over a bound is counted.
"""

from __future__ import annotations

import enum
import errno
import os
import queue
import re
import stat
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from netprofiler import wire
from netprofiler.sources.mapped_files import (
    FILE_MAX_BYTES,
    ChangeWatch,
    Key,
    Mapping,
    RealInode,
    Stamp,
    file_stamp,
    find_users,
    key_of,
    linked_tls_libraries,
    parse_maps,
    processes,
    read_content,
    read_maps,
    real_inode,
)
from netprofiler.sources.probes import Analysis, Finding
from netprofiler.sources.processes import PROC
from netprofiler.sources.uprobes import CLOSERS, AttachError

FILES_MAX: Final = 16_384
"""Files that are known, nearly all of them as having no TLS in them: some 500 bytes each."""
READY_MAX: Final = 512
"""Analyses kept of files that nobody uses."""
ANALYSES_MAX: Final = 512
"""Analyses kept by content."""
ATTACHMENTS_MAX: Final = 1_024
"""Inodes with probes: a descriptor or two each."""
PIDS_MAX: Final = 32_768
"""Processes whose files are remembered: those with TLS in them, or not yet known."""
QUEUE_MAX: Final = 256
"""Files waiting for the worker, a descriptor each."""
RESULTS_MAX: Final = 64
"""Results waiting for `poll`, a descriptor each: then the worker waits."""
LINGER_NS: Final = 60_000_000_000
"""How long probes stay when the last process is gone: a health check or a cron job comes every minute."""
LINGERING_MAX: Final = 64
"""Files that linger: with more, the longest unused go at once."""
SURVEY_TRIES: Final = 3
"""A file is opened by way of the first of its users that still lives, of so many."""
POLL_NS: Final = 10_000_000
"""`poll` attaches for so long, then leaves the rest to the next call."""
STOP_SECONDS: Final = 1.0
"""How long the end waits for the worker, which may hang in a file."""


class Attachment(Protocol):
    """The probes of a finding in one inode."""

    def close(self) -> None:
        """Called from another thread than the owner's, once."""


class State(enum.Enum):
    """What became of a file."""

    WAITING = "is being analysed"
    NOTHING = "no TLS that could be read"
    FAILED = "cannot be probed"
    READY = "analysed, not attached"
    ATTACHED = "attached"


@dataclass(frozen=True, slots=True)
class FileFacts:
    """For `explain`: a file that a process has mapped to be executed, and what became of it."""

    path: str
    """As the process sees it; ends in `` (deleted)`` where it was removed or replaced."""
    state: State | None
    """None: not known (yet)."""
    reason: str = ""
    """Why it is not attached, where there is more to say than the state says."""
    analysis: Analysis = field(default_factory=Analysis)


@dataclass(slots=True)
class Counts:
    """What was done, and what was not."""

    files: int = 0
    """Known now."""
    attached_files: int = 0
    """Inodes with probes now."""
    attached_probes: int = 0
    attached: int = 0
    """Inodes that were ever attached."""
    detached: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """Files that could not be opened, analysed or attached, by reason."""
    missed: Counter[str] = field(default_factory=Counter)
    """Processes that ended before their file was attached: ``ended`` before it was opened, so what was in it is not
    known; ``late`` before it was attached, with TLS in it."""
    over: Counter[str] = field(default_factory=Counter)
    """What found a bound reached, by bound."""
    blind: Counter[str] = field(default_factory=Counter)
    """Files with TLS that cannot be read, by the name of the implementation."""


# --- the worker ----------------------------------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class _File:
    """A file that is known. Only the owner's thread changes it."""

    keys: list[Key]
    path: str = ""
    stamp: Stamp | None = None
    state: State = State.WAITING
    reason: str = ""
    analysis: Analysis = field(default_factory=Analysis)
    digest: bytes = b""
    attached: _Attached | None = None
    permanent: bool = False
    pids: set[int] = field(default_factory=set)
    """Known users, while it is waiting or attached, and not permanent."""
    ended: int = 0
    """Users that ended while it was waiting."""


@dataclass(eq=False, slots=True)
class _Attached:
    """An inode with probes."""

    real: RealInode
    digest: bytes
    handles: list[Attachment]
    probes: int
    files: list[_File]
    watch: int
    """Of `ChangeWatch`."""


_Known = tuple[Stamp, bytes, Analysis]
"""What was found when a file was looked into before."""


@dataclass(frozen=True, slots=True)
class _Look:
    """A file to be looked into."""

    key: Key
    pid: int
    descriptor: int = -1
    """An O_PATH descriptor; -1: to be opened by its mapping."""
    address: int = 0
    known: _Known | None = None


@dataclass(frozen=True, slots=True)
class _Survey:
    """All that all processes have mapped."""

    known: dict[Key, _Known]


@dataclass(frozen=True, slots=True)
class _Search:
    """Who uses these files?"""

    keys: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class _Seen:
    """A file was looked into."""

    keys: tuple[Key, ...]
    pids: frozenset[int] = frozenset()
    """Users, where the survey found it."""
    path: str = ""
    descriptor: int = -1
    """Open for reading, where there is something to attach."""
    stamp: Stamp | None = None
    digest: bytes = b""
    analysis: Analysis = field(default_factory=Analysis)
    failure: str = ""
    """A word for the counter."""


@dataclass(frozen=True, slots=True)
class _Users:
    found: dict[Key, set[int]]


@dataclass(frozen=True, slots=True)
class _Done:
    """The survey is over."""


@dataclass(frozen=True, slots=True)
class _Prepare:
    """Analyse what will be looked at, ahead of time."""


_Job = _Look | _Survey | _Search | _Prepare
_Result = _Seen | _Users | _Done

_GONE: Final = "gone"
_LIKE_TLS: Final = re.compile(r"/lib(?:ssl|gnutls|nspr4)")


class _Worker:
    """Looks into files: all that may take long. One thread; `look` is also called before it is started."""

    def __init__(self, analyse: Callable[[str], Analysis], only: frozenset[int] | None = None) -> None:
        self._analyse = analyse
        self.only = only
        """Surveys look at these processes."""
        self.jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.results: queue.Queue[_Result] = queue.Queue(RESULTS_MAX)
        self._analyses: OrderedDict[bytes, Analysis] = OrderedDict()
        self._prepared: dict[Key, _Known] = {}
        self._preparing = threading.Event()
        self.analysed = 0
        """Files that had to be analysed, for tests."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="discovery", daemon=True)

    def start(self) -> None:
        if not self._thread.is_alive():
            self._thread.start()

    def stop(self) -> None:
        """The job under way is not waited for long: a thread that hangs in a file must not keep the agent from ending."""
        self._stop.set()
        self.jobs.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout=STOP_SECONDS)

    def _run(self) -> None:
        while (job := self.jobs.get()) is not None:
            self._do(job)

    def _do(self, job: _Job) -> None:
        if self._stop.is_set():
            if isinstance(job, _Look) and job.descriptor >= 0:
                os.close(job.descriptor)
            return
        match job:
            case _Look():
                self._put(self._look(job))
            case _Survey():
                self._survey(job.known)
            case _Prepare():
                self._prepare()
            case _Search():
                self._put(_Users(find_users(job.keys)))

    def prepare(self) -> None:
        """Begin with what `look` and a survey will need, while the owner is busy with something else."""
        self._preparing.set()
        self.jobs.put(_Prepare())

    def end_preparing(self) -> None:
        """What is prepared is enough: the file under way is finished."""
        self._preparing.clear()

    def _prepare(self) -> None:
        for root in _roots() if self.only is None else ():
            for path in linked_tls_libraries(root):
                if not self._preparing.is_set():
                    return
                try:
                    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
                except OSError:
                    continue
                try:
                    self._drop(self.look(handle, ()))
                finally:
                    os.close(handle)
        _, mappings = _mapped_files(self.only)
        for key in sorted(mappings, key=lambda key: not _LIKE_TLS.search(mappings[key][0][1].path)):
            if not self._preparing.is_set():
                return
            pid, mapping = mappings[key][0]
            seen = self._look(_Look(key, pid, address=mapping.start))
            if seen.stamp is not None:
                self._prepared[key] = (seen.stamp, seen.digest, seen.analysis)
            self._drop(seen)

    def _drop(self, seen: _Seen) -> None:
        if seen.descriptor >= 0:
            os.close(seen.descriptor)

    def _do_what_came(self) -> None:
        """What just began may soon end; what the survey looks at has been there for long."""
        while not self.jobs.empty():
            job = self.jobs.get()
            if job is None:
                self.jobs.put(None)
                return
            self._do(job)

    def _put(self, result: _Result) -> None:
        while not self._stop.is_set():
            try:
                self.results.put(result, timeout=0.2)
            except queue.Full:
                continue
            return
        if isinstance(result, _Seen) and result.descriptor >= 0:
            os.close(result.descriptor)

    def _survey(self, known: dict[Key, _Known]) -> None:
        known = {**self._prepared, **known}
        self._prepared = {}
        users, mappings = _mapped_files(self.only)
        # What is called like a TLS library first.
        for key in sorted(users, key=lambda key: not _LIKE_TLS.search(mappings[key][0][1].path)):
            self._do_what_came()
            for pid, mapping in mappings[key]:
                if self._stop.is_set():
                    return
                look = _Look(key, pid, address=mapping.start, known=known.get(key))
                seen = self._look(look, frozenset(users[key]))
                if seen.failure != _GONE:
                    self._put(seen)
                    break
        self._put(_Done())

    def _look(self, look: _Look, pids: frozenset[int] = frozenset()) -> _Seen:
        handle = look.descriptor if look.descriptor >= 0 else _open_mapping(look)
        if handle is None:
            return _Seen((look.key,), pids, failure=_GONE)
        try:
            return self.look(handle, (look.key,), pids, look.known)
        finally:
            os.close(handle)

    def look(
        self,
        handle: int,
        keys: tuple[Key, ...],
        pids: frozenset[int] = frozenset(),
        known: _Known | None = None,
    ) -> _Seen:
        """`handle`: an O_PATH descriptor, which has no effect on what it names; it is opened if that is a file."""
        link = f"/proc/self/fd/{handle}"
        path = ""
        descriptor = -1
        try:
            path = os.readlink(link)
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                return _Seen(keys, pids, path, failure="not_a_file")
            descriptor = os.open(link, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            stamp = file_stamp(f"/proc/self/fd/{descriptor}")
            mapped_as = key_of(descriptor)
            if mapped_as is not None and mapped_as not in keys:
                if keys and mapped_as[1] != keys[0][1]:
                    os.close(descriptor)
                    return _Seen(keys, pids, path, failure=_GONE)  # the process has another file there by now
                keys = (*keys, mapped_as)
            if known is not None and known[0] == stamp:
                digest, analysis = known[1:]
            else:
                digest, analysis = self._content(descriptor)
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
            return _Seen(keys, pids, path, failure=errno.errorcode.get(error.errno or 0, "unreadable"))
        if not any(finding.probes for finding in analysis.findings):
            os.close(descriptor)
            descriptor = -1
        return _Seen(keys, pids, path, descriptor, stamp, digest, analysis)

    def _content(self, descriptor: int) -> tuple[bytes, Analysis]:
        """Its digest, and what is in it."""
        if os.fstat(descriptor).st_size > FILE_MAX_BYTES:
            return b"", Analysis(problem=f"the file has more than {FILE_MAX_BYTES} bytes")
        digest = read_content(descriptor)
        if not digest:
            return b"", Analysis()
        analysis = self._analyses.get(digest)
        if analysis is None:
            self.analysed += 1
            try:
                # By number, not "self": the analysis may ask another process.
                analysis = self._analyse(f"/proc/{os.getpid()}/fd/{descriptor}")
            except Exception as error:  # noqa: BLE001 - hostile input: whatever it breaks, the others go on
                analysis = Analysis(problem=f"the analysis broke: {type(error).__name__}: {error}")
            self._analyses[digest] = analysis
            if len(self._analyses) > ANALYSES_MAX:
                self._analyses.popitem(last=False)
        else:
            self._analyses.move_to_end(digest)
        return digest, analysis


def _roots() -> list[Path]:
    """Our root directory, and the host's where we are in a container."""
    host = PROC / "1/root"
    try:
        if not os.path.samefile(host, "/"):
            return [Path("/"), host]
    except OSError:
        pass
    return [Path("/")]


def _mapped_files(only: frozenset[int] | None) -> tuple[dict[Key, set[int]], dict[Key, list[tuple[int, Mapping]]]]:
    """Every file that a process (one of these) has mapped to be executed → its users, and some of its mappings."""
    mappings: dict[Key, list[tuple[int, Mapping]]] = {}
    users: dict[Key, set[int]] = {}
    own = os.getpid()
    for pid in processes() if only is None else only:
        if pid == own:
            continue
        for mapping in parse_maps(read_maps(pid)):
            key = mapping.key
            if key not in users:
                if len(users) >= FILES_MAX:
                    continue
                users[key], mappings[key] = set(), []
            users[key].add(pid)
            if len(mappings[key]) < SURVEY_TRIES:
                mappings[key].append((pid, mapping))
    return users, mappings


def _open_mapping(look: _Look) -> int | None:
    """The file that a process has mapped: replaced or deleted ones too, whatever its mount namespace."""
    mappings = [mapping for mapping in parse_maps(read_maps(look.pid)) if mapping.key[1] == look.key[1]]
    # Older kernels name what is below an overlay in maps, and the overlay in events: there, the address tells.
    exact = [mapping for mapping in mappings if mapping.key == look.key]
    for mapping in exact or [mapping for mapping in mappings if mapping.start <= look.address < mapping.end]:
        path = PROC / str(look.pid) / "map_files" / f"{mapping.start:x}-{mapping.end:x}"
        try:
            return os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
    return None


# --- the owner's side ----------------------------------------------------------------------------------------------------


class Discovery:
    """`analyse` is called in the worker's thread, with a path to open; `attach` in the owner's, with a path that is
    followed at once. `forget`: the kernel side shall tell again of mappings of this file. `only`: what none of these processes
    uses is not attached, until `widen` is called, for probes cost whoever runs into them.
    """

    def __init__(
        self,
        analyse: Callable[[str], Analysis],
        attach: Callable[[str, Finding], Attachment],
        forget: Callable[[int, int], None],
        *,
        only: frozenset[int] | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        linger_ns: int = LINGER_NS,
    ) -> None:
        self._only = only
        self._clock_ns = clock_ns
        self._attach_finding = attach
        self._forget = forget
        self._linger_ns = linger_ns
        self._worker = _Worker(analyse, only)
        self._closers = ThreadPoolExecutor(CLOSERS, "detach")
        self._files: dict[Key, _File] = {}
        self._plain: OrderedDict[_File, None] = OrderedDict()
        """Nothing to attach: forgotten first."""
        self._ready: OrderedDict[_File, None] = OrderedDict()
        self._idle: OrderedDict[_File, int] = OrderedDict()
        """Attached, no known user → since when."""
        self._searched: set[_File] = set()
        """Of those, these are being searched for users."""
        self._searching = False
        self._of_pid: dict[int, list[_File]] = {}
        self._inodes: list[_Attached] = []
        self._waiting = 0
        self._surveying = False
        self._own_pid = os.getpid()
        self._counts = Counts()
        self._changes = ChangeWatch()

    # --- start and end -----------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Has the worker analyse what `start` will need. Nothing is attached: the kernel side need not be there yet."""
        self._worker.start()
        self._worker.prepare()

    def start(self) -> None:
        """Attaches the libraries of the linker's cache (not with `only`), then has the worker look at what runs. Events are
        told from before this call on.
        """
        self._worker.end_preparing()
        if self._only is None:
            self._attach_linked()
        self._worker.start()
        self._survey()

    def widen(self) -> None:
        """Others than those of `only` are watched as well from now on."""
        if self._only is None:
            return
        self._only = self._worker.only = None
        for file in list(self._ready):
            self._drop(file)
        self._attach_linked()
        self._survey()

    def _attach_linked(self) -> None:
        for root in _roots():
            for path in linked_tls_libraries(root):
                self._attach_permanently(path)

    def _survey(self) -> None:
        known = {key: (file.stamp, file.digest, file.analysis) for key, file in self._files.items() if file.stamp}
        self._surveying = True
        self._worker.jobs.put(_Survey(known))

    def _attach_permanently(self, path: str) -> None:
        try:
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return  # the cache may name what was removed
        try:
            seen = self._worker.look(handle, ())
        finally:
            os.close(handle)
        if not seen.keys or seen.failure:
            self._counts.failures[seen.failure or "unreadable"] += 1
            return
        if seen.keys[0] in self._files:
            if seen.descriptor >= 0:
                os.close(seen.descriptor)
            return
        file = self._add(seen.keys[0])
        file.permanent = True
        self._conclude(file, seen)

    @property
    def descriptor(self) -> int:
        """Readable when a file with probes was written to: then `poll` should come soon. -1 where there is none."""
        return self._changes.descriptor

    @property
    def settled(self) -> bool:
        """All that is known of is looked into."""
        return not self._waiting and not self._surveying

    def close(self) -> None:
        """Detaches everything; the worker's job under way is given a second."""
        self._worker.stop()
        while not self._worker.results.empty():
            result = self._worker.results.get_nowait()
            if isinstance(result, _Seen) and result.descriptor >= 0:
                os.close(result.descriptor)
        for inode in self._inodes:
            for handle in inode.handles:
                self._closers.submit(handle.close)
        self._inodes.clear()
        self._changes.close()
        self._closers.shutdown(wait=True)

    # --- events ------------------------------------------------------------------------------------------------------

    def attend(self, notices: Iterable[wire.Notice]) -> None:
        """What processes have begun or ended to use, in the order of the kernel side's notices."""
        for notice in notices:
            if notice.kind == wire.NOTICE_EXECUTED:
                self.executed(notice.pid, notice.device, notice.inode)
            elif notice.kind == wire.NOTICE_MAPPED:
                self.mapped(notice.pid, notice.device, notice.inode, notice.address)
            elif notice.kind == wire.NOTICE_EXITED:
                self.exited(notice.pid)
            elif notice.kind == wire.NOTICE_FORKED:
                self.widen()

    def executed(self, pid: int, device: int, inode: int) -> None:
        """The process runs this file now, and has nothing else mapped."""
        self.exited(pid)
        if pid == self._own_pid:
            return
        key = (device, inode)
        file = self._files.get(key)
        link = f"/proc/{pid}/exe"
        if file is not None and file.stamp is not None:
            # A number of an inode is given away again, and a file may be written anew.
            stamp = file_stamp(link)
            if stamp is not None and stamp != file.stamp and stamp[0] == file.stamp[0]:
                self._drop(file)
                file = None
        if file is not None and file.state is not State.READY:
            self._join(file, pid)
            return
        try:
            handle = os.open(link, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            self._counts.missed["ended" if file is None else "late"] += 1
            return
        self._look_into(key, pid, file, handle, 0)

    def mapped(self, pid: int, device: int, inode: int, address: int) -> None:
        """The process has mapped this file to be executed, there."""
        if pid == self._own_pid:
            return
        key = (device, inode)
        file = self._files.get(key)
        if file is not None and file.state in (State.WAITING, State.ATTACHED):
            self._join(file, pid)
            return
        # A file without TLS, of which the kernel side tells again, may be another one with the same number.
        self._look_into(key, pid, file, -1, address)

    def exited(self, pid: int) -> None:
        """The process is gone."""
        files = self._of_pid.pop(pid, None)
        if files is None:
            return
        for file in files:
            file.pids.discard(pid)
            if file.state is State.WAITING:
                file.ended += 1
            elif not file.pids and file.attached is not None:
                self._idle[file] = 0  # poll knows the time

    def poll(self) -> None:
        """Attach what is ready to be, detach what is not used."""
        for watch in self._changes.changed():
            self._abandon(watch)
        results = self._worker.results
        if not results.empty():
            until_ns = self._clock_ns() + POLL_NS
            while not results.empty():
                self._take(results.get_nowait())
                if self._clock_ns() > until_ns:
                    break
        if self._idle:
            self._look_for_idle(self._clock_ns())

    def events_lost(self) -> None:
        """Some of the above were not told: users are looked for anew, and so are files."""
        for file in set(self._files.values()):
            if file.state is State.ATTACHED and not file.permanent:
                self._disown(file)
                self._idle[file] = 0
        if not self._surveying:
            self._survey()

    # --- files -------------------------------------------------------------------------------------------------------

    def _add(self, key: Key) -> _File:
        if len(self._files) >= FILES_MAX and self._plain:
            self._drop(next(iter(self._plain)))
        file = self._files[key] = _File([key])
        return file

    def _drop(self, file: _File) -> None:
        """As if it had never been seen."""
        if file.attached is not None:
            self._detach(file)
        self._plain.pop(file, None)
        self._ready.pop(file, None)
        self._disown(file)
        for key in file.keys:
            if self._files.get(key) is file:
                del self._files[key]
                self._forget(*key)

    def _look_into(self, key: Key, pid: int, file: _File | None, handle: int, address: int) -> None:
        bound = ""
        if self._waiting >= QUEUE_MAX:
            bound = "queue"
        elif file is None and len(self._files) >= FILES_MAX and not self._plain:
            bound = "files"
        if bound:
            self._counts.over[bound] += 1
            self._forget(*key)
            if handle >= 0:
                os.close(handle)
            return
        known = None
        if file is None:
            file = self._add(key)
        else:
            self._plain.pop(file, None)
            self._ready.pop(file, None)
            if file.stamp is not None:
                known = (file.stamp, file.digest, file.analysis)
            file.state = State.WAITING
        self._join(file, pid)
        self._waiting += 1
        self._worker.jobs.put(_Look(key, pid, handle, address, known))

    def _join(self, file: _File, pid: int) -> None:
        """The process uses the file."""
        if self._only is not None and pid not in self._only:
            return
        if file.permanent or file.state not in (State.WAITING, State.ATTACHED) or pid in file.pids:
            return
        self._idle.pop(file, None)
        self._searched.discard(file)
        files = self._of_pid.get(pid)
        if files is None:
            if len(self._of_pid) >= PIDS_MAX:
                self._counts.over["pids"] += 1
                if file.attached is not None:
                    self._idle[file] = 0  # the search for users will find it
                return
            self._of_pid[pid] = [file]
        else:
            files.append(file)
        file.pids.add(pid)

    def _join_living(self, file: _File, pids: Iterable[int]) -> None:
        """The worker found these to use the file. Those that ended since were told of already, and will not be again."""
        for pid in pids:
            try:
                os.readlink(PROC / str(pid) / "exe")  # a zombie has none
            except OSError:
                continue
            self._join(file, pid)

    def _disown(self, file: _File) -> None:
        """Its users need not be known."""
        for pid in file.pids:
            files = self._of_pid[pid]
            files.remove(file)
            if not files:
                del self._of_pid[pid]
        file.pids.clear()
        self._idle.pop(file, None)
        self._searched.discard(file)

    def _take(self, result: _Result) -> None:
        match result:
            case _Done():
                self._surveying = False
            case _Users():
                self._take_users(result.found)
            case _Seen():
                self._take_seen(result)

    def _take_seen(self, seen: _Seen) -> None:
        surveyed = bool(seen.pids)
        file = self._files.get(seen.keys[0])
        if surveyed:
            if file is None and len(self._files) >= FILES_MAX and not self._plain:
                self._counts.over["files"] += 1
            else:
                file = file or self._add(seen.keys[0])
                self._join_living(file, seen.pids)
        else:
            self._waiting -= 1
        if file is None or file.state is not State.WAITING:
            # Dropped, or looked into by an event and by the survey.
            if seen.descriptor >= 0:
                os.close(seen.descriptor)
            return
        if seen.failure == _GONE:
            self._counts.missed["ended"] += 1
            self._drop(file)
            return
        self._conclude(file, seen)

    def _conclude(self, file: _File, seen: _Seen) -> None:
        """It was looked into."""
        analysis = seen.analysis
        is_new = analysis is not file.analysis
        file.path, file.stamp, file.digest, file.analysis = seen.path, seen.stamp, seen.digest, analysis
        for key in seen.keys:
            if key not in self._files:
                self._files[key] = file
                file.keys.append(key)
        readable = any(finding.probes for finding in analysis.findings)
        if is_new:
            unread = {found.library.name.lower() for found in analysis.findings if not found.probes}
            self._counts.blind.update(unread.union(analysis.blind))
        if readable and self._only is not None and not file.pids:
            os.close(seen.descriptor)
            file.state = State.READY
            file.reason = "no process that is watched uses it"
            for key in file.keys:
                self._forget(*key)
        elif readable:
            try:
                self._attach(file, seen.descriptor)
            finally:
                os.close(seen.descriptor)
            if file.ended:
                self._counts.missed["late"] += file.ended
        elif seen.failure or analysis.problem:
            file.state = State.FAILED
            file.reason = analysis.problem or f"it cannot be read: {seen.failure}"
            if is_new:
                self._counts.failures[seen.failure or "analysis"] += 1
        else:
            file.state = State.NOTHING
            file.reason = "; ".join(found.problem for found in analysis.findings if found.problem)
        file.ended = 0
        if file.attached is None:
            self._disown(file)
            self._shelve(file)

    def _shelve(self, file: _File) -> None:
        """It is not attached: kept as long as there is room."""
        if file.permanent:
            return
        if file.state is State.READY:
            self._ready[file] = None
            if len(self._ready) > READY_MAX:
                self._drop(next(iter(self._ready)))
        else:
            self._plain[file] = None

    # --- attaching ---------------------------------------------------------------------------------------------------

    def _attach(self, file: _File, descriptor: int) -> None:
        real = real_inode(descriptor)
        for inode in self._inodes:
            if inode.digest == file.digest and inode.real.same(real):
                inode.files.append(file)
                break
        else:
            if len(self._inodes) >= ATTACHMENTS_MAX:
                self._counts.over["attachments"] += 1
                file.state = State.READY
                file.reason = f"{ATTACHMENTS_MAX} files are attached already"
                return
            inode = self._make(file, real, f"/proc/self/fd/{descriptor}")
            if file_stamp(f"/proc/self/fd/{descriptor}") != file.stamp:
                self._counts.failures["changed"] += 1
                file.reason = "the file was written to while it was attached"
                self._close(inode)
            if not inode.handles:
                file.state = State.FAILED
                return
            self._inodes.append(inode)
            self._counts.attached += 1
        file.state = State.ATTACHED
        file.attached = inode
        if not file.pids and not file.permanent:
            self._idle[file] = 0

    def _make(self, file: _File, real: RealInode, path: str) -> _Attached:
        handles = []
        probes = 0
        reasons = []
        for finding in file.analysis.findings:
            if not finding.probes:
                continue
            try:
                handles.append(self._attach_finding(path, finding))
                probes += len(finding.probes)
            except AttachError as error:
                self._counts.failures[error.reason] += 1
                reasons.append(f"{finding.library.name}: {error}")
        file.reason = "; ".join(reasons)
        watch = self._changes.add(path) if handles else -1
        if handles and watch < 0:
            self._counts.over["watches"] += 1
        return _Attached(real, file.digest, handles, probes, [file], watch)

    def _close(self, inode: _Attached) -> None:
        self._changes.remove(inode.watch)
        for handle in inode.handles:
            self._closers.submit(handle.close)
        inode.handles = []

    def _abandon(self, watch: int) -> None:
        """The file was written to: it is another one now."""
        for inode in [inode for inode in self._inodes if inode.watch == watch]:
            self._counts.failures["changed"] += 1
            for file in list(inode.files):
                self._drop(file)

    def _detach(self, file: _File) -> None:
        inode = file.attached
        assert inode is not None
        file.attached = None
        file.state = State.READY
        file.reason = "nobody used it any more"
        inode.files.remove(file)
        if not inode.files:
            self._inodes.remove(inode)
            self._counts.detached += 1
            self._close(inode)

    def _look_for_idle(self, now_ns: int) -> None:
        """Those that nobody is known to use for long enough: does anybody?"""
        due = []
        for position, (file, since_ns) in enumerate(list(self._idle.items())):
            if not since_ns:
                self._idle[file] = since_ns = now_ns
            crowded = len(self._idle) - position > LINGERING_MAX
            if crowded or now_ns - since_ns >= self._linger_ns:
                due.append(file)
        if due and not self._searching:
            self._searching = True
            self._searched = set(due)
            keys = tuple(key for file in due for key in file.keys)
            # First: who maps it from now on is told again.
            for key in keys:
                self._forget(*key)
            self._worker.jobs.put(_Search(keys))

    def _take_users(self, found: dict[Key, set[int]]) -> None:
        searched, self._searched = self._searched, set()
        self._searching = False
        for file in searched:
            users = set().union(*(found.get(key, ()) for key in file.keys))
            users.discard(self._own_pid)
            self._join_living(file, users)
            if not file.pids and file in self._idle:
                del self._idle[file]
                self._detach(file)
                self._shelve(file)

    # --- for explain and the ledger ----------------------------------------------------------------------------------

    def describe(self, pid: int) -> list[FileFacts]:
        """Every file that the process has mapped to be executed. Reads /proc/PID/maps."""
        found: dict[Key, FileFacts] = {}
        for mapping in parse_maps(read_maps(pid)):
            if mapping.key not in found:
                file = self._files.get(mapping.key)
                if file is None:
                    found[mapping.key] = FileFacts(mapping.path, None)
                else:
                    found[mapping.key] = FileFacts(mapping.path, file.state, file.reason, file.analysis)
        return list(found.values())

    def counts(self) -> Counts:
        """As of now."""
        counts = self._counts
        counts.files = len(set(map(id, self._files.values())))
        counts.attached_files = len(self._inodes)
        counts.attached_probes = sum(inode.probes for inode in self._inodes)
        return counts
