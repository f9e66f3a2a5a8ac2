"""Runs code that a model has written, in its own process, with limits that the kernel enforces.

A seccomp filter denies it the network, further processes, signals and any change to files; resource
limits bound its time and memory. Only Linux on x86-64 or ARM64: nothing is run elsewhere.
"""

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from moe.errors import UserError

SECONDS, MEGABYTES = 10, 1024

# The denied system calls, by their numbers on x86-64 and ARM64 (linux/unistd.h); −1: none there.
_DENIED = {
  **{'socket': (41, 198), 'socketpair': (53, 199), 'io_uring_setup': (425, 425)},
  **{'connect': (42, 203), 'bind': (49, 200), 'sendto': (44, 206)},
  **{'fork': (57, -1), 'vfork': (58, -1), 'clone': (56, 220), 'clone3': (435, 435)},
  **{'execve': (59, 221), 'execveat': (322, 281)},
  **{'kill': (62, 129), 'tkill': (200, 130), 'tgkill': (234, 131), 'pidfd_send_signal': (424, 424)},
  **{'ptrace': (101, 117), 'process_vm_writev': (311, 271), 'bpf': (321, 280)},
  **{'unlink': (87, -1), 'unlinkat': (263, 35), 'rmdir': (84, -1), 'mkdir': (83, -1)},
  **{'mkdirat': (258, 34), 'rename': (82, -1), 'renameat': (264, 38), 'renameat2': (316, 276)},
  **{'link': (86, -1), 'linkat': (265, 37), 'symlink': (88, -1), 'symlinkat': (266, 36)},
  **{'truncate': (76, 45), 'chmod': (90, -1), 'fchmod': (91, 52), 'fchmodat': (268, 53)},
  **{'chown': (92, -1), 'fchown': (93, 55), 'lchown': (94, -1), 'fchownat': (260, 54)},
  **{'mknod': (133, -1), 'mknodat': (259, 33), 'creat': (85, -1), 'openat2': (437, 437)},
  **{'mount': (165, 40), 'umount2': (166, 39), 'setns': (308, 268), 'unshare': (272, 97)},
  **{'setxattr': (188, 5), 'utimensat': (280, 88), 'shmget': (29, 194), 'memfd_create': (319, 279)},
}
# Calls that are denied if their flags ask to write: (numbers, which argument the flags are).
_OPENING = (((2, -1), 1), ((257, 56), 2))
_MACHINES = {'x86_64': (0, 0xC000003E), 'aarch64': (1, 0xC00000B7)}

# Runs in the new process before the code: sets limits, then the filter, which cannot be removed.
_GUARD = r"""
import ctypes, os, resource, struct, sys
seconds, megabytes, architecture, denied, opening = eval(sys.argv[1])
for limit, value in (
  (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, megabytes << 20),
  (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 64),
):
  resource.setrlimit(limit, (value, value))
code = sys.stdin.read()
LOAD, EQUAL, ANY, AT_LEAST, RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
ALLOW, DENY, KILL = 0x7FFF0000, 0x00050000 | 13, 0x80000000
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
line = lambda operation, value, yes=0, no=0: struct.pack('HBBI', operation, yes, no, value)
# Of another architecture a number means another call; on x86-64 the x32 ones begin at 1 << 30.
program = [line(LOAD, 4), line(EQUAL, architecture, 1), line(RETURN, KILL), line(LOAD, 0)]
program += [line(AT_LEAST, 1 << 30, 0, 1), line(RETURN, KILL)]
for number in denied:
  program += [line(EQUAL, number, 0, 1), line(RETURN, DENY)]
for number, argument in opening:
  program += [line(EQUAL, number, 0, 4), line(LOAD, 16 + 8 * argument)]
  program += [line(ANY, WRITING, 0, 1), line(RETURN, DENY), line(RETURN, ALLOW)]
program.append(line(RETURN, ALLOW))
buffer = ctypes.create_string_buffer(b''.join(program))
class Filter(ctypes.Structure):
  _fields_ = [('length', ctypes.c_ushort), ('lines', ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
held = Filter(len(program), ctypes.addressof(buffer))
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(held), 0, 0):
  os._exit(90)
del libc, held, buffer, Filter
"""
_RUN = "exec(compile(code, 'generated', 'exec'), {'__name__': '__main__'})\nos._exit(91)\n"
_PASSED, _NO_FILTER = 91, 90


def run_all(programs: Sequence[str]) -> list[bool]:
  """Whether each Python program ends without an exception, within its limits.

  UserError if this machine cannot enforce the limits.
  """
  if not programs:
    return []
  _check()
  with ThreadPoolExecutor(os.cpu_count()) as pool:
    return list(pool.map(passes, programs))


def passes(program: str, seconds: int = SECONDS, megabytes: int = MEGABYTES) -> bool:
  return _exit_code(program, seconds, megabytes) == _PASSED


def _check():
  if sys.platform != 'linux' or platform.machine() not in _MACHINES:
    raise UserError(
      '--allow_code: code that a model has written is run on Linux on x86-64 or ARM64 only, where '
      'the kernel can take network and files from it: leave humaneval and mbpp out'
    )
  if _exit_code('', SECONDS, MEGABYTES) != _PASSED:
    raise UserError(
      '--allow_code: the kernel of this machine takes no seccomp filter, so that code could reach '
      'the network: leave humaneval and mbpp out'
    )


def _exit_code(program, seconds, megabytes):
  column, architecture = _MACHINES[platform.machine()]
  denied = [numbers[column] for numbers in _DENIED.values() if numbers[column] >= 0]
  opening = [(numbers[column], at) for numbers, at in _OPENING if numbers[column] >= 0]
  told = repr((seconds, megabytes, architecture, denied, opening))
  with tempfile.TemporaryDirectory() as folder:
    try:
      done = subprocess.run(
        [sys.executable, '-I', '-S', '-c', _GUARD + _RUN, told],
        input=program.encode(errors='surrogatepass'),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={'PYTHONIOENCODING': 'utf-8:surrogatepass', 'PYTHONHASHSEED': '0'},
        timeout=seconds + 2,
        check=False,
      )
    except subprocess.TimeoutExpired:
      return None
  return done.returncode
