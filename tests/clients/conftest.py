"""One server for all clients, an environment for one that needs an old protobuf, and gufo's tests."""

import subprocess
import sys
import tarfile
import tempfile
import venv
from importlib.metadata import version
from pathlib import Path

import pytest
from harness import Server

# python-liftbridge's generated code works with protobuf below 4 only, and it asks pkg_resources for its
# version, which setuptools 81 no longer has.
REQUIREMENTS = ("python-liftbridge==0.0.7", "protobuf<4", "grpcio<2", "setuptools<81")
ENVIRONMENT = Path(__file__).parent / ".venv-python-liftbridge"
INSTALL_SECONDS = 540
GUFO_TESTS = Path(__file__).parent / ".venv-gufo-tests"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("clients")) as running:
        yield running
        assert "Traceback" not in running.log


@pytest.fixture(scope="module")
def api(server):
    return server.api()


@pytest.fixture(scope="session")
def python_liftbridge():
    """The interpreter of an environment with python-liftbridge; made at the first run and kept."""
    python = ENVIRONMENT / "bin" / "python"
    made_for = ENVIRONMENT / ".complete"
    stamp = f"{sys.version}\n{sys.base_prefix}\n" + "\n".join(REQUIREMENTS)
    if not (made_for.exists() and made_for.read_text() == stamp):
        venv.create(ENVIRONMENT, clear=True, with_pip=True)
        command = [
            str(python),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            *REQUIREMENTS,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS)
        assert done.returncode == 0, (
            "pip could not make the environment that the tests of python-liftbridge need; it is made once, "
            f"at the first run, over the network:\n{done.stdout}{done.stderr}"
        )
        made_for.write_text(stamp)
    return python


@pytest.fixture(scope="session")
def gufo_tests():
    """The tests of the installed gufo-liftbridge, from its sources; fetched at the first run and kept."""
    name = f"gufo_liftbridge-{version('gufo-liftbridge')}"
    folder = GUFO_TESTS / name
    if (folder / "test_client.py").exists():
        return folder
    with tempfile.TemporaryDirectory() as fetched:
        wanted = f"gufo-liftbridge=={version('gufo-liftbridge')}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--no-binary", "gufo-liftbridge", "--dest", fetched, wanted]
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS)
        assert done.returncode == 0, (
            "pip could not fetch the sources of gufo-liftbridge, whose tests are run; they are fetched once, "
            f"at the first run, over the network:\n{done.stdout}{done.stderr}"
        )
        with tarfile.open(Path(fetched) / f"{name}.tar.gz") as archive:
            source = archive.extractfile(f"{name}/tests/test_client.py")
            assert source is not None
            folder.mkdir(parents=True, exist_ok=True)
            # Whole or not at all, also when two runs fetch it.
            new = folder / f"test_client.py.{Path(fetched).name}"
            new.write_bytes(source.read())
            new.replace(folder / "test_client.py")
    return folder
