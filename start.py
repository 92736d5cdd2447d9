"""From a bare machine to a running course: ``python3 start.py run``.

Makes ``.venv`` beside this file, installs the course there at the tested versions, and runs ``course <command>`` in
it. Every later call goes straight to the command. Needs Python 3.11 or newer and nothing else.
"""

# The syntax is that of old Pythons, so that they print one line about their version and no syntax error.
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
STAMP = os.path.join(VENV, "course-stamp.txt")
LOG = os.path.join(VENV, "setup.log")
OLDEST, NEWEST = (3, 11), (3, 13)
GIB = 2**30
NEEDED_GIB = 8

USAGE = """usage: python3 start.py COMMAND [ARGUMENTS]

  lab               open the course in JupyterLab
  run [day20 ...]   run notebooks, write them as pages and list their results (without a name: all of them)
  ladder FOLDER     compare six ways to train on your photos, and write a report
  test              run the tests and the notebooks
  doctor            check this installation and print what a bug report needs

  python3 start.py --help-all lists every command, python3 start.py COMMAND --help its options.
  The first call sets up .venv (about 6 GB, a few minutes); the command is then also .venv/bin/course.
"""

# What pip prints when it cannot reach the package index, on the different systems.
OFFLINE = re.compile(
    r"NewConnectionError|NameResolutionError|Temporary failure in name resolution|getaddrinfo failed|"
    r"nodename nor servname|Network is unreachable|ConnectTimeoutError|Failed to establish a new connection|"
    r"Cannot connect to proxy|ProxyError|ReadTimeoutError|Connection refused",
    re.IGNORECASE,
)
DISK_FULL = re.compile(r"No space left on device|not enough space on the disk|Errno 28", re.IGNORECASE)


class Stop(Exception):
    """An error that ends the call with one line: what is wrong and what to do."""


def main(argv):
    """Return the exit code of a command of the course, after setting up what it needs."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # not every terminal has every character
    try:
        check_python(sys.version_info[:3])
        if not argv or argv[0] in ("-h", "--help"):
            print(USAGE, end="")
            return 0 if argv else 2
        if argv[0] == "--help-all":
            argv = ["--help"]
        check_arguments(argv)
        if not is_ready():
            set_up()
        return call([venv_python(), "-m", "course_tools.cli", *argv])
    except Stop as stop:
        sys.stderr.write("start.py: %s\n" % stop)
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nstart.py: stopped. The next call goes on from here.\n")
        return 130


def check_python(version):
    """Refuse a Python that is too old; warn of one that is newer than those the course was tested with."""
    given = ".".join(str(part) for part in version)
    if tuple(version[:2]) < OLDEST:
        raise Stop(
            "this is Python %s, the course needs 3.11, 3.12 or 3.13: install one (python.org, or your system's "
            "packages) and call it by name, such as: python3.12 start.py run" % given
        )
    if tuple(version[:2]) > NEWEST:
        sys.stderr.write("start.py: Python %s is newer than the tested 3.11 to 3.13; going on.\n" % given)


def check_arguments(argv):
    """Let the parser of the course check the command line before anything is installed.

    It prints and raises SystemExit for ``--help`` and for wrong usage. It needs the standard library only.
    """
    sys.dont_write_bytecode = True
    sys.path.insert(0, ROOT)
    from course_tools import cli
    from course_utils.common.errors import CourseError

    try:
        cli.parse(argv)
    except CourseError as error:
        raise Stop(" ".join(str(error).split())) from error


def fingerprint():
    """Return the SHA-256 of all that decides what is installed: two files, the Python version and the folder.

    The folder counts because an editable installation points to it.
    """
    digest = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt"):
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read().replace(b"\r\n", b"\n") + b"\0")
    digest.update(("%d.%d\0%s" % (sys.version_info[0], sys.version_info[1], ROOT)).encode())
    return digest.hexdigest()


def is_ready():
    """Return True if ``.venv`` was set up completely for this Python, these versions and this folder."""
    try:
        with open(STAMP, encoding="ascii") as file:
            return file.read().strip() == fingerprint() and os.path.exists(venv_python())
    except (OSError, UnicodeDecodeError):
        return False


def venv_python():
    """Return the path of the Python inside ``.venv``."""
    return os.path.join(VENV, "Scripts", "python.exe") if os.name == "nt" else os.path.join(VENV, "bin", "python")


def set_up():
    """Make ``.venv`` and install the course in it. The stamp is written last: half a set-up is never used."""
    if os.path.exists(STAMP):
        os.remove(STAMP)
    check_venv_module()
    if not works(venv_python()):
        check_disk()
        make_venv()
    say("Setting up .venv: about 6 GB are downloaded and installed, 2 to 8 minutes, once. Log: .venv/setup.log")
    command = [venv_python(), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    command += ["-c", os.path.join(ROOT, "constraints.txt"), "-e", ROOT + "[test]"]
    install(command)
    wait_passively()
    with open(STAMP + ".partial", "w", encoding="ascii") as file:
        file.write(fingerprint() + "\n")
    os.replace(STAMP + ".partial", STAMP)


def wait_passively():
    """Let every Python of ``.venv`` start with threads that wait passively: see ``course_utils/__init__.py``.

    A kernel that VS Code starts imports torch before it imports the course. Unlike the variables in a kernel's
    description, this line leaves alone what the reader has set.
    """
    folders = ("Lib",) if os.name == "nt" else ("lib", "python%d.%d" % tuple(sys.version_info[:2]))
    place = os.path.join(VENV, *folders, "site-packages")
    os.makedirs(place, exist_ok=True)
    with open(os.path.join(place, "course-threads.pth"), "w", encoding="ascii") as file:
        file.write("import os; os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')\n")


def check_venv_module():
    """Stop where Python comes without venv and ensurepip, as on Debian and Ubuntu."""
    from importlib.util import find_spec

    missing = [name for name in ("venv", "ensurepip") if find_spec(name) is None]
    if missing:
        raise Stop(
            "this Python has no module %s: install it (Debian and Ubuntu: sudo apt install python%d.%d-venv) and run "
            "the same command again" % (" and ".join(missing), sys.version_info[0], sys.version_info[1])
        )


def check_disk():
    """Stop early when the disk is too small; the installation would fail after minutes."""
    free = shutil.disk_usage(ROOT).free / GIB
    if free < NEEDED_GIB:
        raise Stop(
            "%.1f GiB are free on the disk of %s, the first set-up needs %d: free some space, or move this folder to "
            "a bigger disk" % (free, ROOT, NEEDED_GIB)
        )


def works(python):
    """Return True if a virtual environment's Python starts, has pip, and has the version that runs this file."""
    test = "import sys, pip; sys.exit(list(sys.version_info[:2]) != [%d, %d])" % tuple(sys.version_info[:2])
    try:
        return subprocess.call([python, "-c", test], stderr=subprocess.DEVNULL, env=environment()) == 0
    except OSError:
        return False


