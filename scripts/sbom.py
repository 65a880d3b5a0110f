"""Write the software bill of materials (SBOM) of an image: CycloneDX 1.6, as JSON.

    .venv-audit/bin/python scripts/sbom.py IMAGE OUT.cdx.json

Lists the contents of the image: Python distributions with licenses and dependencies, components
declared in wheels (PEP 770, such as the Rust crates of `tokenizers`), shared libraries in wheels,
and Debian packages of the base. The same layers give the same bytes. The document is validated
against the schema. Needs Docker.
"""

import argparse
import email.parser
import hashlib
import json
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.contrib.hash.factories import HashTypeFactory
from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import License
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Files to read from the image: package metadata, and shared libraries in wheels.
METADATA = re.compile(
    r"(var/task|usr/(local/)?lib/python3[^/]*(/[a-z]+-packages)?|var/lang/lib/python3[^/]*/site-packages)"
    r"/([^/]+\.dist-info/.*|[^/]+\.libs/[^/]+)"
    r"|var/task/gpt2core/__init__\.py|var/lib/dpkg/status|etc/os-release|usr/lib/os-release"
)


def main(image: str, out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _unpack(image, root)
        bom = bill(root, _inspect(image))
    text = JsonV1Dot6(bom).output_as_string(indent=2)
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if error:
        raise SystemExit(f"the SBOM is not valid CycloneDX: {error}")
    report = json.loads(text)
    del report["metadata"]["timestamp"]  # keeps the output reproducible
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{out}: {len(report['components'])} components")


def bill(root: Path, image: dict[str, Any]) -> Bom:
    """The SBOM of an image; `root` contains its files that match `METADATA`."""
    layers = image["RootFS"]["Layers"]
    source = (root / "var/task/gpt2core/__init__.py").read_text()
    product = Component(
        name="gpt2-lambda",
        version=source.partition('__version__ = "')[2].partition('"')[0],
        type=ComponentType.CONTAINER,
        bom_ref="gpt2-lambda",
        properties=[
            Property(name=f"gpt2-lambda:layer:{number}", value=layer)
            for number, layer in enumerate(layers)
        ],
    )
    bom = Bom(serial_number=uuid5(NAMESPACE_URL, " ".join(layers)))
    bom.metadata.component = product
    python = dict(_python(root))
    for component in python.values():
        bom.components.add(component)
    for found in distributions(path=_site_packages(root)):
        needs = [python[n] for n in _requirements(found) if n in python]
        bom.register_dependency(python[canonicalize_name(found.name)], needs)
    others = [*_libraries(root), *_debian(root), *_interpreter(image)]
    for component in others:
        bom.components.add(component)
    bom.register_dependency(product, [*python.values(), *others])
    return bom


def _inspect(image: str) -> dict[str, Any]:
    done = subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=True)
    found = json.loads(done.stdout)[0]
    assert isinstance(found, dict)
    return found


def _unpack(image: str, root: Path) -> None:
    """Extract the files that match `METADATA`, without running the image."""
    create = ["docker", "create", image]
    container = subprocess.run(create, capture_output=True, text=True, check=True).stdout.strip()
    try:
        export = ["docker", "export", container]
        with (
            subprocess.Popen(export, stdout=subprocess.PIPE) as exported,
            tarfile.open(fileobj=exported.stdout, mode="r|") as archive,
        ):
            for member in archive:
                if member.isfile() and METADATA.fullmatch(member.name):
                    archive.extract(member, root, filter="data")
    finally:
        subprocess.run(["docker", "rm", container], capture_output=True, check=True)


def _site_packages(root: Path) -> list[str]:
    return sorted({str(path.parent) for path in root.rglob("*.dist-info")})


def _python(root: Path) -> Iterator[tuple[str, Component]]:
    for found in distributions(path=_site_packages(root)):
        name = canonicalize_name(found.name)
        purl = PackageURL("pypi", None, name, found.version)
        component = Component(
            name=found.name,
            version=found.version,
            type=ComponentType.LIBRARY,
            purl=purl,
            bom_ref=str(purl),
            description=found.metadata["Summary"],
            licenses=_licenses(found),
        )
        for part in _declared(found):
            component.components.add(part)
        yield name, component


def _licenses(found: Distribution) -> list[License]:
    about = found.metadata
    classified = [c for c in about.get_all("Classifier", []) if c.startswith("License ::")]
    words = about["License-Expression"] or about["License"] or ""
    lines = [*words.strip().splitlines()[:1], *(c.rpartition(" :: ")[2] for c in classified)]
    return [LicenseFactory().make_from_string(line) for line in lines[:1]]


def _declared(found: Distribution) -> Iterator[Component]:
    """Components in the SBOMs of a wheel."""
    folder = (
        Path(str(found.locate_file("")))
        / f"{found.name.replace('-', '_')}-{found.version}.dist-info"
    )
    for path in sorted(folder.glob("sboms/*.json")):
        for part in json.loads(path.read_text()).get("components", []):
            purl = part.get("purl", "")
            if purl:
                yield Component(
                    name=part["name"],
                    version=part.get("version"),
                    type=ComponentType.LIBRARY,
                    purl=PackageURL.from_string(purl),
                    bom_ref=f"{found.name}/{purl}",
                )


def _requirements(found: Distribution) -> Iterator[str]:
    for line in found.requires or []:
        needed = Requirement(line)
        if not needed.marker or needed.marker.evaluate({"extra": ""}):
            yield canonicalize_name(needed.name)


def _libraries(root: Path) -> Iterator[Component]:
    """Shared libraries in wheels."""
    for path in sorted(root.rglob("*.libs/*")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        yield Component(
            name=path.name,
            type=ComponentType.FILE,
            bom_ref=f"file:{path.name}",
            hashes=[HashTypeFactory().from_composite_str(f"sha256:{digest}")],
            properties=[
                Property(name="gpt2-lambda:wheel", value=path.parent.name.removesuffix(".libs"))
            ],
        )


def _debian(root: Path) -> Iterator[Component]:
    status = root / "var/lib/dpkg/status"
    if not status.exists():
        return
    about = next(p for p in (root / "etc/os-release", root / "usr/lib/os-release") if p.exists())
    release = dict(line.split("=", 1) for line in about.read_text().splitlines() if "=" in line)
    distro = f"{release['ID']}-{release.get('VERSION_ID', '').strip(chr(34))}"
    for paragraph in status.read_text().strip().split("\n\n"):
        package = email.parser.HeaderParser().parsestr(paragraph)
        if package["Status"] != "install ok installed":
            continue
        qualifiers = {"arch": package["Architecture"], "distro": distro}
        purl = PackageURL("deb", release["ID"], package["Package"], package["Version"], qualifiers)
        yield Component(
            name=package["Package"],
            version=package["Version"],
            type=ComponentType.LIBRARY,
            purl=purl,
            bom_ref=str(purl),
        )


def _interpreter(image: dict[str, Any]) -> Iterator[Component]:
    """Python in official images, which declare its version in PYTHON_VERSION."""
    environ = dict(entry.split("=", 1) for entry in image["Config"]["Env"])
    if "PYTHON_VERSION" in environ:
        version = environ["PYTHON_VERSION"]
        purl = PackageURL("generic", None, "cpython", version)
        yield Component(
            name="cpython",
            version=version,
            type=ComponentType.PLATFORM,
            purl=purl,
            bom_ref=str(purl),
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("out", metavar="OUT.cdx.json", type=Path)
    args = parser.parse_args()
    main(args.image, args.out)
