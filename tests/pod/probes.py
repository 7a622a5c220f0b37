"""What a fully hijacked process tries, standard library only; run inside a pod as `python3 -I - CONFIG`, prints JSON.

Each answer is "open" when it got through, else the reason why not.
"""

# ruff: noqa: SIM115 -- files close with the process
import ctypes
import fcntl
import glob
import json
import os
import platform
import pty
import socket
import sys

config = json.loads(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
answers = {}

answers["inherited"] = []
for number in os.listdir("/proc/self/fd"):
    if int(number) > 2 and os.path.lexists(f"/proc/self/fd/{number}"):  # not the one that listed the directory
        answers["inherited"].append(os.readlink(f"/proc/self/fd/{number}"))


def probe(function):
    try:
        result = function()
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    answers[function.__name__] = result


def system_call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return "open"


@probe
def read_secret():
    return "open" if "PLANTED" in open(config["secret"]).read() else "empty"


@probe
def find_secret():
    for top, directories, files in os.walk("/"):
        directories[:] = [d for d in directories if f"{top}/{d}" not in ("//usr", "//proc", "//sys")]
        if os.path.basename(config["secret"]) in files:
            return "open"
    return "not found"


@probe
def write_outside():
    with open(config["outside"], "w") as file:
        file.write("x")
    return "here only" if not os.path.exists(config["secret"]) else "open"


@probe
def write_usr():
    open("/usr/planted", "w").close()
    return "open"


@probe
def tcp_loopback():
    with socket.create_connection(("127.0.0.1", config["tcp"]), 1):
        return "open"


@probe
def udp_loopback():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.5)
        sock.connect(("127.0.0.1", config["udp"]))
        sock.send(b"ping")
        return "open" if sock.recv(16) else "nothing"


@probe
def tcp_out():
    with socket.create_connection(("198.51.100.1", 80), 1):
        return "open"


@probe
def unix_path():
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(config["unix_path"])
    return "open"


@probe
def unix_abstract():
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("\0" + config["unix_abstract"])
    return "open"


@probe
def signal_host():
    os.kill(config["pid"], 0)
    return "open"


@probe
def host_environ():
    for path in glob.glob("/proc/[0-9]*/environ"):
        try:
            if config["marker"].encode() in open(path, "rb").read():
                return "open"
        except OSError:
            continue
    return "not seen"


@probe
def io_uring():
    return system_call(425, 8, ctypes.create_string_buffer(256))


@probe
def nested_userns():
    if libc.unshare(0x10000000) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return "open"


@probe
def mount_anything():
    if libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return "open"


@probe
def keyring():
    return system_call({"x86_64": 250, "aarch64": 219}[platform.machine()], 0, -3, 0)


@probe
def raw_socket():
    socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close()
    return "open"


@probe
def netlink():
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()
    return "open"


@probe
def vsock():
    socket.socket(40, socket.SOCK_STREAM, 0).close()
    return "open"


@probe
def packet_socket():
    socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0).close()
    return "open"


@probe
def ptrace_init():
    return system_call({"x86_64": 101, "aarch64": 117}[platform.machine()], 16, 1, 0, 0)


@probe
def init_memory():
    open("/proc/1/mem", "rb").close()
    return "open"


@probe
def terminal_injection():
    _master, slave = pty.openpty()
    if os.getpid() != os.getsid(0):
        os.setsid()
    fcntl.ioctl(slave, 0x540E, 0)  # TIOCSCTTY: without a controlling terminal the refusal would prove nothing
    fcntl.ioctl(slave, 0x5412, b"x")
    return "open"


@probe
def setuid_file():
    with open("/tmp/suid", "w"):
        os.chmod("/tmp/suid", 0o4755)
    return "open" if os.stat("/tmp/suid").st_mode & 0o4000 else "ignored"


@probe
def proc_sys():
    open("/proc/sys/kernel/core_pattern", "w").close()
    return "open"


@probe
def kernel_memory():
    return "open" if open("/proc/kcore", "rb").read(16) else "empty"


@probe
def sysfs():
    return "open" if os.listdir("/sys") else "empty"


@probe
def write_workspace():
    with open("/workspace/made", "w") as file:
        file.write("made")
    return "open"


status = open("/proc/self/status").read()
facts = {line.split(":")[0]: line.split(":")[1].strip() for line in status.splitlines()}
keys = ("CapEff", "CapPrm", "CapBnd", "CapAmb", "CapInh", "NoNewPrivs", "Seccomp", "Uid", "Gid", "Groups")
answers["status"] = {key: facts[key] for key in keys}
answers["uid_map"] = open("/proc/self/uid_map").read().split()
answers["environment"] = dict(os.environ)
answers["root"] = sorted(os.listdir("/"))
answers["mounts"] = open("/proc/self/mountinfo").read().splitlines()
print(json.dumps(answers))
