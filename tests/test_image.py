"""The container image under Docker: limits, every event file, no missing files."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from bench.random_model import make
from bench.states import evict
from gpt2core.pack import pack
from scripts.slim_image import SERVICES
from tests.conftest import DEMO, IMAGE
from tests.support.containers import build, container, docker, post
from tests.support.emulator import NAMES, assert_answered, emulator_path
from tests.support.events import load_event
from tests.support.hub_server import HubServer
from tests.support.s3_server import CREDENTIALS, Bucket

pytestmark = [pytest.mark.image, pytest.mark.timeout(600)]
PROMPT = {"prompt": "Once upon a time there was", "max_new_tokens": 5}
RIE = emulator_path()


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("volume")
    pack(DEMO, folder)
    folder.chmod(0o755)
    folder.parent.chmod(0o755)  # the container has another user
    folder.parent.parent.chmod(0o755)
    return folder


def entry(*command: str) -> tuple[str, ...]:
    """The entry point of the image under AWS's emulator, which is mounted."""
    return ("-v", f"{RIE}:/rie:ro", "--entrypoint", "/rie", *command)


@pytest.mark.skipif(RIE is None, reason="AWS's emulator is not installed: `make test` does")
@pytest.mark.parametrize("runtime", [[], ["awslambdaric", "handler.app.lambda_handler"]])
def test_every_event_gets_its_reply_under_the_emulator(image: str, runtime: list[str]) -> None:
    command = ["python3", "-S", "bootstrap.py", *runtime]
    with container(image, *entry(), command=command) as function:
        replies = function.invoke(**{name: load_event(name) for name in NAMES})
        assert "fox" not in function.logs()
    for name in NAMES:
        assert_answered(name, replies[name])


def test_the_image_serves_the_invocations_path_without_the_emulator(image: str) -> None:
    with container(image) as function:
        first, second = (function.invoke(event=PROMPT)["event"] for _ in range(2))
    assert (first["cold_start"], second["cold_start"]) == (True, False)
    assert first["generated_text"] == second["generated_text"]


def test_the_image_serves_a_published_port(image: str) -> None:
    published = ("-p", "127.0.0.1::8080")
    with container(image, *published, command=["serve"], network="bridge") as server:
        address = docker("port", server.name, "8080").splitlines()[0]
        assert post(f"http://{address}/generate", PROMPT)["generated_text"]
    with container(image, *published, network="bridge") as function:
        address = docker("port", function.name, "8080").splitlines()[0]
        path = "/2015-03-31/functions/function/invocations"
        assert post(f"http://{address}{path}", PROMPT)["generated_text"]


def test_the_image_runs_without_root_and_writes_only_to_tmp(image: str) -> None:
    with container(image) as function:
        assert docker("exec", function.name, "id", "-u") == "65534"
        writable = "test -w /tmp && ! test -w / && ! test -w /var/task && ! test -w /mnt/gpt2"
        docker("exec", function.name, "sh", "-c", writable)


def test_sigterm_stops_the_container(image: str) -> None:
    with container(image) as function:
        docker("stop", "-t", "60", function.name)
        state = json.loads(docker("inspect", function.name))[0]["State"]
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False)


def test_a_restarted_container_gives_the_same_reply(image: str) -> None:
    with container(image) as function:
        first = function.invoke(event=PROMPT)["event"]
        docker("kill", function.name)
        docker("start", function.name)
        function.wait()
        again = function.invoke(event=PROMPT)["event"]
    assert again["cold_start"]
    assert again["generated_text"] == first["generated_text"]


def test_a_read_only_volume_is_used(image: str, packed: Path) -> None:
    with container(image, "-v", f"{packed}:/mnt/gpt2:ro") as function:
        reply = function.invoke(event=PROMPT)["event"]
    assert reply["model_source"] == "volume"
    assert reply["generated_text"]


