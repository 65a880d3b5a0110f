# The image of the peer, built like ours: transformers and torch with AWS's runtime client.
#
# bench/container.py downloads torch's wheel and runs scripts/build_image.sh with DOCKERFILE=….
ARG BASE=python:3.13-slim-bookworm

FROM ${BASE} AS build
COPY requirements/peer.txt /tmp/peer.txt
RUN python3 -m pip install --no-cache-dir --no-compile --require-hashes --no-deps \
        --target /out/dependencies/var/task -r /tmp/peer.txt
COPY torch /tmp/torch
RUN python3 -m pip install --no-cache-dir --no-compile --no-deps \
        --target /out/dependencies/var/task /tmp/torch/*.whl
COPY scripts/slim_image.py /tmp/slim_image.py
# This file of torch needs a newer Python.
RUN rm -f /out/dependencies/var/task/torch/testing/_internal/py312_intrinsics.py && \
    python3 /tmp/slim_image.py /out/dependencies
COPY bench/transformers_function.py /out/code/var/task/
COPY models/demo /out/code/var/task/models/demo
RUN python3 /tmp/slim_image.py /out/code

FROM ${BASE}
COPY --from=build /out/dependencies /
COPY --from=build /out/code /
WORKDIR /var/task
ENV PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1
ENTRYPOINT ["python3", "-S", "-m", "awslambdaric", "transformers_function.lambda_handler"]
USER 65534:65534
