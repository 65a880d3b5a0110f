"""The revision of a model directory: identifies the model that produced a result."""

import json
import os

from gpt2core.files.manifest import read_manifest
from gpt2core.files.names import RAW_FILES
from gpt2core.files.samples import record_sample


def revision_of(model_dir: str) -> str:
    """SHA-256 of the manifest, or without a manifest of the sizes and samples of the files.

    Depends on the contents of the files, not on their times. Large files are sampled instead of
    read (`samples.record_sample`).

    Raises:
        ModelError: the manifest or a safetensors file is invalid.
        OSError: a file cannot be read.
    """
    manifest = read_manifest(model_dir)
    if manifest:
        return manifest.digest
    from hashlib import sha256

    samples = {
        name: record_sample(os.path.join(model_dir, name))
        for name in sorted(os.listdir(model_dir))
        if name in RAW_FILES or name.endswith(".safetensors")
    }
    return sha256(json.dumps(samples, sort_keys=True).encode()).hexdigest()
