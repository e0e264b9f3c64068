# SPDX-License-Identifier: GPL-2.0-only
"""What tests/bench/run starts: the daemon, its peer, and programs that print one JSON object.

Each server has a folder, a log and an end that is its own; whoever does not come up, or does not end in
its time, is told with what it said last.
"""
import json
import os
import pathlib
import select
import shutil
import subprocess
import time

PATIENCE = 30  # seconds for a server to come up, and to end
NULL_BYTES = 64 << 30
CONTENDED_MS = 20  # of each second that somebody else had the CPU, as tests/bench/load.h has it


class BenchError(Exception):
    """Its text names the thing and the fix."""


class Starved(BenchError):
    """A run in which nothing was answered, since others had the CPUs."""


def tail(path, lines=12):
    try:
        return "\n".join("    " + line for line in path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


def end(process, name):
    """Ends a process of ours: asked first, then made to."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            print(f"bench: {name} did not end within {PATIENCE} s, and is killed", flush=True)
            process.kill()
            process.wait()


def toml(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


class Server:
    """A server in the background, whose sockets are in @folder. It is up when it answers to a connect."""

    def __init__(self, name, folder, command, sockets):
        self.name = name
        self.sockets = sockets
        self.log = folder / f"{name}.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.pid = self.process.pid
        until = time.monotonic() + PATIENCE
        while not all(os.path.exists(s) for s in sockets):
            if self.process.poll() is not None:
                raise BenchError(f"{name} ended at its start with status {self.process.returncode}; its last words:\n"
                                 f"{tail(self.log)}")
            if time.monotonic() > until:
                self.end()
                raise BenchError(f"{name} had no socket {sockets[-1]} within {PATIENCE} s; its last words:\n"
                                 f"{tail(self.log)}")
            time.sleep(0.05)

    def end(self):
        end(self.process, self.name)

    def memory(self):
        """Bytes of the process that are its own, not its guests' (those are shared)."""
        text = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        kib = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines() if line.startswith("Rss")}
        return (kib["RssAnon"] + kib["RssFile"]) << 10

    def cpu_ns(self):
        return cpu_ns(self.pid)[0]