def make_venv():
    """Make an empty ``.venv``; it replaces one that does not work or belongs to another Python."""
    made = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", VENV],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(),
    )
    if made.returncode != 0:
        text = made.stdout.decode(errors="replace")
        raise Stop(
            "the virtual environment %s could not be made (%s): delete that folder, see that it can be written to, "
            "and on Debian or Ubuntu run sudo apt install python3-venv" % (VENV, last_line(text))
        )


def install(command):
    """Run pip quietly, with a sign of life, and turn its failure into one line."""
    start, shown = time.time(), 0
    try:
        with open(LOG, "wb") as log:
            pip = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=environment())
            while True:
                try:
                    code = pip.wait(timeout=1)
                    break
                except subprocess.TimeoutExpired:
                    shown = sign_of_life(int(time.time() - start), shown)
                except KeyboardInterrupt:
                    pip.wait()
                    raise
    except OSError as error:
        raise Stop(
            "pip could not be started (%s): delete the folder .venv and run the same command again" % error
        ) from error
    finally:
        if sys.stdout.isatty():
            say("\r\x1b[K", end="")
    if code != 0:
        with open(LOG, encoding="utf-8", errors="replace") as file:
            raise Stop(reason(file.read(), command))
    say("Set up in %d s." % (time.time() - start))


def sign_of_life(seconds, shown):
    """Show the time, every second on a terminal and every half minute elsewhere; return when it was last shown."""
    if sys.stdout.isatty():
        say("\r\x1b[K  installing, %d min %02d s ..." % divmod(seconds, 60), end="")
    elif seconds - shown >= 30:
        say("  installing, %d s ..." % seconds)
        return seconds
    return shown


def reason(log, command):
    """Return one line about a failed installation: what happened, the command, and what to do."""
    tried = "tried: %s; log: .venv/setup.log" % " ".join(command)
    if DISK_FULL.search(log):
        return (
            "the disk ran full during the installation: free some space, or set TMPDIR to a folder on a bigger disk, "
            "and run the same command again (%s)" % tried
        )
    if OFFLINE.search(log):
        return (
            "the Python package index cannot be reached: connect to the network, or set HTTPS_PROXY or PIP_INDEX_URL "
            "if you are behind a proxy or have a mirror, and run the same command again (%s)" % tried
        )
    errors = [line for line in log.splitlines() if line.startswith("ERROR:")]
    return "pip failed: %s (%s). Delete the folder .venv and try again" % (last_line("\n".join(errors) or log), tried)


def last_line(text):
    """Return the last line of a text that is not empty, shortened to 200 characters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no message"


def environment():
    """Return the environment variables without those that lead Python to packages outside ``.venv``."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    env["PYTHONNOUSERSITE"] = "1"
    return env


def call(command):
    """Return the exit code of a command. Ctrl-C reaches the command itself, so it can end in its own way."""
    process = subprocess.Popen(command, env=environment())
    while True:
        try:
            code = process.wait()
            return 128 - code if code < 0 else code
        except KeyboardInterrupt:
            continue


def say(text, end="\n"):
    """Print without delay."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        try:
            status = main(sys.argv[1:])
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # nobody reads any more, as in: start.py --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    sys.exit(status)