def test_a_model_in_the_image_is_used(clone: Path, packed: Path) -> None:
    shutil.copytree(packed, clone / "models" / "baked")
    name = f"{IMAGE}-baked"
    try:
        build(name, clone, "--build-arg", "MODEL=models/baked")
        with container(name) as function:
            assert function.invoke(event=PROMPT)["event"]["model_source"] == "volume"
    finally:
        shutil.rmtree(clone / "models" / "baked")
        subprocess.run(["docker", "rmi", "-f", name], capture_output=True, check=False)


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the 124M shape, in the published layout."""
    return make(tmp_path_factory.mktemp("124m") / "published")


@pytest.mark.parametrize("precision", ["f32", "bf16", "int8"])
def test_the_124m_shape_runs_within_1024_megabytes(
    image: str, published: Path, tmp_path: Path, precision: str
) -> None:
    if not (published / "tokenizer.json").exists():
        pytest.skip("the published vocabulary is not there: GPT2_TEST_DATA")
    pack(published, tmp_path, precision)
    for folder in (tmp_path, tmp_path.parent):
        folder.chmod(0o755)
    evict(tmp_path)  # later page-ins are charged to the container
    limits = ("--memory=1024m", "--memory-swap=1024m", "-v", f"{tmp_path}:/mnt/gpt2:ro")
    with container(image, *limits) as function:
        replies = [function.invoke(event=PROMPT)["event"] for _ in range(2)]
        state = json.loads(docker("inspect", function.name))[0]["State"]
    shutil.rmtree(tmp_path)
    assert not state["OOMKilled"]
    assert [reply["usage"]["completion_tokens"] for reply in replies] == [5, 5]
    assert [reply["cold_start"] for reply in replies] == [True, False]


# Layout and variables of AWS's base image from its documentation; it may not be available.
LAID_OUT_AS_AWS_BASE = """
FROM {base}
RUN mkdir -p /var/lang/bin /var/runtime /var/task /opt && \
    ln -s "$(readlink -f "$(command -v python3)")" /var/lang/bin/python3 && \
    rm "$(command -v python3)" && \
    ln -s /bin/false /lambda-entrypoint.sh
ENV PATH=/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin:/usr/sbin:/sbin \
    LD_LIBRARY_PATH=/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/var/task:/var/task/lib \
    LANG=en_US.UTF-8 TZ=:/etc/localtime LAMBDA_TASK_ROOT=/var/task LAMBDA_RUNTIME_DIR=/var/runtime
WORKDIR /var/task
ENTRYPOINT ["/lambda-entrypoint.sh"]
"""


def test_a_base_with_the_layout_of_aws_works(image: str, clone: Path, tmp_path: Path) -> None:
    base, name = f"{IMAGE}-base-as-awss", f"{IMAGE}-on-base-as-awss"
    labels = json.loads(docker("image", "inspect", "-f", "{{json .Config.Labels}}", image))
    below = labels["org.opencontainers.image.base.name"]
    (tmp_path / "Dockerfile").write_text(LAID_OUT_AS_AWS_BASE.format(base=below))
    try:
        docker("build", "-q", "-t", base, tmp_path)
        build(name, clone, "--network=host", BASE=base)
        with container(name, "-e", "LAMBDA_TASK_ROOT=/var/task") as function:
            assert function.invoke(event=PROMPT)["event"]["generated_text"]
    finally:
        subprocess.run(["docker", "rmi", "-f", name, base], capture_output=True, check=False)


def test_the_same_input_gives_the_same_layers(image: str, clone: Path) -> None:
    name = f"{IMAGE}-again"
    try:
        build(name, clone, "--no-cache")
        layers = [json.loads(docker("inspect", n))[0]["RootFS"]["Layers"] for n in (image, name)]
    finally:
        subprocess.run(["docker", "rmi", "-f", name], capture_output=True, check=False)
    assert layers[0] == layers[1]


def test_all_modules_are_compiled_to_unchecked_bytecode(image: str) -> None:
    # PEP 552: the second word of a .pyc is 1 for a hash that is not checked.
    code = (
        "import pathlib, importlib.util, handler.app\n"
        "for source in pathlib.Path('.').rglob('*.py'):\n"
        "    compiled = pathlib.Path(importlib.util.cache_from_source(str(source)))\n"
        "    assert compiled.read_bytes()[4:8] == b'\\1\\0\\0\\0', source\n"
        "assert handler.app.lambda_handler.__code__.co_filename == '/var/task/handler/app.py'\n"
    )
    docker("run", "--rm", "--entrypoint", "python3", image, "-S", "-c", code)


def test_unused_files_are_removed_and_the_needed_clients_work(image: str) -> None:
    code = (
        "import pathlib, boto3, sys\n"
        "for name in sys.argv[1:]:\n"
        "    boto3.client(name, region_name='eu-central-1')\n"
        "root = pathlib.Path('.')\n"
        "for pattern in ('tests', '*.pyi', '*.h', '*.a'):\n"
        "    assert not list(root.rglob(pattern)), pattern\n"
        "services = [p for p in root.glob('botocore/data/*') if p.is_dir()]\n"
        "assert {p.name for p in services} == set(sys.argv[1:]), services\n"
        "from importlib.metadata import version\n"
        "assert version('numpy') and version('huggingface-hub')\n"
    )
    docker("run", "--rm", "--entrypoint", "python3", image, "-S", "-c", code, *SERVICES)


# Imports all modules in the task directory; prints those that fail, as JSON.
_IMPORT_ALL = """
import importlib, io, json, pkgutil, sys, warnings
warnings.simplefilter("ignore")
out, sys.stdout = sys.stdout, io.StringIO()
failed, found = [], 0
def walk(path, prefix):
    global found
    for module in pkgutil.iter_modules(path, prefix):
        if module.name.rpartition(".")[2] in ("__main__", "bootstrap", "tests", "conftest"):
            continue
        found += 1
        try:
            package = importlib.import_module(module.name)
        except BaseException:
            failed.append(module.name)
        else:
            if module.ispkg:
                walk(package.__path__, module.name + ".")