class Programs:
    """Where the programs are, which CPUs they use, and all that is to be ended at the end."""

    def __init__(self, build, folder, driver_cpu, server_cpu):
        self.build, self.folder = build, folder
        self.driver_cpu, self.server_cpu = driver_cpu, server_cpu
        self.bpf_dirs = []
        self.running = []

    def end(self):
        """Ends all that was started, and leaves nothing of it."""
        while self.running:
            self.running.pop().end()
        for pins in self.bpf_dirs:
            shutil.rmtree(pins, ignore_errors=True)  # of a daemon that did not end by itself
        for folder in self.folder.iterdir():
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()

    def json_of(self, command, seconds):
        """The JSON object that @command prints, which takes @seconds when nothing is wrong, and with it how
        long its threads waited for a CPU that somebody else had ("waited_ms")."""
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True) as process:
            until = time.monotonic() + seconds + PATIENCE
            waited, stolen = 0, stolen_ns()
            try:
                while True:
                    try:
                        out, error = process.communicate(timeout=0.05)
                        break
                    except subprocess.TimeoutExpired:
                        waited = max(waited, cpu_ns(process.pid)[1])
                    if time.monotonic() > until:
                        raise BenchError(f"no end after {seconds + PATIENCE:.0f} s: {' '.join(command)}")
            finally:
                process.kill()  # of no effect on one that has ended
        if process.returncode:
            raise BenchError(f"status {process.returncode} from {' '.join(command)}:\n    {error.strip()[-1000:]}")
        try:
            return json.loads(out) | {"waited_ms": (waited + stolen_ns() - stolen) / 1e6}
        except ValueError:
            raise BenchError(f"not JSON from {' '.join(command)}: {out[:200]!r}") from None

    def bench(self, *arguments, seconds=5.0):
        return self.json_of([str(self.build / "tests/bench"), *map(str, arguments)], seconds)

    def distance(self):
        return self.bench("distance", self.driver_cpu, self.server_cpu)["round_trip_ns"]

    def load(self, target, seconds, server=None, **options):
        """bench load; an option True is a flag, False or None is left out."""
        words = []
        for name, value in options.items():
            if value is not False and value is not None:
                words += [f"--{name.replace('_', '-')}"] + ([] if value is True else [value])
        if server:
            words += ["--server-pid", server.pid]
        # A fifth of the time is enough to fill the caches and the peer's adaptive polling.
        warm_up = max(0.02, min(0.2, seconds / 5))
        out = self.bench("load", target, "--cpu", self.driver_cpu, "--echo-cpu", self.server_cpu,
                         "--seconds", seconds, "--warmup", warm_up, *words, seconds=seconds + warm_up)
        if not out["iops"]:
            raise Starved(f"{target} answered nothing in {seconds} s")
        return out

    def vqlaned(self, name, targets, disks, spin_us=None):
        """@targets and @disks: the configuration's tables, as dicts."""
        folder = self.folder / name
        folder.mkdir()
        lines = ["[daemon]", f"pollers = [{self.server_cpu}]"]
        if spin_us is not None:
            lines.append(f"spin_us = {spin_us}")
        for kind, tables in (("target", targets), ("disk", disks)):
            for table in tables:
                lines += ["", f"[[{kind}]]"] + [f"{key} = {toml(value)}" for key, value in table.items()]
        config = folder / "vqlaned.toml"
        config.write_text("\n".join(lines) + "\n")
        self.bpf_dirs.append(pathlib.Path(f"/sys/fs/bpf/vqlane-bench-{os.getpid()}-{name}"))
        command = [str(self.build / "vqlaned"), "--config", str(config), "--run-dir", str(folder), "--state-dir",
                   str(folder / "state"), "--bpf-dir",
                   str(self.bpf_dirs[-1])]
        return self._server(name, folder, command, [folder / f"{disk['name']}.sock" for disk in disks])

    def storage_daemon(self, name, node, queues, poll_ns=None):
        """qemu-storage-daemon with one export of @node, pinned as a whole, and its iothread with it."""
        folder = self.folder / name
        folder.mkdir()
        socket = folder / "disk.sock"
        iothread = "iothread,id=io" + (f",poll-max-ns={poll_ns}" if poll_ns is not None else "")
        command = ["taskset", "-c", str(self.server_cpu), "qemu-storage-daemon", "--object", iothread, "--blockdev",
                   f"{node},node-name=node", "--export",
                   f"vhost-user-blk,id=export,node-name=node,addr.type=unix,addr.path={socket},writable=on,"
                   f"num-queues={queues},iothread=io"]
        return self._server(name, folder, command, [socket])

    def _server(self, name, folder, command, sockets):
        server = Server(name, folder, command, sockets)
        self.running.append(server)
        return server

    def attach(self, sockets):
        """An idle client on each, until its end."""
        client = Attached(self.build, sockets)
        self.running.append(client)

    def fio(self, path, depth, seconds):
        """Raw io_uring on @path, from the server's CPU: what a server could at best hand on."""
        command = ["fio", "--name=raw", f"--filename={path}", "--readonly", "--rw=randread", "--bs=4096", "--direct=1",
                   "--ioengine=io_uring", "--fixedbufs", "--registerfiles", f"--iodepth={depth}", "--thread",
                   "--time_based", f"--runtime={seconds * 1000:.0f}ms", f"--ramp_time={seconds * 200:.0f}ms",
                   f"--cpus_allowed={self.server_cpu}", "--output-format=json"]
        said = self.json_of(command, seconds * 1.2)
        out = said["jobs"][0]
        read = out["read"]
        if out["error"]:
            raise BenchError(f"fio cannot read {path}: {os.strerror(out['error'])}")
        if not read["total_ios"]:
            raise Starved(f"fio read nothing from {path} in {seconds} s")
        latency = read["clat_ns"]["percentile"]
        busy = out["usr_cpu"] + out["sys_cpu"]
        waited_ms = said["waited_ms"] / 1.2  # the ramp's is in it
        return {"iops": read["iops"], "bytes_per_second": read["bw_bytes"], "requests": read["total_ios"],
                "latency_ns": {"avg": read["lat_ns"]["mean"], "p50": latency["50.000000"], "p99": latency["99.000000"],
                               "p999": latency["99.900000"], "max": read["lat_ns"]["max"]},
                "server_cpu_ns_per_request": busy / 100 * out["job_runtime"] * 1e6 / read["total_ios"],
                "contended": waited_ms > CONTENDED_MS * seconds, "contention": {"server_wait_ms": waited_ms}}

    def model(self, kind, seconds):
        """The poll lane alone, with engine @kind on memory that plays driver and controller."""
        out = self.json_of([str(self.build / "tests/poll_cost"), "time", kind, "32", str(seconds), str(self.driver_cpu),
                            str(self.server_cpu)], seconds)
        return out | {"contended": out["waited_ms"] > CONTENDED_MS * seconds}


class Attached:
    def __init__(self, build, sockets):
        self.process = subprocess.Popen([str(build / "tests/bench"), "attach", *map(str, sockets)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        # Its end ends the wait for its word as well.
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE + 0.1 * len(sockets))
        said = self.process.stdout.readline() if ready else ""
        if not said or json.loads(said)["attached"] != len(sockets):
            self.end()
            raise BenchError(f"bench attach: no client on all of {len(sockets)} sockets (its reason is above)")

    def end(self):
        self.process.stdin.close()
        end(self.process, "bench attach")


def cpu_ns(pid):
    """(nanoseconds on a CPU, nanoseconds waiting for one) of the process's threads that are there."""
    run = wait = 0
    try:
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            spent = (task / "schedstat").read_text().split()
            run, wait = run + int(spent[0]), wait + int(spent[1])
    except OSError:
        pass  # one that ended meanwhile
    return run, wait


def stolen_ns():
    """Nanoseconds that the hypervisor has kept CPUs from us."""
    with open("/proc/stat") as stat:
        return int(stat.readline().split()[8]) * 1e9 / os.sysconf("SC_CLK_TCK")