walk([sys.argv[1]], "")
json.dump({"found": found, "failed": failed}, out)
"""


def test_every_module_of_the_dependencies_can_still_be_imported(image: str, clone: Path) -> None:
    whole = f"{IMAGE}-dependencies"
    place = "/out/dependencies/var/task"
    walk = ("-S", "-c", _IMPORT_ALL)
    try:
        build(whole, clone, "--target", "dependencies")
        run = ("run", "--rm", "--network=none", "-e", "HOME=/tmp", "--entrypoint", "python3")
        before = docker(*run, "-e", f"PYTHONPATH={place}", whole, *walk, place)
        after = docker(*run, "-e", "PYTHONPATH=/var/task", image, *walk, "/var/task")
    finally:
        subprocess.run(["docker", "rmi", "-f", whole], capture_output=True, check=False)
    could_not, cannot = (set(json.loads(report)["failed"]) for report in (before, after))
    assert json.loads(before)["found"] > 500
    assert cannot <= could_not


def test_the_image_has_no_compiler(image: str) -> None:
    looked_for = "for name in cc gcc as ld; do ! command -v $name || exit 1; done"
    docker("run", "--rm", "--entrypoint", "sh", image, "-c", looked_for)


def test_every_module_of_the_project_can_be_imported(image: str) -> None:
    code = (
        "import pkgutil, importlib, handler, gpt2core\n"
        "for package in (handler, gpt2core):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        if not module.name.endswith('__main__'):\n"
        "            importlib.import_module(module.name)\n"
        "import numpy.linalg, numpy.random, numpy.fft, safetensors.numpy, tokenizers\n"
    )
    docker("run", "--rm", "--entrypoint", "python3", image, "-S", "-c", code)


def environ(**values: str) -> list[str]:
    return [word for name, value in values.items() for word in ("-e", f"{name}={value}")]


def test_models_are_downloaded_from_s3_and_the_hub_and_packed(
    image: str, moto: str, tmp_path: Path
) -> None:
    uri = Bucket(moto, "image").upload(DEMO, "demo")
    credentials = {n: v for n, v in CREDENTIALS.items() if "FILE" not in n}
    endpoint = f"http://{moto}"
    run = ("run", "--rm", "--network=host", "--read-only", "--tmpfs=/tmp:size=200m")
    fetch = ("fetch", uri, "/tmp/volume", "--pack")
    done = docker(*run, *environ(AWS_ENDPOINT_URL_S3=endpoint, **credentials), image, *fetch)
    assert done.startswith("/tmp/volume/revisions/")
    shutil.copytree(DEMO, tmp_path / "hub")
    with HubServer(tmp_path / "hub") as hub:
        hub.cdn = hub.address.replace("127.0.0.1", "localhost")  # another origin
        settings = environ(HF_ENDPOINT=f"http://{hub.address}", HOME="/tmp")
        done = docker(*run, *settings, image, "fetch", "hf://owner/name", "/tmp/volume")
    assert done.startswith("/tmp/volume/revisions/")
